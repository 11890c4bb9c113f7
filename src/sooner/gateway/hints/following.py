"""Where replies end, in bytes that go by unchanged: so a shutdown knows what is still under way. No I/O."""

from __future__ import annotations

from collections import deque

from sooner.gateway.engines.http1 import MAX_HEAD, Framing, Garbage, framing, read_head


class ReplyFollower:
    """Follows the replies of one connection; `methods` are of the requests whose replies have not ended."""

    def __init__(self) -> None:
        self.methods: deque[str] = deque()
        self._held = b""
        self._body: Framing | None = None

    @property
    def between(self) -> bool:
        """Whether the next byte is the first of a reply."""
        return self._body is None and not self._held

    def feed(self, data: bytes) -> None:
        """Take in bytes of replies; those that ended are off `methods`. Raises Garbage."""
        while data:
            if self._body is None:
                data = self._begin(self._held + data)
                if self._body is None:
                    return
            self._body.feed(data)
            if not self._body.done:
                return
            data, self._body = self._body.rest, None
            self.methods.popleft()

    def _begin(self, data: bytes) -> bytes:
        """Read the head of a reply; return what follows it, or hold what is no whole head."""
        if not self.methods:
            raise Garbage("a reply came that nobody asked for")
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise Garbage(f"the head of a reply is longer than {MAX_HEAD} bytes")
            self._held = data
            return b""
        self._held = b""
        head = read_head(data[:end], self.methods[0])
        rest = data[end + 4 :]
        if head.status < 200:  # "go on": the reply itself is still to come
            return self._begin(rest) if rest else b""
        self._body = framing(head, chunks=True)
        if self._body.done:
            self._body = None
            self.methods.popleft()
            return rest and self._begin(rest)
        return rest

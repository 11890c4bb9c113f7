"""Fields of a body by which a client would choose its place: left out before an engine reads them.

Where a request runs, beside whom and before whom is decided here. Besides, what an account keeps at
its provider is named by ids; with the engine's key any tenant could name another's, so none may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sooner.gateway.admission import piecewise
from sooner.gateway.admission.forms import BadRequest

PRIORITY = "priority"
_PLACES = frozenset(
    ("data_parallel_rank", "routed_dp_rank", "kv_transfer_params", "ec_transfer_params",
     "disaggregated_params", "bootstrap_host", "bootstrap_port", "bootstrap_room", "session_id",
     "session_params", "rid", "request_id", "id_slot", "slot_id", "lora_path", "nvext", "service_tier")
)  # fmt: skip
_KEPT = frozenset(("previous_response_id", "conversation", "background"))
_KEPT_IDS = frozenset(("file_id", "file_ids", "vector_store_ids", "container_id"))
_BLANK = re.compile(r"[ \t\n\r]*").match


def chosen(parsed: Mapping[str, Any], *, prioritised: bool) -> dict[str, str | None]:
    """Return the fields of a body that an engine must not see, as `edited` takes them."""
    changes: dict[str, str | None] = {}
    for name in parsed:
        if name in _PLACES or (name == PRIORITY and not prioritised):
            changes[name] = None
    extra = parsed.get("vllm_xargs")
    if isinstance(extra, dict) and "session_id" in extra:
        kept = {name: value for name, value in extra.items() if name != "session_id"}
        changes["vllm_xargs"] = json.dumps(kept)
    return changes


def is_place(name: str) -> bool:
    """Return whether a form's field is one of those."""
    return name in _PLACES or name in (PRIORITY, "vllm_xargs")


def refuse_kept(parsed: Mapping[str, Any]) -> None:
    """Raise BadRequest where a body names what a conversation's owner has kept at an engine."""
    for name in _KEPT:
        if parsed.get(name):
            raise BadRequest(f"{name} is not served here, for what an engine keeps would be everyone's")
    if isinstance(parsed.get("prompt"), dict):
        raise BadRequest("prompt is an object, allowed: text, token ids, or lists of them")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises BadRequest where a field comes twice, or names a file of the account's."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise BadRequest(f"the field {twice[:80]!r} comes twice in one object, allowed: once")
    if not _KEPT_IDS.isdisjoint(found):
        for name in _KEPT_IDS & found.keys():
            ids = found[name] if isinstance(found[name], list) else [found[name]]
            if any(isinstance(token, str) for token in ids):
                raise BadRequest(f"{name} is not served here, for what an engine keeps would be everyone's")
    return found


def edited(text: str, changes: Mapping[str, str | None]) -> str:
    """Return a JSON object with some fields' values replaced (None: left out), the others as they were.

    The text is a JSON object; a field that is not there is added.
    """
    read = piecewise.decoder(len(text)).raw_decode
    start = _blank(text, 0) + 1
    members: list[str] = []
    left = {name: value for name, value in changes.items() if value is not None}
    at = _blank(text, start)
    while text[at] != "}":
        if text[at] == ",":
            at = _blank(text, at + 1)
        name, colon = read(text, at)
        value_at = _blank(text, _blank(text, colon) + 1)
        _, end = read(text, value_at)
        if name not in changes:
            members.append(text[at:end])
        elif name in left:
            members.append(text[at:value_at] + left.pop(name))
        at = _blank(text, end)
    members += [f"{json.dumps(name)}:{value}" for name, value in left.items()]
    return text[:start] + ",".join(members) + text[at:]


def _blank(text: str, at: int) -> int:
    found = _BLANK(text, at)
    assert found is not None
    return found.end()

"""What a hint costs: CPU time of `sooner hint` for each request, by target, with and without a ranker.

    python benchmarks/hint_cost.py [--requests N] [--out FILE]

A target in this process answers each request at once, whole or as a stream of 32 events; requests come over
eight kept connections. CPU is the hinter's own user and system time, read from the kernel, which does not
depend on what else the machine does. Without a ranker a reply counts as one of the usual length: every
target, prompts of 28, 190 and 1,700 letters in turn. `light` is the ranker that is asked in the process.
`ext_proc` are the same requests asked about by an Envoy's protocol, eight streams at a time over one
connection, where `grpcio` is installed. `target_ms` is the bound that was asked for. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sooner
from sooner.gateway.hints.targets import TARGETS

EVENTS = 32
BOUND_MS = 0.3
PROMPTS = (
    "What is the capital of Peru?",
    "Write a short story about a lighthouse keeper. " * 4,
    "Summarise this text in three sentences. " + "The sea was calm and the wind had fallen. " * 40,
)
_WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices":[{"delta":{"content":" sea"}}]}\n\n'


async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length:")[1].split()[0])
            body = await reader.readexactly(size)
            if b'"stream": true' not in body:
                writer.write(_WHOLE)
                continue
            writer.write(_HEAD)
            for _ in range(EVENTS):
                writer.write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
                await asyncio.sleep(0)  # each event is a piece of its own
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        writer.close()


@contextmanager
def hinter(name: str, ranker: str, *options: str) -> Iterator[tuple[int, str]]:
    """Run the hinter; give its process id and its address."""
    command = [sys.executable, "-m", "sooner", "hint", "--target", name, "--ranker", ranker, "--port", "0"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("hinting "))
        yield process.pid, line.split("://")[1].split("/")[0].strip()
    finally:
        process.kill()
        process.communicate()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def body_of(prompt: str, stream: bool) -> bytes:
    """Return a request's JSON."""
    return json.dumps(
        {"model": "m", "stream": stream, "messages": [{"role": "user", "content": prompt}]}
    ).encode()


async def drive(address: str, requests: int, stream: bool, prompts: tuple[str, ...]) -> None:
    """Send requests over eight connections and read every reply to its end."""
    host, port = address.split(":")
    bodies = [body_of(prompt, stream) for prompt in prompts]
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    head += "Authorization: Bearer k\r\nAccept: */*\r\nUser-Agent: bench\r\n"
    calls = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]

    async def one(part: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for n in range(part, requests, 8):
            writer.write(calls[n % len(calls)])
            await reader.readuntil(b"0\r\n\r\n" if stream else b"{}")
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one(part) for part in range(8)))


async def consult(address: str, requests: int, prompts: tuple[str, ...]) -> None:
    """Ask about requests as an Envoy does, and read every answer."""
    import grpc.aio

    from sooner.gateway.hints import envoy_wire as wire

    given = {":method": "POST", ":path": "/v1/chat/completions", ":authority": "h", "user-agent": "bench"}
    listed = [{"key": name, "raw_value": value.encode()} for name, value in given.items()]
    first = wire.ProcessingRequest(
        request_headers={"headers": {"headers": listed}}, protocol_config={"request_body_mode": wire.BUFFERED}
    ).SerializeToString()
    seconds = [
        wire.ProcessingRequest(
            request_body={"body": body_of(prompt, False), "end_of_stream": True}
        ).SerializeToString()
        for prompt in prompts
    ]

    async def one(channel: grpc.aio.Channel, part: int) -> None:
        ask = channel.stream_stream(f"/{wire.SERVICE}/Process")
        for n in range(part, requests, 8):
            call = ask()
            await call.write(first)
            await call.read()
            await call.write(seconds[n % len(seconds)])
            assert len(await call.read()) > 4
            assert await call.read() is grpc.aio.EOF

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(one(channel, part) for part in range(8)))


async def measured_by_envoy(requests: int) -> list[dict[str, Any]]:
    """Return a row a target and ranker; none where `grpcio` is not installed."""
    if importlib.util.find_spec("grpc") is None:
        return []
    rows = []
    for name, ranker in (("vllm", ""), ("sglang", ""), ("vllm", "light")):
        with hinter(name, ranker, "--ext-proc") as (pid, address):
            await consult(address, max(64, requests // 10), PROMPTS)
            before = cpu_s(pid)
            await consult(address, requests, PROMPTS)
            spent = (cpu_s(pid) - before) * 1000 / requests
        rows.append({"target": name, "ranker": ranker or "none", "cpu_ms": round(spent, 3)})
        print(rows[-1], file=sys.stderr)
    return rows


async def measured(requests: int) -> list[dict[str, Any]]:
    """Return a row a target, ranker, length of the prompt and kind of reply."""
    cases = [(name, "", PROMPTS) for name in TARGETS] + [("vllm", "light", (prompt,)) for prompt in PROMPTS]
    server = await asyncio.start_server(target, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rows = []
    async with server:
        for name, ranker, prompts in cases:
            with hinter(name, ranker, "--backend", f"http://127.0.0.1:{port}") as (pid, address):
                for stream in (False, True):
                    await drive(address, max(64, requests // 10), stream, prompts)
                    before = cpu_s(pid)
                    await drive(address, requests, stream, prompts)
                    spent = (cpu_s(pid) - before) * 1000 / requests
                    letters = [len(prompt) for prompt in prompts]
                    case = {"target": name, "ranker": ranker or "none", "letters": letters, "stream": stream}
                    rows.append({**case, "cpu_ms": round(spent, 3)})
                    print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = asyncio.run(measured(options.requests))
    by_envoy = asyncio.run(measured_by_envoy(options.requests))
    most = {kind: max(row["cpu_ms"] for row in rows if row["ranker"] == kind) for kind in ("none", "light")}
    found = {
        "what": "hint cost",
        "rows": rows,
        "ext_proc": by_envoy,
        "target_ms": BOUND_MS,
        "most_ms": most,
        "holds": {kind: value <= BOUND_MS for kind, value in most.items()},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {"sooner": sooner.__version__},
    }
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Drives a real OpenAI-compatible server and measures it from the client's side.

    client.py   one request over HTTP: body, streaming, server-sent events
    collect.py  runs prompts closed-loop and records the lengths of the replies
    drive.py    replays a workload open-loop at its arrival times
    record.py   what is kept of each request, as JSONL, and as `Completed` columns
    trace.py    joins the engine's step counts to the client's records

Only client, collect and drive need aiohttp; a run can be read and reported without it.
"""

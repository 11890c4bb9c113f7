"""Name the container's base image by the digest that its tag has now: `ARG BASE=` of deploy/Containerfile.

Called by `make lock`. Where Docker Hub cannot be reached nothing is changed, and the exit code is 1.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

CONTAINERFILE = Path(__file__).parent.parent / "deploy" / "Containerfile"
TOKENS = "https://auth.docker.io/token?service=registry.docker.io&scope=repository:{name}:pull"
REGISTRY = "https://registry-1.docker.io"
_BASE = re.compile(
    r"^(ARG BASE=docker\.io/)([a-z0-9/._-]+):([A-Za-z0-9._-]+)(?:@sha256:[0-9a-f]{64})?$", re.MULTILINE
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_KINDS = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"


def digest(name: str, tag: str, registry: str = REGISTRY, tokens: str = TOKENS) -> str:
    """Return the digest of an image of several platforms. Raises OSError, ValueError."""
    with urllib.request.urlopen(tokens.format(name=name), timeout=30) as reply:
        token = json.load(reply)["token"]
    request = urllib.request.Request(
        f"{registry}/v2/{name}/manifests/{tag}", method="HEAD",
        headers={"Authorization": f"Bearer {token}", "Accept": _KINDS},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as reply:
        found = str(reply.headers.get("Docker-Content-Digest"))
    if not _DIGEST.match(found):
        raise ValueError(f"the registry says the digest {found!r}, allowed: sha256 and 64 digits")
    return found


def pinned(text: str, registry: str = REGISTRY, tokens: str = TOKENS) -> str:
    """Return a Containerfile with its base named by tag and digest."""
    found = _BASE.search(text)
    if found is None:
        raise ValueError("no line ARG BASE=docker.io/NAME:TAG, allowed: one")
    named = f"{found[1]}{found[2]}:{found[3]}@{digest(found[2], found[3], registry, tokens)}"
    return text[: found.start()] + named + text[found.end() :]


if __name__ == "__main__":
    try:
        CONTAINERFILE.write_text(pinned(CONTAINERFILE.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"the base image keeps the name it has: {error}")

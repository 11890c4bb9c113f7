"""What the tests on the real engine share: a tiny model, and one server of it for all that need no other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serve, write_tiny_model

_NEEDS_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (scripts/install_engine.py does)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `engine` where vLLM is not installed."""
    for item in items:
        if item.get_closest_marker("engine"):
            item.add_marker(_NEEDS_VLLM)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random-weight Llama with tokenizer and chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def plain_server(tiny_model: Path) -> Iterator[str]:
    """Address of one unmodified `vllm serve`, model name `tiny`, 4 sequences at a time, policy priority."""
    with serve(tiny_model, "--scheduling-policy", "priority") as url:
        yield url

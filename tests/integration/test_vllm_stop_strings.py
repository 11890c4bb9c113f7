"""vLLM aborts a request in the engine once its front end has found a stop string: such a reply is whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness  # noqa: F401  # after the skip: it imports vLLM, without torch's warnings

from sooner.ordering.wire import Ending
from sooner.vllm import compat

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]


@pytest.mark.parametrize(
    ("status", "stop", "ending"),
    [
        ("FINISHED_ABORTED", ["."], Ending.STOP),
        ("FINISHED_ABORTED", [], Ending.ABORTED),
        ("FINISHED_ABORTED", None, Ending.ABORTED),
        ("FINISHED_STOPPED", [], Ending.STOP),
        ("FINISHED_LENGTH_CAPPED", ["."], Ending.LIMIT),
    ],
)
def test_who_has_stop_strings_and_is_aborted_has_ended(
    status: str, stop: list[str] | None, ending: Ending
) -> None:
    request = SimpleNamespace(
        status=SimpleNamespace(name=status), sampling_params=SimpleNamespace(stop=stop, ignore_eos=False)
    )
    assert compat.ending(request) is ending

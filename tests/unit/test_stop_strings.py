"""vLLM aborts a request in the engine once its front end has found a stop string: such a reply is whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sooner.ordering.wire import Ending
from sooner.vllm import compat


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

"""Limits of Ray Serve and Ray Data under which requests wait where there is an order: in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sooner.core import ConfigError

SLOTS = 256
"""What vLLM runs at once where nobody says `max_num_seqs`: its own default, or less than it."""

ROOM = 4
"""Times its slots that a replica has to take at least; what it does not take waits in Ray's router."""

OPEN = 100_000
"""What a replica takes where nobody says: more than ever waits."""


class RayLimits(NamedTuple):
    """Options, and what was said of them: each note is a sentence for the operator."""

    options: dict[str, Any]
    notes: tuple[str, ...]


def limits(deployment: Mapping[str, Any], slots: int = SLOTS) -> RayLimits:
    """Return a deployment's options for an engine of `slots`: what it takes at once, and what makes another.

    A limit that would let requests wait in Ray's router, which tries again at random, is raised. Autoscaling
    counts what is under way at replicas: its target becomes `slots`, so that a backlog makes replicas.
    Raises ConfigError for numbers that are none.
    """
    options, notes = dict(deployment), []
    most = options.get("max_ongoing_requests")
    if most is None:
        options["max_ongoing_requests"] = OPEN
    elif type(most) is not int or most < 1:
        raise ConfigError(f"max_ongoing_requests={most!r}, allowed: a whole number >= {ROOM * slots}")
    elif most < ROOM * slots:
        options["max_ongoing_requests"] = ROOM * slots
        notes.append(
            f"max_ongoing_requests={most} would let requests wait in Ray's router, where there is no order,"
            f" beside an engine of {slots} slots; it is {ROOM * slots} now"
        )
    scaling = options.get("autoscaling_config")
    if scaling is None and options.get("num_replicas") == "auto":
        scaling = {}
    if isinstance(scaling, Mapping):
        target = scaling.get("target_ongoing_requests")
        if target is None:
            scaling = {**scaling, "target_ongoing_requests": slots}
        elif target > options["max_ongoing_requests"]:
            notes.append(
                f"target_ongoing_requests={target} is above max_ongoing_requests="
                f"{options['max_ongoing_requests']}: no backlog would ever make another replica"
            )
        elif target > ROOM * slots:
            notes.append(
                f"target_ongoing_requests={target} lets {target - slots} requests wait at a replica of"
                f" {slots} slots before there is another one; {slots} is advised"
            )
        options["autoscaling_config"] = dict(scaling)
    return RayLimits(options, tuple(notes))


def waiting(processor: Mapping[str, Any], slots: int = SLOTS) -> RayLimits:
    """Return a Ray Data processor's options under which `ROOM` times an engine's `slots` wait to be ordered.

    Ray Data hands an engine so many batches at once, and holds back what is above `max_pending_requests`,
    1.1 times its slots by itself. Below the room both are raised. Raises ConfigError for no such number.
    """
    options, notes = {}, []
    room, most = ROOM * slots, processor.get("max_pending_requests")
    if most is None:
        options["max_pending_requests"] = OPEN
    elif type(most) is not int or most < 1:  # Ray 2.60 fails on what it calls "no limit"
        raise ConfigError(f"max_pending_requests={most!r}, allowed: a whole number >= {room}")
    elif most < room:
        options["max_pending_requests"] = room
        notes.append(
            f"max_pending_requests={most} holds back what an engine of {slots} slots would order;"
            f" it is {room} now"
        )
    size, at_once = processor["batch_size"], processor["max_concurrent_batches"]
    if size * at_once < room:
        options["max_concurrent_batches"] = -(-room // size)
        notes.append(
            f"max_concurrent_batches={at_once} of {size} rows leave an engine of {slots} slots nothing to"
            f" order; it is {options['max_concurrent_batches']} now"
        )
    return RayLimits(options, tuple(notes))

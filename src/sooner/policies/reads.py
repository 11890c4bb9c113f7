"""What a policy asks, read from its code once: fields of `View`, and functions of NumPy.

A host then knows what it must tell, whether a ranker is needed, and how it may run the function.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sooner.core import View

Function: TypeAlias = Callable[..., Any]


class Asks(NamedTuple):
    """What a function and all that it calls name: `fields` of `View`, and functions of `numpy`."""

    fields: frozenset[str]
    numpy: frozenset[str]


@functools.lru_cache(maxsize=1024)
def asks(function: Function) -> Asks:
    """Return what a policy's function may read, the helpers that it calls included.

    The code is read, so a branch that is seldom taken counts; and the function is run on a view that
    notes what is asked of it, so that `q[2]` and `getattr` count where a trial takes them.
    """
    fields, numpy = _watched(function), set()
    waiting: list[Function] = [function]
    seen: set[Function] = set()
    while waiting:
        called = waiting.pop()
        if called in seen or not isinstance(called, types.FunctionType):
            continue
        seen.add(called)
        for owner, name, found in _names(called, called.__code__):
            if owner is _UNKNOWN:
                fields |= {name} & set(View._fields)
            elif owner is np:
                numpy.add(name)
            elif isinstance(found, types.FunctionType):
                waiting.append(found)
    return Asks(frozenset(fields), frozenset(numpy))


_UNKNOWN = object()
"""Whatever is only known when the function runs, such as the view."""


def _names(function: types.FunctionType, code: types.CodeType) -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, name, what it is) of each name in the code; the owner of a global is None."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    held: Any = _UNKNOWN
    for step in dis.get_instructions(code):
        name, owner = step.argval, held
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            held = _UNKNOWN if owner is _UNKNOWN else getattr(owner, name, _UNKNOWN)
            yield owner, name, held
        elif step.opname == "LOAD_GLOBAL":
            held = function.__globals__.get(name, _UNKNOWN)
            yield None, name, held
        elif step.opname == "LOAD_DEREF" and name in cells:
            held = _content(cells[name])
            yield None, name, held
        elif step.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL"):
            held = _UNKNOWN
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(function, inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not bound yet
        return _UNKNOWN


def _watched(function: Function) -> set[str]:
    """Return the fields that a few trial runs ask for, however they do."""
    asked: set[str] = set()

    class Watched(View):
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            asked.update({name} & set(View._fields))
            return super().__getattribute__(name)

        def __getitem__(self, at: Any) -> Any:
            found = View._fields[at]
            asked.update(found if isinstance(at, slice) else (found,))
            return super().__getitem__(at)

        def __iter__(self) -> Iterator[Any]:
            asked.update(View._fields)
            return super().__iter__()

        def _replace(self, **changes: Any) -> Watched:
            return Watched(*tuple.__add__((), tuple(View(*tuple.__iter__(self))._replace(**changes))))

    for attained in (0.0, 100.0):
        for length in (10.0, 500.0):
            view = Watched(100.0, predicted_len=length, score=length, attained=attained)
            try:
                with np.errstate(all="ignore"):
                    function(view, 200.0)
            except Exception:  # a policy that fails is the host's to count
                continue
    return asked


def rebuilt(function: types.FunctionType, swap: Callable[[Any], Any]) -> types.FunctionType:
    """Return the function with each global and closed-over value that it names passed through `swap`."""
    own = dict(function.__globals__)
    cells = tuple(types.CellType(swap(_content(cell))) for cell in function.__closure__ or ())
    made = types.FunctionType(function.__code__, own, function.__name__, function.__defaults__, cells or None)
    made.__kwdefaults__ = function.__kwdefaults__
    for name in _globals(function.__code__):
        if name in own:
            own[name] = swap(own[name])
    return made


def _globals(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_globals, inner))

"""Time against size: whatever a client writes, reading it takes time in proportion to its length.

The texts are made from the patterns themselves: every literal piece of every pattern, repeated, with and
without an end that does not fit.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Callable, Iterator

import pytest

import sooner.chat
import sooner.rankers
from sooner import chat
from sooner.chat.conversation import _said
from sooner.judging.explain import pieces
from sooner.rankers.features import hashed, replyform

SIZE = 128 * 1024
SECONDS = 0.5  # a pattern that tries again from every start needs 2 to 30 s for such a text
GROWTH = 9.0  # a text of four times the length takes 4 times as long if reading is linear, 16 if it is not

NEED_MORE = ("magnus", "boosted", "transformer", "blend", "heads")  # libraries that a test run may lack

ROLES = ("system", "assistant", "user")

KNOWN = (
    "</s>", "<think>", "</think>", "<tool_call>", "<|endoftext|>", "<s>", "<bos>", "\n\n# Tools\n\n",
    "# Tools\n\n<tools></tools>x<tools>\n", "Tools: ", "Cutting Knowledge Date: ", "Knowledge Cutoff Date: x",
    "Environment: ipython\nTools: ", "<|start_of_role|>user{", "<|start_of_role|>user ", "<|start|>user",
    "<|channel|>", "<|start|>assistant<|channel|>", "[INST]", "<<SYS>>", "USER: ", " ASSISTANT:", "user\n",
    "<|im_start|>", "<|im_start|>user\n", "\r", " ", "\n", "{", "`", "```\n", "- ", "1. ", "9", "ab",
    "\ud800",
)  # fmt: skip


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every pattern at the top of a module that reads prompts, those in tuples included."""
    for package in (sooner.chat, sooner.rankers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if (
                ".neural" in found.name
                or ".papers" in found.name
                or found.name.endswith(("boosted", "former"))
            ):
                continue
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name}.{name}", value
                elif name == "_TEMPLATES":
                    for number, template in enumerate(value):
                        yield f"{found.name}.{name}[{number}]", template.mark


def pieces_of(pattern: re.Pattern[str]) -> list[str]:
    """Runs of literals in a pattern, in the order they are written."""
    runs, run = [], ""

    def walk(parsed: object) -> None:
        nonlocal run
        for op, argument in parsed:  # type: ignore[attr-defined]  # the parser's own list
            if str(op) == "LITERAL":
                run += chr(argument)
                continue
            if run:
                runs.append(run)
            run = ""
            for inner in argument if isinstance(argument, list | tuple) else ():
                for part in inner if isinstance(inner, list) else [inner]:
                    if hasattr(part, "data"):
                        walk(part)
        if run:
            runs.append(run)
        run = ""

    walk(re._parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))  # type: ignore[attr-defined]
    return list(dict.fromkeys(runs))


def repeated(piece: str) -> str:
    return piece * (SIZE // len(piece))


def texts(found: list[str]) -> Iterator[str]:
    for piece in found:
        yield repeated(piece)
        yield repeated(piece) + "x"
    for a, b in itertools.permutations(found[:6], 2):
        yield repeated(a + b) + "x"


def spent(read: Callable[[str], object], text: str, times: int = 1) -> float:
    """CPU seconds of one reading, the least of some."""

    def once() -> float:
        start = time.process_time()
        read(text)
        return time.process_time() - start

    return min(once() for _ in range(times))


def check_linear(read: Callable[[str], object], text: str) -> None:
    """Quick, or slow only because the machine is: then a quarter of the text takes about a quarter."""
    taken = spent(read, text)
    if taken < SECONDS:
        return
    quarter = spent(read, text[-len(text) // 4 :], 3)
    taken = min(taken, spent(read, text))
    assert taken < GROWTH * quarter, (
        f"{taken:.1f} s, a quarter {quarter:.2f} s: {text[:40]!r} again and again"
    )


PATTERNS = dict(patterns())


def test_there_are_patterns() -> None:
    assert len(PATTERNS) > 20


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name: str) -> None:
    pattern = PATTERNS[name]
    for text in texts(pieces_of(pattern)):
        check_linear(lambda text: sum(1 for _ in pattern.finditer(text)), text)


READERS: dict[str, Callable[[str], object]] = {
    "rendered": chat.read,
    "messages": lambda text: chat.read_messages([{"role": role, "content": text} for role in ROLES]),
    "numbers": lambda text: hashed.numbers(text, chat.Context(system=text)),
    "hashed": lambda text: hashed.hashed(text, chat.Context(system=text)),
    "pieces": pieces,
    "form": replyform.forms,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_request_is_read_in_linear_time(reader: str) -> None:
    for piece in KNOWN:
        many = repeated(piece)
        for text in (many, many + "x", "x" + many, "<|im_start|>user\n" + many):
            check_linear(READERS[reader], text)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>a</think>b", "b"),
        ("a<think>b", "a<think>b"),
        ("<think>a<think>b</think>c</think>", "c</think>"),
        ("<tool_call>x<think>y</think>z</tool_call>w", "w"),
        ("a<think>b</think>c<tool_call>d</tool_call>e<think>f", "ace<think>f"),
        ("<tool_call>x<think>y</think>z", "<tool_call>xz"),
    ],
)
def test_what_a_reply_leaves_unsaid_is_what_the_lazy_pattern_took(reply: str, said: str) -> None:
    lazy = re.compile(r"<think>.*?</think>|<tool_call>.*?</tool_call>", re.DOTALL)
    assert _said(reply) == lazy.sub("", reply) == said

"""Commands and their documentation hold together, and the list of commands costs no heavy import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from sooner.cli import COMMANDS, LazyGroup, root

REPOSITORY = Path(__file__).parents[2]
PAGES = "\n".join(
    page.read_text(encoding="utf-8")
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
)
HEAVY = (
    "numba",
    "torch",
    "vllm",
    "aiohttp",
    "sqlalchemy",
    "onnxruntime",
    "lightgbm",
    "scipy",
    "numpy",
    "rich",
)


def command(name: str) -> click.Command:
    assert isinstance(root, LazyGroup)
    found = root.get_command(click.Context(root), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_it_does_with_an_example(name: str) -> None:
    help = command(name).help or ""
    assert f"Example: sooner {name}" in help or f"| sooner {name}" in help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_docs(name: str) -> None:
    assert f"sooner {name}" in PAGES


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_explained_or_shows_its_choices(name: str) -> None:
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            told = parameter.help or parameter.show_default or isinstance(parameter.type, click.Choice)
            assert told, f"{name} {parameter.opts}"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['sooner', '--help']\n"
        "from sooner.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_wrong_name_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sooner", "evaluate", "nowhere", "nothing.jsonl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("sooner: ")
    assert "Traceback" not in done.stderr

"""What the house promises of its own shape: names, sizes, arrows, and docs that fit a screen."""

from __future__ import annotations

import ast
import builtins
import inspect
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import sooner
from sooner import core

ROOT = Path(__file__).parents[2]
SOURCE = Path(sooner.__file__).parent
MODULES = {
    path.relative_to(SOURCE.parent).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_the_tree_of_errors_is_drawn_whole() -> None:
    drawn = inspect.getdoc(core) or ""
    for name, kind in vars(core).items():
        if isinstance(kind, type) and issubclass(kind, core.SoonerError):
            assert name in drawn


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield module, node


def test_no_public_class_name_occurs_twice() -> None:
    homes: dict[str, list[str]] = {}
    for module, node in classes():
        if not node.name.startswith("_"):
            homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_no_two_test_files_have_one_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names)  # pytest imports them as top-level modules


def test_every_error_stands_in_the_tree_of_core() -> None:
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases] for _, node in classes()
    }

    def above(name: str) -> set[str]:
        return {name}.union(*(above(base) for base in bases.get(name, ()) if base != name))

    built_in = {
        name for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }  # fmt: skip
    strays = {name for name in bases if above(name) & built_in and "SoonerError" not in above(name)}
    assert strays == set()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_and_functions_fit_a_reader() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert 60 <= statistics.median(n for name, n in lengths.items() if n > 5) <= 125
    long, wide = {}, {}
    for name, tree in TREES.items():
        for node in functions(tree):
            size = (node.end_lineno or 0) - node.lineno + 1
            arguments = node.args
            count = len(arguments.args) + len(arguments.posonlyargs) + len(arguments.kwonlyargs)
            if ".cli." not in name and node.name != "_claims" and size > 80:  # a table of a paper's claims
                long[f"{name}.{node.name}"] = size
            if ".cli." not in name and count > 12 and not name.endswith("bind"):
                wide[f"{name}.{node.name}"] = count
    assert (long, wide) == ({}, {})


def imported(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield the modules that a module names when it is imported, not those inside its functions."""
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def test_nothing_imports_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        own = module.removesuffix(".__init__")
        found = set()
        for parts in imported(tree):
            whole = ".".join(parts)
            for target in (whole, parts[0]):
                if target in MODULES or f"{target}.__init__" in MODULES:
                    found.add(target)
                    break
        arrows[own] = found - {own}
    state: dict[str, int] = {}

    def visit(module: str, path: list[str]) -> None:
        state[module] = 1
        for target in sorted(arrows.get(module, ())):
            if state.get(target) == 1:
                start = path.index(target) if target in path else 0
                raise AssertionError("a circle: " + " -> ".join([*path[start:], target]))
            if target not in state:
                visit(target, [*path, target])
        state[module] = 2

    for module in arrows:
        if module not in state:
            visit(module, [module])


def test_only_config_reads_the_environment() -> None:
    readers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    told = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    for module in readers - {"sooner.config"}:
        short = module.removeprefix("sooner.").removesuffix(".__init__")
        assert f"`{short}`" in told.partition("## Who reads the environment")[2], module


@pytest.mark.parametrize("path", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=str)
def test_docs_keep_to_lines_of_120(path: Path) -> None:
    fenced, long = False, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.startswith("```")
        if len(line) > 120 and not fenced and not line.lstrip().startswith("|"):
            long.append((number, len(line)))
    assert long == []

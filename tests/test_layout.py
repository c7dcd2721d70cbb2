"""The layout: links, doctests, and the direction of dependencies."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import einfuse

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "einsum": set[str](),
    "mapper": {"einsum"},
    "simulator": {"einsum", "mapper"},
    "kernels": {"einsum"},
    "studies": {"einsum", "mapper", "simulator", "kernels"},
}
"""Each of the five folders, and those it may import: what their packages offer, and no more."""
BELOW = {"figures", "files", "lazy", "printing", "progress"}
"""Modules of `einfuse` itself that every folder may import."""
FOLDERS = {
    "einsum": (
        "language",
        "analysis execution exchange testing",
        "library derivation",
        "gradient",
    ),
    "mapper": ("errors", "machine", "nest", "design", "space", "grouped sequential", "search"),
    "simulator": ("components", "result", "gpu", "cost", "events", "functional"),
    "kernels": ("errors", "packages", "calls", "compiled", "attention measured", "decoding linear"),
    "studies": (
        "frame",
        "fusemax model_vs_compiled",
        "accelforge analytic_vs_simulated component_costs footprint mapper_vs_hand taxonomy"
        " validation",
    ),
}
"""The folders inside each one, lowest first: one imports from lower ones only."""
MODULES = sorted(m.name for m in pkgutil.walk_packages(einfuse.__path__, "einfuse."))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import from `einfuse`, those for type checkers included."""
    package = ".".join(("einfuse", *path.relative_to(ROOT).parts[:-1]))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{package}.{module}".rstrip(".")
            if module.startswith("einfuse"):
                yield node.lineno, module


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_link_points_at_top_level_folder(room: str) -> None:
    assert (ROOT / "src" / "einfuse" / room).resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_other_folders_are_entered_by_their_package_alone(room: str) -> None:
    for path in _files(room):
        for line, module in _imports(path):
            parts = module.split(".")
            if len(parts) > 1 and parts[1] not in {room, *BELOW}:
                assert parts[1] in ROOMS[room], f"{path.name}:{line} imports {module}"
                assert len(parts) == 2, (
                    f"{path.name}:{line}: {module}; import from einfuse.{parts[1]}"
                )


@pytest.mark.parametrize("room", FOLDERS)
def test_folders_import_lower_ones_only(room: str) -> None:
    level = {name: place for place, names in enumerate(FOLDERS[room]) for name in names.split()}
    for path in _files(room):
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        for line, module in _imports(path):
            parts = module.split(".")
            if own != "__init__" and parts[1:2] == [room] and len(parts) > 2 and parts[2] != own:
                lower = level[parts[2]] < level[own]
                assert lower, f"{path.name}:{line} ({own}) imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_imports_itself_by_way_of_others(room: str) -> None:
    graph = nx.DiGraph()
    for path in _files(room):
        name = "einfuse." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph.add_edges_from((name, module) for _, module in _imports(path) if module in MODULES)
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_folder_of_code_says_what_it_is(room: str) -> None:
    for folder in {path.parent for path in _files(room)}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), folder


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "triton"}:
            pytest.skip(f"{error.name} is not installed")
        raise
    assert doctest.testmod(module).failed == 0

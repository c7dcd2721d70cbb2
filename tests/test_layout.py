"""The layout: links, doctests, and the direction of dependencies."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import einfuse

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "einsum": set[str](),
    "mapper": {"einsum"},
    "simulator": {"einsum", "mapper"},
    "kernels": {"einsum"},
    "studies": {"einsum", "mapper", "simulator", "kernels"},
}
GLUE = {"files", "figures"}  # of src/einfuse, for the rooms that write
MODULES = sorted(m.name for m in pkgutil.walk_packages(einfuse.__path__, "einfuse."))


@pytest.mark.parametrize("folder", ALLOWED)
def test_link_points_at_top_level_folder(folder: str) -> None:
    assert (ROOT / "src" / "einfuse" / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_downwards(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("einfuse."):
                target = (node.module or "").split(".")[1]
                allowed = ALLOWED[folder] | GLUE
                assert target in allowed, f"{path.name}:{node.lineno} imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "triton"}:
            pytest.skip(f"{error.name} is not installed")
        raise
    assert doctest.testmod(module).failed == 0

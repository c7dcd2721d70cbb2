"""``import einfuse`` is light; the check itself can fail."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "matplotlib", "pandas", "numpy", "sympy")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["einfuse", "einfuse.cli", "einfuse.kernels"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") & {"torch", "triton", "matplotlib", "pandas"} == set()


def test_import_of_the_package_itself_loads_not_even_numpy() -> None:
    assert loaded_by("import einfuse") == set()


def test_evaluating_loads_neither_torch_nor_matplotlib() -> None:
    statement = "import einfuse as ef; ef.load_design('fusemax'); ef.evaluate"
    assert loaded_by(statement) & {"torch", "triton", "matplotlib", "pandas"} == set()


def test_the_check_sees_what_is_loaded() -> None:
    assert "numpy" in loaded_by("import numpy")

"""Calls with arguments of another kind than they take: Einfuse's errors, never Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import einfuse as ef

SHAPE = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
WRONG: tuple[Any, ...] = (
    None, 3, 2.5, "x", "x" * 5000, "", b"x", [], {}, object(), float("nan"), (1, 2),
    np.array([1]), len,
)  # fmt: skip
CASCADE = ef.load_cascade("attention/3-pass")
CHIP = ef.load_architecture("fusemax")
DESIGN = ef.load_design("fusemax")
ARRAYS = {"Q": np.ones((2, 3)), "K": np.ones((2, 4)), "V": np.ones((2, 4))}

CALLS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda x: ef.evaluate(x, SHAPE),
    "evaluate, shape": lambda x: ef.evaluate(DESIGN, x),
    "evaluate, size": lambda x: ef.evaluate(DESIGN, SHAPE | {"M": x}),
    "evaluate, accounting": lambda x: ef.evaluate(DESIGN, SHAPE, accounting=x),
    "load_design": ef.load_design,
    "load_architecture": ef.load_architecture,
    "load_cascade": ef.load_cascade,
    "parse": ef.parse,
    "passes": ef.passes,
    "derive": ef.derive,
    "render": ef.render,
    "run": lambda x: ef.run(x, ARRAYS),
    "run, inputs": lambda x: ef.run(CASCADE, x),
    "run, one input": lambda x: ef.run(CASCADE, ARRAYS | {"Q": x}),
    "MapSpace": lambda x: ef.MapSpace(x, CHIP, SHAPE),
    "MapSpace, architecture": lambda x: ef.MapSpace(CASCADE, x, SHAPE),
    "MapSpace, shape": lambda x: ef.MapSpace(CASCADE, CHIP, x),
    "MapSpace, constraints": lambda x: ef.MapSpace(CASCADE, CHIP, SHAPE, x),
    "find_best": lambda x: ef.find_best(x, x),
    "find_objective": lambda x: ef.find_objective(x, CHIP),
    "find_objective, architecture": lambda x: ef.find_objective("latency", x),
    "to_design": lambda x: ef.to_design(x, x),
    "parse_design": lambda x: ef.parse_design(x, "here"),
    "Constraints": lambda x: ef.Constraints(tiles={"M": x}, keep=x),
    "from_torch": ef.from_torch,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_told_in_our_words(name: str) -> None:
    if name == "from_torch":
        pytest.importorskip("torch")
    refused = 0
    for wrong in WRONG:
        try:
            CALLS[name](wrong)
        except ef.EinfuseError as error:
            refused += 1
            assert "pydantic" not in str(error)
            assert "Input should" not in str(error)
    assert refused >= len(WRONG) - 3


def test_a_design_may_be_named() -> None:
    assert ef.evaluate("fusemax", SHAPE).cycles == ef.evaluate(DESIGN, SHAPE).cycles
    with pytest.raises(ef.EinfuseError, match="did you mean 'fusemax'"):
        ef.evaluate("fusemx", SHAPE)

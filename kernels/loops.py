"""Which part of its cascade each loop of a kernel is, from data/loops.yaml."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from einfuse.einsum.cascade import Cascade
from einfuse.einsum.library import load
from einfuse.einsum.parser import parse

from .dataflow import trace
from .distribution import Distribution
from .lowering import FunctionLowering, function_lowering, lowering_table
from .model import Placement, count_instructions


@dataclass(frozen=True, slots=True)
class Extra:
    """Instructions beyond the cascade: ``times`` for each element a thread has of ``ranks``."""

    instruction: str
    times: int
    ranks: tuple[str, ...]
    note: str
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopModel:
    """A loop of a Triton function and the Einsums that one turn of it computes.

    ``cascade`` is None where it is the kernel's own; without ``einsums`` a turn computes the
    cascade's ``loop:``. The loop runs ``over`` tiles of a rank; ``row_ranks`` are those along the
    rows of the tiles. ``when`` names compile-time constants that select this model.
    """

    function: str
    name: str = "main"
    cascade: Cascade | None = None
    einsums: tuple[str, ...] = ()
    over: str = "M"
    row_ranks: tuple[str, ...] = ("P",)
    when: tuple[tuple[str, Any], ...] = ()
    functions: tuple[tuple[str, FunctionLowering], ...] = ()
    extras: tuple[Extra, ...] = ()
    expected: tuple[tuple[str, str], ...] = ()

    def expects(self, architecture: str) -> tuple[str, ...]:
        """Return the instructions that the whole function must have on an architecture."""
        return tuple(name for name, where in self.expected if where == architecture)

    def serves(self, function: str, constants: Mapping[str, Any]) -> bool:
        """Whether this is a loop of a function with these compile-time constants."""
        return function == self.function and all(constants.get(n) == v for n, v in self.when)

    def count(
        self,
        cascade: str,
        tile: Mapping[str, int],
        distributions: tuple[Distribution, ...],
        architecture: str,
        dtype_bytes: int,
    ) -> dict[str, int]:
        """Return instruction -> count of a thread for one turn, extras included."""
        part = _part_of_a_group(tile, self.row_ranks[0], distributions)
        dataflow = trace(self.cascade or load(cascade), part, self.over, self.einsums)
        placement = Placement(distributions, self.row_ranks, dataflow.size)
        table = lowering_table().with_functions(dict(self.functions))
        count = count_instructions(dataflow, placement, table, architecture, dtype_bytes)
        for extra in self.extras:
            if not extra.architectures or architecture in extra.architectures:
                present = placement.elements(r for r in extra.ranks if r in placement.size)
                count[extra.instruction] = count.get(extra.instruction, 0) + extra.times * present
        return count


def _part_of_a_group(
    tile: Mapping[str, int], row_rank: str, distributions: tuple[Distribution, ...]
) -> dict[str, int]:
    """Return the part of a tile that a group of warps works on: where warps are specialised the
    compiler gives each consumer group half of the rows.
    """
    rows = {d.rows for d in distributions}
    size = tile.get(row_rank, 1)
    if size not in rows and size % 2 == 0 and size // 2 in rows:
        return {**tile, row_rank: size // 2}
    return dict(tile)


@functools.cache
def loop_models() -> tuple[LoopModel, ...]:
    """Return every loop that has a model, in the order of the file.

    >>> loop_models()[0].function
    'one_pass.forward_kernel'
    """
    text = resources.files(__package__).joinpath("data", "loops.yaml").read_text("utf-8")
    return tuple(
        _loop_model(function, entry)
        for function, entries in yaml.safe_load(text)["loops"].items()
        for entry in entries
    )


def _cascade(function: str, entry: Mapping[str, Any]) -> Cascade | None:
    if "library" in entry:
        return load(entry["library"])
    text = entry.get("cascade")
    return parse(text, function, f"loops.yaml: {function}") if text else None


def _loop_model(function: str, entry: Mapping[str, Any]) -> LoopModel:
    functions = entry.get("functions", {})
    return LoopModel(
        function=function,
        name=entry.get("name", "main"),
        cascade=_cascade(function, entry),
        einsums=tuple(entry.get("einsums", ())),
        over=entry.get("over", "M"),
        row_ranks=tuple(entry.get("rows", ("P",))),
        when=tuple(entry.get("when", {}).items()),
        functions=tuple((name, function_lowering(how)) for name, how in functions.items()),
        extras=tuple(
            Extra(
                extra["instruction"],
                extra["times"],
                tuple(extra.get("per", ())),
                extra["note"],
                tuple(extra.get("architectures", ())),
            )
            for extra in entry.get("extras", ())
        ),
        expected=tuple(
            (name, where) for where, names in entry.get("expects", {}).items() for name in names
        ),
    )

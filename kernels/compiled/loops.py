"""Which part of its cascade each loop of a kernel is, from data/loops.yaml."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from typing import Any

import yaml

from einfuse.einsum import Cascade, load, parse

from .compilation import Compiled
from .dataflow import trace
from .distribution import Distribution
from .instructions import Placement, count_instructions
from .lowering import FunctionLowering, function_lowering, lowering_table


@dataclass(frozen=True, slots=True)
class Extra:
    """Instructions beyond the cascade: ``times`` for each element a thread has of ``ranks``."""

    instruction: str
    times: Fraction
    ranks: tuple[str, ...]
    note: str
    architectures: tuple[str, ...] = ()
    dtype_bytes: int | None = None

    def serves(self, architecture: str, dtype_bytes: int) -> bool:
        """Whether it is about an architecture and elements of so many bytes."""
        return (not self.architectures or architecture in self.architectures) and (
            self.dtype_bytes in (None, dtype_bytes)
        )


@dataclass(frozen=True, slots=True)
class LoopModel:
    """A loop of a Triton function and the Einsums that one turn of it computes.

    ``cascade`` is None where it is the kernel's own; without ``einsums`` a turn computes the
    cascade's ``loop:``. The loop runs ``over`` tiles of a rank; ``row_ranks`` are those along the
    rows of the tiles. ``when`` names compile-time constants (and ``dtype``, that of the operands)
    with the values of each that select this model. Values over
    one of ``flat_ranks`` alone are computed as they are loaded, one by a thread. With
    ``late_folds`` reductions are kept per element of a tile, and folded behind the loop.

    ``is_program`` says that the Einsums are all the function computes. Its only loops are then
    over slices of a rank; ``slices`` names the constant with that rank's whole size, which the
    code covers at once where the compiler has unrolled the loop.
    ``ignored`` are instructions that serve something else, too, which no Einsum of the turn says.
    """

    function: str
    name: str = "main"
    cascade: Cascade | None = None
    einsums: tuple[str, ...] = ()
    over: str = "M"
    row_ranks: tuple[str, ...] = ("P",)
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    flat_ranks: tuple[str, ...] = ()
    late_folds: bool = False
    is_program: bool = False
    slices: tuple[tuple[str, str], ...] = ()
    functions: tuple[tuple[str, FunctionLowering], ...] = ()
    extras: tuple[Extra, ...] = ()
    ignored: tuple[str, ...] = ()
    expected: tuple[tuple[str, str], ...] = ()

    def expects(self, architecture: str) -> tuple[str, ...]:
        """Return the instructions that the whole function must have on an architecture."""
        return tuple(name for name, where in self.expected if where == architecture)

    def serves(self, function: str, constants: Mapping[str, Any]) -> bool:
        """Whether this is a loop of a function with these compile-time constants."""
        return function == self.function and all(
            constants.get(name) in values for name, values in self.when
        )

    def count(
        self, cascade: str, tile: Mapping[str, int], compiled: Compiled, dtype_bytes: int
    ) -> dict[str, int]:
        """Return instruction -> count of a thread for one turn, extras included.

        ``tile`` is rank -> size; of what was compiled the model takes the architecture, the
        number of threads, and how tiles are spread over them.
        """
        architecture, distributions = compiled.architecture, compiled.distributions
        part = _part_of_a_group(tile, self.row_ranks[0], distributions)
        dataflow = trace(
            self.cascade or load(cascade), part, self.over, self.einsums, self.late_folds
        )
        placement = Placement(
            distributions, self.row_ranks, dataflow.size, self.flat_ranks, compiled.threads
        )
        table = lowering_table().with_functions(dict(self.functions))
        count = count_instructions(dataflow, placement, table, architecture, dtype_bytes)
        for extra in self.extras:
            if extra.serves(architecture, dtype_bytes):
                elements = placement.elements(r for r in extra.ranks if r in placement.size)
                more = int(extra.times * elements)
                count[extra.instruction] = count.get(extra.instruction, 0) + more
        return {name: number for name, number in sorted(count.items()) if number}


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
    return tuple(
        _loop_model(function, entry)
        for function, entries in _data()["loops"].items()
        for entry in entries
    )


@functools.cache
def unmodelled_functions() -> Mapping[str, str]:
    """Return the functions without a model, each with the reason."""
    return dict(_data().get("unmodelled", {}))


def _data() -> dict[str, Any]:
    text = resources.files("einfuse.kernels").joinpath("data", "loops.yaml").read_text("utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


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
        when=tuple(
            (name, tuple(asked) if isinstance(asked, list) else (asked,))
            for name, asked in entry.get("when", {}).items()
        ),
        functions=tuple((name, function_lowering(how)) for name, how in functions.items()),
        flat_ranks=tuple(entry.get("flat", ())),
        late_folds=entry.get("late_folds", False),
        is_program=entry.get("program", False),
        slices=tuple(entry.get("slices", {}).items()),
        extras=tuple(
            Extra(
                extra["instruction"],
                Fraction(extra["times"]),
                tuple(extra.get("per", ())),
                extra["note"],
                tuple(extra.get("architectures", ())),
                extra.get("bytes"),
            )
            for extra in entry.get("extras", ())
        ),
        ignored=tuple(entry.get("ignored", {})),
        expected=tuple(
            (name, where) for where, names in entry.get("expects", {}).items() for name in names
        ),
    )

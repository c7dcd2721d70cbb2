"""How much memory a run needs beyond its inputs, before anything is allocated: `peak_bytes`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Negate,
    accesses,
    variables,
)
from einfuse.einsum.language.shape import tensor_shape

from .lifetime import Lifetimes, Step
from .plan import Plan, make_plan
from .reading import Space, linear_form

_COORDINATE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes alive at once, and the Einsum at which that is."""

    bytes: int
    at: str


def peak_bytes(
    cascade: Cascade,
    sizes: Mapping[str, int],
    item_bytes: int,
    wanted: Sequence[str] | None = None,
) -> Peak:
    """Return the peak of a run's own memory, from the tensors alive at each Einsum.

    An estimate: it counts tensors, generations that are kept, and the temporaries of each
    Einsum, not what a matrix product may pack, nor what an allocator rounds up.

    Args:
        cascade: the cascade.
        sizes: the size of every rank.
        item_bytes: bytes of one element.
        wanted: the tensors to keep to the end; left out: the outputs.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M, P\\ninput A[M,P]\\nB[m,p] = exp(A[m,p])\\nY[p] = B[m,p]")
    >>> peak_bytes(cascade, {"M": 1000, "P": 10}, 4)
    Peak(bytes=40040, at='Y')
    """
    return _Account(cascade, sizes, item_bytes, wanted or cascade.outputs).peak()


def check_fits(
    cascade: Cascade,
    sizes: Mapping[str, int],
    item_bytes: int,
    limit_bytes: int | None,
    wanted: Sequence[str] | None = None,
    *,
    count_inputs: bool = False,
) -> None:
    """Raise an `EinfuseError` if a run would need more memory than there is.

    Args:
        cascade: the cascade.
        sizes: the size of every rank.
        item_bytes: bytes of one element.
        limit_bytes: the memory there is; None where that is unknown.
        wanted: the tensors to keep to the end; left out: the outputs.
        count_inputs: whether the inputs have yet to be allocated.
    """
    peak = peak_bytes(cascade, sizes, item_bytes, wanted)
    needed = peak.bytes
    if count_inputs:
        inputs = [math.prod(sizes[r] for r in t.ranks) for t in cascade.input_tensors]
        needed += item_bytes * sum(inputs)
    if limit_bytes is not None and needed > limit_bytes:
        raise EinfuseError(
            f"{cascade.name} would need about {needed} bytes ({readable(needed)}), most of it at "
            f"{peak.at or 'its inputs'}; there are {limit_bytes} ({readable(limit_bytes)}). Use "
            "smaller ranks, a narrower dtype, or a cascade that splits the rank"
        )


def readable(count_bytes: int) -> str:
    """Return a number of bytes with a unit.

    >>> readable(3 * 2**20)
    '3.0 MiB'
    """
    exponent = min((max(count_bytes, 1).bit_length() - 1) // 10, 5)
    unit = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[exponent]
    return f"{count_bytes / 1024**exponent:.1f} {unit}"


class _Account:
    """The books of one run."""

    def __init__(
        self, cascade: Cascade, sizes: Mapping[str, int], item_bytes: int, wanted: Sequence[str]
    ) -> None:
        self.cascade, self.sizes, self.item_bytes = cascade, sizes, item_bytes
        self.lifetimes = Lifetimes(cascade, sizes, wanted)
        self.extents = {t.name: tensor_shape(cascade, t.name, sizes) for t in cascade.tensors}
        self.live: dict[str, int] = dict.fromkeys(cascade.inputs, 0)
        self.most = Peak(0, "")

    def peak(self) -> Peak:
        self._section("init", self.cascade.init, {})
        if self.cascade.loop:
            self._section("loop", self.cascade.loop, self._fixed())
            for name in self.lifetimes.ends_with_loop:
                self.live.pop(name, None)
        self._section("final", self.cascade.final, {})
        return self.most

    def _fixed(self) -> dict[str, int]:
        return {iteration.variable: 0 for iteration in self.cascade.iterations}

    def _section(self, section: str, einsums: Sequence[Einsum], fixed: Mapping[str, int]) -> None:
        for place, einsum in enumerate(einsums):
            step = Step(section, place)
            made = make_plan(einsum, fixed, self.sizes, self.cascade.rank_of)
            temporary, result = self._einsum_bytes(made, made.space(fixed), step)
            for output in einsum.outputs:
                kept = self._kept_bytes(output.tensor, result, section)
                self.live[output.tensor] = max(self.live.get(output.tensor, 0), kept)
            alive = sum(self.live.values()) + temporary
            if alive > self.most.bytes:
                self.most = Peak(alive, einsum.name)
            for access in einsum.operands:
                if self._drops(access.tensor, step):
                    self.live.pop(access.tensor, None)

    def _drops(self, name: str, step: Step) -> bool:
        if name in self.lifetimes.generational:
            return step.section == "loop" and self.lifetimes.ends_in_generation(name, step)
        return self.lifetimes.reads_last(name, step)

    def _kept_bytes(self, name: str, result: int, section: str) -> int:
        """Return the bytes of a tensor as it is kept: all generations, or the few alive."""
        if name not in self.lifetimes.generational or section == "final":
            return result
        if section == "init":
            return min(result, self._tensor_bytes(name))
        whole = self._tensor_bytes(name)
        return whole if self.lifetimes.keeps_all(name) else result

    def _tensor_bytes(self, name: str) -> int:
        elements: int = math.prod(self.extents[name])
        return elements * self.item_bytes

    def _einsum_bytes(self, made: Plan, space: Space, step: Step) -> tuple[int, int]:
        """Return the bytes of temporaries beside the result, and of the result.

        The first is negative where the result takes over the buffer of an operand.
        """
        einsum = made.einsum
        node = einsum.expression
        if isinstance(node, Access) and not einsum.reductions:
            return 0, self._access_bytes(node, space)
        actions = made.actions
        names = set(space.variables)
        peak, size = 0, 0
        if actions and actions[0].operator == "+" and isinstance(node, Binary | Negate):
            peak = self._factors_bytes(node, space)
        elif actions:
            peak = self._expression_bytes(node, space)[0]
        else:
            peak, size = self._expression_bytes(node, space)
        kept = set(einsum.output_variables) & names
        result = self._bytes(kept, space)
        if any(not isinstance(i.expression, Coordinate) for o in einsum.outputs for i in o.indices):
            result = max(result, self._bytes(kept, space))
        reused = 0 if actions else self._reused(einsum, space, step)
        return max(0, peak - size) - reused, result

    def _reused(self, einsum: Einsum, space: Space, step: Step) -> int:
        """Return the bytes of an operand whose buffer the result takes over."""
        result = self._bytes(set(einsum.output_variables), space)
        for access in einsum.operands:
            if self.live.get(access.tensor) == result and self._drops(access.tensor, step):
                return result
        return 0

    def _factors_bytes(self, node: Expression, space: Space) -> int:
        """Return the bytes of the factors that a sum of products evaluates first."""
        match node:
            case Negate(operand=operand):
                return self._factors_bytes(operand, space)
            case Binary(operator="*" | "/" | "+" | "-", left=left, right=right):
                return self._factors_bytes(left, space) + self._factors_bytes(right, space)
            case _:
                return self._expression_bytes(node, space)[0]

    def _expression_bytes(self, node: Expression, space: Space) -> tuple[int, int]:
        """Return the peak while an expression is evaluated, and the size of its new result."""
        match node:
            case Access():
                size = self._access_bytes(node, space)
                return size, size
            case Negate(operand=operand):
                return self._joined([operand], node, space)
            case Binary(left=left, right=right):
                return self._joined([left, right], node, space)
            case Call(arguments=arguments):
                return self._joined(list(arguments), node, space)
            case _:
                return 0, 0

    def _joined(
        self, parts: Sequence[Expression], node: Expression, space: Space
    ) -> tuple[int, int]:
        size = self._bytes(set(variables(node)), space)
        held, peak, reusable = 0, 0, False
        for part in parts:
            part_peak, part_size = self._expression_bytes(part, space)
            peak = max(peak, held + part_peak)
            held += part_size
            reusable = reusable or part_size == size
        return max(peak, held + (0 if reusable else size)), size

    def _access_bytes(self, access: Access, space: Space) -> int:
        """Return the bytes of a copy, 0 for a view."""
        filtered = [c for index in access.indices for c in index.condition]
        mask = math.prod(
            self._extent(v, space) for v in {v for c in filtered for v in variables(c)}
        )
        linear = all(linear_form(i.expression, space) is not None for i in access.indices)
        if linear or not any(accesses(i.expression) for i in access.indices):
            return mask if filtered else 0
        return self._bytes(set(variables(access)), space) + (mask if filtered else 0)

    def _bytes(self, names: set[str], space: Space) -> int:
        return math.prod(self._extent(v, space) for v in names) * self.item_bytes

    def _extent(self, variable: str, space: Space) -> int:
        if variable in space.fixed:
            return 1
        return self.sizes[self.cascade.rank_of(variable)]

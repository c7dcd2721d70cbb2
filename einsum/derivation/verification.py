"""Whether two cascades compute the same numbers: both are run on random inputs and shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.einsum.execution.run import run
from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Binary, Call, Index, Number, accesses, walk
from einfuse.einsum.language.shape import bind

from .deadline import check_time

Array = npt.NDArray[Any]

TOLERANCE = 1e-10
"""The largest difference in float64, relative to the largest value of an output."""

LARGE_SCALES = (1e2, 1e4)
"""Factors of the inputs that make scores, which are values or products of two, about 1e4."""

OFFSET = 1e4
"""What is added to numbers of deviation 1, so that deviations are small beside means."""

SCALES = (1e25, 1e-30)
"""Factors of one input whose squares leave the range of float32."""

LOST = 32.0
"""The largest error in float32, beside what rounding does to inputs or in the origin, that is
none of the algebra's."""

_ROUNDING = float(np.finfo(np.float32).eps)
_KINDS = ("mixed", "positive", "negative")
_MASKS = ("masked", "fully masked")
_ATTEMPTS = 12

_LARGEST_LITERAL = 40
"""Sizes exceed the numbers of filters up to this one, so that filters tell points apart."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Inputs of a shape, and what the origin makes of them; None where it fails."""

    inputs: Mapping[str, Array]
    shape: Mapping[str, int]
    expected: Mapping[str, Array] | None

    @property
    def is_finite(self) -> bool:
        """Tell whether the origin's outputs are all finite."""
        return self.expected is not None and _all_finite(self.expected)


@dataclass(frozen=True, slots=True)
class Strained:
    """Inputs in float32 that strain it, what they mean in float64, and an error to allow for."""

    inputs: Mapping[str, Array]
    shape: Mapping[str, int]
    exact: Mapping[str, Array]
    error: float


@dataclass(frozen=True)
class Verification:
    """An origin with trials of it, against which derived cascades are run.

    Sizes in the texts are left aside where small ones will do; ``rank`` gets a size that can be
    split.
    """

    origin: Cascade
    rank: str

    @functools.cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Trials in float64: numbers of both signs, positive and negative ones; a size each."""
        return self._trials(_KINDS)

    @functools.cached_property
    def masked_trials(self) -> tuple[Trial, ...]:
        """Trials in float64 with an input that is -inf at many points, and at all."""
        return self._trials(_MASKS)

    def _trials(self, kinds: Sequence[str]) -> tuple[Trial, ...]:
        found = []
        for turn, kind in enumerate(kinds):
            random = np.random.default_rng(turn + 1)
            shape = _shape(self.origin, self.rank, random, turn)
            if shape is None:
                continue
            inputs = _inputs(self.origin, shape, random, kind)
            masked = _masked(self.origin, self.rank, inputs) if kind in _MASKS else [inputs]
            for one in masked if kind != "fully masked" else _all_masked(masked):
                found.append(Trial(one, shape, _outputs(self.origin, one, shape)))
        return tuple(found)

    @functools.cached_property
    def large_trials(self) -> tuple[Trial, ...]:
        """The first of them in float32 with large numbers."""
        found = []
        for trial in self.trials[:1]:
            for scale in LARGE_SCALES:
                inputs = {
                    name: (values * scale).astype(np.float32)
                    if values.dtype.kind == "f"
                    else values
                    for name, values in trial.inputs.items()
                }
                expected = _outputs(self.origin, inputs, trial.shape)
                found.append(Trial(inputs, trial.shape, expected))
        return tuple(found)

    @functools.cached_property
    def strained_trials(self) -> tuple[Strained, ...]:
        """Trials in float32, one input at a time far from zero, very large, very small, half 0."""
        found = []
        for trial in self.trials[:1]:
            single = {
                name: values.astype(np.float32) if values.dtype.kind == "f" else values
                for name, values in trial.inputs.items()
            }
            for tensor in self.origin.input_tensors:
                if single[tensor.name].dtype.kind != "f":
                    continue
                for strained in _strained(single[tensor.name], tensor.ranks, self.rank):
                    inputs = single | {tensor.name: strained}
                    expected = _outputs(self.origin, inputs, trial.shape)
                    exact = _outputs(self.origin, _widened(inputs), trial.shape)
                    if expected is None or exact is None:
                        continue
                    rounded = _outputs(self.origin, _rounded(inputs), trial.shape)
                    if rounded is None or not (_all_finite(expected) and _all_finite(exact)):
                        continue
                    error = max(_error(exact, found, inputs) for found in (expected, rounded))
                    if error * LOST < 1:  # else the origin itself has no digits there
                        found.append(Strained(inputs, trial.shape, exact, error))
        return tuple(found)

    def agrees(self, derived: Cascade, tolerance: float = TOLERANCE) -> bool:
        """Tell whether a cascade gives the origin's outputs; one trial must be finite.

        >>> from einfuse.einsum.library.cascades import load
        >>> Verification(load("attention/3-pass"), "M").agrees(load("attention/1-pass"))
        True
        """
        finite = [trial for trial in self.trials if trial.is_finite]
        for trial in finite:
            found = _outputs(derived, trial.inputs, trial.shape)
            if found is None or not _all_close(trial.expected or {}, found, tolerance):
                return False
        return bool(finite)

    def agrees_when_masked(self, derived: Cascade, tolerance: float = TOLERANCE) -> bool:
        """Tell whether a cascade gives what is finite in the origin's outputs on inputs of -inf."""
        for trial in self.masked_trials:
            if trial.expected is None:
                continue
            found = _outputs(derived, trial.inputs, trial.shape)
            if found is None or not _all_close(trial.expected, found, tolerance):
                return False
        return True

    def stays_finite(self, derived: Cascade) -> bool:
        """Tell whether a cascade is finite in float32 on scores of 1e4 wherever the origin is."""
        for trial in self.large_trials:
            if trial.is_finite:
                found = _outputs(derived, trial.inputs, trial.shape)
                if found is None or not _all_finite(found):
                    return False
        return True

    def keeps_digits(self, derived: Cascade) -> bool:
        """Tell whether a cascade is as near to the numbers meant as the origin, in float32.

        The largest error of an output may be `LOST` times that of the origin, or of the origin
        in float64 on inputs that are rounded once: no algorithm can be held to more.

        >>> from einfuse.einsum.language.parser import parse
        >>> head = "rank M\\ninput X[M]\\noutput Y\\nS[] = X[m]\\n"
        >>> origin = parse(head + "D[m] = X[m] - S[] / M\\nY[] = sq(D[m]) :: +(m)")
        >>> squares = parse(head + "Q[] = sq(X[m]) :: +(m)\\nY[] = Q[] - sq(S[]) / M")
        >>> Verification(origin, "M").keeps_digits(squares)
        False
        """
        for trial in self.strained_trials:
            found = _outputs(derived, trial.inputs, trial.shape)
            if found is None or not _all_finite(found):
                return False
            if _error(trial.exact, found, trial.inputs) > LOST * max(trial.error, _ROUNDING):
                return False
        return True


def _strained(values: Array, ranks: Sequence[str], rank: str) -> Iterator[Array]:
    """Yield an input far from zero, very large, very small, and 0 in the first half of a rank."""
    yield values + np.float32(OFFSET)
    for scale in SCALES:
        yield values * np.float32(scale)
    if rank in ranks:
        axis = ranks.index(rank)
        half = np.arange(values.shape[axis]) >= values.shape[axis] // 2
        yield values * np.expand_dims(half, tuple(n for n in range(values.ndim) if n != axis))


def _widened(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in inputs.items()}


def _rounded(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return inputs in float64, each number off by one rounding of float32 up or down."""
    random = np.random.default_rng(0)
    return {
        name: values.astype(np.float64) * (1 + _ROUNDING * random.choice([-1, 1], values.shape))
        if values.dtype.kind == "f"
        else values
        for name, values in inputs.items()
    }


def _error(
    exact: Mapping[str, Array], found: Mapping[str, Array], inputs: Mapping[str, Array]
) -> float:
    """Return the largest error of an output, relative to its largest value.

    Where an output is 0 (gradients of a softmax that has become a choice), what is left of it is
    relative to the largest input.
    """
    largest = max((float(np.max(np.abs(a), initial=0.0)) for a in inputs.values()), default=0.0)
    errors = [0.0]
    for name, values in exact.items():
        scale = float(np.max(np.abs(values), initial=0.0)) or max(1.0, largest)
        error = float(np.max(np.abs(found[name].astype(np.float64) - values), initial=0.0))
        errors.append(error / scale)
    return max(errors)


def _outputs(
    cascade: Cascade, inputs: Mapping[str, Array], shape: Mapping[str, int]
) -> dict[str, Array] | None:
    check_time()
    sizes = {rank: size for rank, size in shape.items() if rank in cascade.rank_names}
    for split in cascade.splits:
        if split.inner not in sizes and split.whole in sizes:
            sizes[split.inner] = _divisor(sizes[split.whole])
    try:
        with np.errstate(all="ignore"):
            found: dict[str, Array] = run(without_sizes(cascade), inputs, sizes)
    except EinfuseError:
        return None
    return found


def _divisor(size: int) -> int:
    """Return the smallest divisor above 1, or 1: a tile that leaves several."""
    return next((d for d in range(2, size) if size % d == 0), 1)


def _all_finite(values: Mapping[str, Array]) -> bool:
    return all(bool(np.isfinite(value).all()) for value in values.values())


def _all_close(expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float) -> bool:
    for name, values in expected.items():
        finite = np.isfinite(values)
        scale = max(1.0, float(np.max(np.abs(values[finite]), initial=0.0)))
        if found[name].shape != values.shape or not np.isfinite(found[name][finite]).all():
            return False
        apart = np.abs(found[name][finite] - values[finite])
        if float(np.max(apart, initial=0.0)) > tolerance * scale:
            return False
    return True


def without_sizes(cascade: Cascade) -> Cascade:
    """Return the cascade without the sizes in its text; ranks of one size keep that."""
    ranks = tuple(Rank(r.name, r.size if isinstance(r.size, str) else None) for r in cascade.ranks)
    return replace(cascade, ranks=ranks)


def _shape(
    cascade: Cascade, rank: str, random: np.random.Generator, turn: int
) -> dict[str, int] | None:
    """Return small sizes that bind a cascade; the text's own where no small ones do."""
    for attempt in range(_ATTEMPTS):
        sizes = _drawn(cascade, rank, random, turn, equal=attempt > _ATTEMPTS // 2)
        try:
            return {r: int(n) for r, n in bind(without_sizes(cascade), sizes).items()}
        except EinfuseError:
            continue
    try:
        return {r: int(n) for r, n in bind(cascade, {}).items()}
    except EinfuseError:
        return None


def _drawn(
    cascade: Cascade, rank: str, random: np.random.Generator, turn: int, *, equal: bool
) -> dict[str, int]:
    """Draw sizes of the ranks: splits multiply, ranks of one size agree, filters cull some."""
    least = _largest_literal(cascade)
    part = math.isqrt(least)
    parts = {name for s in cascade.splits for name in (s.outer, s.inner)}
    sizes = {
        name: part + int(random.integers(2, 4))
        if name in parts
        else least + int(random.integers(2, 6))
        for name in cascade.rank_names
    }
    if equal:
        sizes = {name: part + 2 if name in parts else (part + 2) ** 2 for name in sizes}
    elif rank in sizes and rank not in parts:
        sizes[rank] = _tileable(least + 6, turn)
    groups = [{r.name, r.size} for r in cascade.ranks if isinstance(r.size, str)]
    for _ in sizes:
        for split in cascade.splits:
            sizes[split.whole] = sizes[split.outer] * sizes[split.inner]
        for group in groups:
            wholes = [name for name in group if name in {s.whole for s in cascade.splits}]
            first = next(iter(wholes or [n for n in group if n == rank] or sorted(map(str, group))))
            sizes |= {str(name): sizes[str(first)] for name in group}
    return sizes


def _largest_literal(cascade: Cascade) -> int:
    """Return the largest number of the filters and indices of a cascade."""
    indices = (i for e in cascade.einsums for a in (*e.operands, *e.outputs) for i in a.indices)
    numbers = (n.value for i in indices for n in walk(i) if isinstance(n, Number))
    return int(max((n for n in numbers if n <= _LARGEST_LITERAL), default=0))


def _tileable(least: int, turn: int) -> int:
    """Return a size that is even, prime, or a multiple of 3, in turn."""
    if turn % 3 == 1:
        return next(n for n in range(least, 2 * least) if _divisor(n) == 1)
    step = 2 if turn % 3 == 0 else 3
    return -(-least // step) * step


def _masked(cascade: Cascade, rank: str, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Return inputs one of which, in turn, is -inf in the first half of a rank and every third.

    Masks are added: what is multiplied, or enters a function, is finite.
    """
    found = []
    multiplied = multiplied_inputs(cascade)
    for tensor in cascade.input_tensors:
        values = inputs[tensor.name]
        if rank not in tensor.ranks or values.dtype.kind != "f" or tensor.name in multiplied:
            continue
        axis = tensor.ranks.index(rank)
        at = np.arange(values.shape[axis])
        hidden = np.expand_dims(
            (at < len(at) // 2) | (at % 3 == 0), tuple(n for n in range(values.ndim) if n != axis)
        )
        found.append({**inputs, tensor.name: np.where(hidden, -np.inf, values)})
    return found


def multiplied_inputs(cascade: Cascade) -> frozenset[str]:
    """Return the inputs that some Einsum multiplies, divides, or takes a function of, as read."""
    found: set[str] = set()
    for einsum in cascade.einsums:
        for node in walk(einsum.expression):
            match node:
                case Binary(operator="*" | "/", left=left, right=right):
                    found |= {a.tensor for part in (left, right) for a in accesses(part)}
                case Call(function=name) if name not in ("exp", "max", "min", "where"):
                    found |= {a.tensor for a in accesses(node)}
    return frozenset(found)


def _all_masked(found: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Return inputs with what has an infinity in it infinite everywhere."""
    return [
        {n: np.full_like(v, -np.inf) if np.isinf(v).any() else v for n, v in inputs.items()}
        for inputs in found
    ]


def _inputs(
    cascade: Cascade, shape: Mapping[str, int], random: np.random.Generator, kind: str
) -> dict[str, Array]:
    coordinates, conditions = _roles(cascade)
    inputs: dict[str, Array] = {}
    for tensor in cascade.input_tensors:
        extent = tuple(shape[rank] for rank in tensor.ranks)
        if tensor.name in coordinates:
            inputs[tensor.name] = random.integers(0, 2, extent)
        elif tensor.name in conditions:
            inputs[tensor.name] = random.integers(0, 2, extent).astype(float)
        else:
            values = random.normal(size=extent)
            sign = {"positive": 1, "negative": -1}.get(kind)
            inputs[tensor.name] = values if sign is None else sign * (np.abs(values) + 0.1)
    return inputs


def _roles(cascade: Cascade) -> tuple[set[str], set[str]]:
    """Return the inputs that are coordinates (they stand in an index), and those that decide."""
    coordinates: set[str] = set()
    conditions: set[str] = set()
    for einsum in cascade.einsums:
        for node in walk(einsum.expression):
            if isinstance(node, Index):
                coordinates |= {access.tensor for access in accesses(node)}
            elif isinstance(node, Call) and node.function == "where":
                condition = node.arguments[0]
                if isinstance(condition, Access):
                    conditions.add(condition.tensor)
    return coordinates, conditions

"""The iteration space of an Einsum, counted: all points, less those that its filters cull.

Where the filters are linear in up to two variables with unit coefficients (causal, sliding
window, bands, over split ranks too) the count is a closed form in the sizes. Elsewhere it is a
sum of indicators while sizes are open, and an exact enumeration once they are bound.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sympy

from einfuse.einsum.language.affine import Linear, at_most_zero, coordinates, evaluate, holds
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Comparison, accesses, variables
from einfuse.einsum.language.shape import filters

_CHUNK = 2**22  # points held at a time
_MOST_POINTS = 2**34  # points walked before giving up


def iteration_space(cascade: Cascade, einsum: Einsum) -> tuple[str, ...]:
    """Return the ranks of an Einsum's iteration space, one for each of its variables.

    >>> from einfuse.einsum.library.cascades import load
    >>> cascade = load("attention/3-pass")
    >>> iteration_space(cascade, cascade.einsums[0])
    ('E', 'P', 'M')
    """
    return tuple(cascade.rank_of(variable) for variable in einsum.variables)


def count_points(
    cascade: Cascade,
    einsum: Einsum,
    sizes: Mapping[str, sympy.Expr],
    kept: Collection[str] | None = None,
) -> sympy.Expr:
    """Return the number of points of an Einsum's iteration space.

    Filters that depend on data (a gather in a filter) cull nothing here: the count is then the
    most there can be.

    Args:
        cascade: the cascade of the Einsum.
        einsum: the Einsum.
        sizes: size of every rank, as from `shape.bind_symbolic`.
        kept: count the distinct points of these variables alone, those that still have a point
            of the whole space; all variables if left out.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.shape import bind_symbolic
    >>> causal = parse("rank M, P = M\\ninput A[M]\\nY[p] = A[m: m<=p]")
    >>> count_points(causal, causal.einsums[0], bind_symbolic(causal))
    M*(M + 1)/2
    """
    kept = set(einsum.variables if kept is None else kept)
    extents = {v: sizes[cascade.rank_of(v)] for v in einsum.variables}
    culls = [_cull(c, sizes) for c in filters(einsum) if not any(accesses(c))]
    region = _Region(extents, tuple(c for found in culls for c in found), sizes)
    for split in cascade.splits:
        region = _joined(region, cascade, split.outer, split.inner, kept)
    total = sympy.Integer(1)
    for part in _parts(region):
        total *= _count(part, kept & part.extents.keys())
    return total


@dataclass(frozen=True, slots=True)
class _Cull:
    """A constraint on points: ``form <= 0`` if it has a form, else its comparison."""

    comparison: Comparison
    form: Linear | None

    @property
    def variables(self) -> set[str]:
        return set(self.form.coefficients) if self.form else set(variables(self.comparison))


@dataclass(frozen=True, slots=True)
class _Region:
    extents: Mapping[str, sympy.Expr]
    culls: tuple[_Cull, ...]
    sizes: Mapping[str, sympy.Expr]

    @property
    def bound(self) -> bool:
        """Whether every size in it is a number."""
        constants = [c.form.constant for c in self.culls if c.form]
        factors = [f for c in self.culls if c.form for f in c.form.coefficients.values()]
        others = [self.sizes.values()] if any(c.form is None for c in self.culls) else []
        found = [*self.extents.values(), *constants, *factors, *(s for o in others for s in o)]
        return all(sympy.sympify(value).is_Integer for value in found)


def _cull(comparison: Comparison, sizes: Mapping[str, sympy.Expr]) -> Iterator[_Cull]:
    forms = at_most_zero(comparison, sizes)
    if forms is None:
        yield _Cull(comparison, None)
    else:
        for form in forms:
            factors = {v: sympy.expand(f) for v, f in form.coefficients.items()}
            yield _Cull(comparison, Linear(factors, sympy.expand(form.constant)))


def _joined(region: _Region, cascade: Cascade, outer: str, inner: str, kept: set[str]) -> _Region:
    """Return the region over the whole of a split, where its filters see only the whole.

    ``m1*M0 + m0 <= p`` is a filter on ``m``; the joined variable keeps the inner one's name.
    """
    tops = [v for v in region.extents if cascade.rank_of(v) == outer]
    lows = [v for v in region.extents if cascade.rank_of(v) == inner]
    if len(tops) != 1 or len(lows) != 1 or (tops[0] in kept) != (lows[0] in kept):
        return region
    top, low = tops[0], lows[0]
    culls: list[_Cull] = []
    touched = False
    for cull in region.culls:
        if not {top, low} & cull.variables:
            culls.append(cull)
            continue
        if cull.form is None:
            return region
        factors = dict(cull.form.coefficients)
        factor = factors.get(low, 0)
        if sympy.expand(factors.pop(top, 0) - factor * region.extents[low]) != 0:
            return region
        touched = True
        culls.append(replace(cull, form=Linear(factors, cull.form.constant)))
    if not touched:
        return region
    extents = dict(region.extents)
    extents[low] *= extents.pop(top)
    return replace(region, extents=extents, culls=tuple(culls))


def _parts(region: _Region) -> Iterator[_Region]:
    """Yield the independent parts of a region: no filter ties one to another."""
    groups: list[set[str]] = [{v} for v in region.extents]
    for cull in region.culls:
        tied = [group for group in groups if group & cull.variables]
        groups = [group for group in groups if group not in tied]
        groups.append(set().union(*tied, cull.variables))
    for group in groups:
        extents = {v: e for v, e in region.extents.items() if v in group}
        culls = tuple(c for c in region.culls if c.variables <= group and c.variables)
        if not group:
            culls = tuple(c for c in region.culls if not c.variables)
        yield replace(region, extents=extents, culls=culls)


def _count(part: _Region, kept: set[str]) -> sympy.Expr:
    if not part.culls:
        return sympy.prod([extent for v, extent in part.extents.items() if v in kept])
    for place, cull in enumerate(part.culls):
        if cull.form is None and cull.comparison.operator == "!=" and kept == set(part.extents):
            rest = part.culls[:place] + part.culls[place + 1 :]
            equal = tuple(_cull(replace(cull.comparison, operator="=="), part.sizes))
            if all(c.form is not None for c in equal):
                without = replace(part, culls=rest)
                return sympy.expand(
                    _total(without, kept) - _total(replace(part, culls=rest + equal), kept)
                )
    closed = _closed(part, kept)
    if closed is not None:
        return closed
    return sympy.Integer(_walk(part, kept)) if part.bound else _open_sum(part, kept)


def _total(region: _Region, kept: set[str]) -> sympy.Expr:
    return sympy.prod([_count(part, kept & part.extents.keys()) for part in _parts(region)])


def _closed(part: _Region, kept: set[str]) -> sympy.Expr | None:
    """Return the count of one variable's range or of a band of two, else None."""
    if not 1 <= len(part.extents) <= 2 or any(cull.form is None for cull in part.culls):
        return None
    forms = [cull.form for cull in part.culls if cull.form is not None]
    if len(part.extents) == 2:
        forms = _facing(part, forms)
    first = {v: sympy.Integer(0) for v in part.extents}
    end = dict(part.extents)  # exclusive
    band: tuple[list[sympy.Expr], list[sympy.Expr]] = ([], [])  # lower, upper bounds of x - y
    names = list(part.extents)
    for form in forms:
        if len(form.coefficients) == 1:
            ((v, factor),) = form.coefficients.items()
            if factor.is_positive:
                end[v] = sympy.Min(end[v], sympy.floor(-form.constant / factor) + 1)
            elif factor.is_negative:
                first[v] = sympy.Max(first[v], sympy.ceiling(form.constant / -factor))
            else:
                return None
        else:
            match form.coefficients[names[0]], form.coefficients[names[1]]:
                case (1, -1):
                    band[1].append(-form.constant)
                case (-1, 1):
                    band[0].append(form.constant)
                case _:
                    return None
    width = {v: sympy.Max(0, end[v] - first[v]) for v in names}
    if len(names) == 1:
        return width[names[0]] if kept else sympy.Min(1, width[names[0]])
    x, y = names
    lower = sympy.Max(*band[0]) if band[0] else None
    upper = sympy.Min(*band[1]) if band[1] else None
    if kept == {x, y}:
        return _band(width[x], width[y], lower, upper, first[y] - first[x])
    if len(kept) == 1 and (lower is None or upper is None or (upper - lower).is_nonnegative):
        if kept == {y}:
            x, y = y, x
            lower, upper = (None if b is None else -b for b in (upper, lower))
        start = first[x] if lower is None else sympy.Max(first[x], first[y] + lower)
        stop = end[x] if upper is None else sympy.Min(end[x], end[y] + upper)
        return sympy.Max(0, stop - start) * sympy.Min(1, width[y])
    return None


def _facing(part: _Region, forms: Sequence[Linear]) -> list[Linear]:
    """Turn the second variable round (y -> Y-1-y) where every filter reads the sum ``x + y``."""
    x, y = part.extents
    joint = [f.coefficients for f in forms if len(f.coefficients) == 2]
    if not all(c[x] == c[y] for c in joint):
        return list(forms)
    turned = []
    for form in forms:
        factor = form.coefficients.get(y, 0)
        constant = sympy.expand(form.constant + factor * (part.extents[y] - 1))
        rest = {v: c for v, c in form.coefficients.items() if v != y}
        turned.append(Linear(rest | ({y: -factor} if factor != 0 else {}), constant))
    return turned


def _band(
    a: sympy.Expr,
    b: sympy.Expr,
    lower: sympy.Expr | None,
    upper: sympy.Expr | None,
    shift: sympy.Expr,
) -> sympy.Expr:
    """Return the number of (x, y), 0<=x<a and 0<=y<b, with lower <= x - y - shift' <= upper."""

    def triangle(n: sympy.Expr) -> sympy.Expr:
        positive = sympy.Max(0, sympy.expand(n))
        return positive * (positive + 1) / 2

    def at_most(c: sympy.Expr) -> sympy.Expr:
        return triangle(b + c) - triangle(c) - triangle(b + c - a) + triangle(c - a)

    below = at_most(lower + shift - 1) if lower is not None else sympy.Integer(0)
    within = at_most(upper + shift) if upper is not None else a * b
    count = within - below
    if lower is not None and upper is not None and not (upper - lower + 1).is_nonnegative:
        count = sympy.Max(0, count)
    return sympy.factor(count) if not count.has(sympy.Max, sympy.Min) else count


def _walk(part: _Region, kept: set[str]) -> int:
    """Count by visiting the points, a chunk at a time; one linear variable needs no visit."""
    extents = {v: int(extent) for v, extent in part.extents.items()}
    sizes = {rank: int(size) for rank, size in part.sizes.items() if size.is_Integer}
    ranged = None
    dropped = [v for v in extents if v not in kept]
    if extents and len(dropped) <= 1 and all(cull.form for cull in part.culls):
        ranged = dropped[0] if dropped else max(extents, key=lambda v: extents[v])
    walked = {v: extent for v, extent in extents.items() if v != ranged}
    if math.prod(walked.values()) > _MOST_POINTS:
        raise EinfuseError(
            f"a filter over {' x '.join(map(str, walked.values()))} points has no closed form "
            f"and is too large to count: at most {_MOST_POINTS} points"
        )
    order = sorted(walked, key=lambda v: (v not in kept, -walked[v]))  # a kept variable first
    total = 0
    for grid in _chunks({v: walked[v] for v in order}, chunked=bool(kept)):
        if ranged is not None:
            found = _ranged(part, ranged, extents[ranged], grid)
            total += int(found.sum() if ranged in kept else (found > 0).sum())
            continue
        inside = _inside(part, grid, sizes)
        axes = tuple(place for place, v in enumerate(order) if v not in kept)
        total += int(inside.any(axis=axes).sum())
    return total


def _chunks(extents: Mapping[str, int], chunked: bool) -> Iterator[dict[str, np.ndarray]]:
    if not extents:
        yield {}
        return
    first, *rest = extents
    grid = coordinates(extents)
    step = max(1, _CHUNK // math.prod(extents[v] for v in rest)) if chunked else extents[first]
    for start in range(0, extents[first], step):
        yield grid | {first: grid[first][start : start + step]}


def _inside(part: _Region, grid: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    inside = holds((c.comparison for c in part.culls if c.form is None), grid, sizes)
    for cull in part.culls:
        if cull.form is not None:
            inside = inside & (_value(cull.form, grid) <= 0)
    return inside


def _value(form: Linear, grid: Mapping[str, np.ndarray]) -> np.ndarray | int:
    return sum((int(f) * grid[v] for v, f in form.coefficients.items()), start=int(form.constant))


def _ranged(
    part: _Region, variable: str, extent: int, grid: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return at each point of the grid how many values of the variable lie between the filters."""
    shape = np.broadcast_shapes(*(axis.shape for axis in grid.values()))
    low, high = np.zeros(shape, np.int64), np.full(shape, extent - 1)
    for cull in part.culls:
        assert cull.form is not None
        factor = int(cull.form.coefficients.get(variable, 0))
        others = {v: f for v, f in cull.form.coefficients.items() if v != variable}
        rest = _value(Linear(others, cull.form.constant), grid)
        if factor > 0:
            high = np.minimum(high, -rest // factor)
        elif factor < 0:
            low = np.maximum(low, -(-rest // -factor))
        else:
            high = np.where(np.asarray(rest) <= 0, high, -1)
    return np.maximum(0, high - low + 1)


def _open_sum(part: _Region, kept: set[str]) -> sympy.Expr:
    """Return the count as a sum over the kept variables, for sizes that are still open.

    A variable that every filter reads with a factor of 1 or -1 is counted as a range; the other
    dropped ones by whether any of their points is inside.
    """
    names = {v: sympy.Symbol(v, integer=True, nonnegative=True) for v in part.extents}
    dropped = [v for v in part.extents if v not in kept]
    ranged = next((v for v in dropped or part.extents if _has_range(part, v)), None)
    if ranged is not None and len(dropped) <= 1:
        count = _symbolic_range(part, ranged, names)
        if dropped:
            count = sympy.Min(1, count)
        summed = [v for v in part.extents if v in kept and v != ranged]
    else:
        count = sympy.prod([_inside_symbolically(cull, part, names) for cull in part.culls])
        outside = 1 - count
        for v in dropped:
            outside = sympy.Product(outside, (names[v], 0, part.extents[v] - 1))
        count = 1 - outside
        summed = [v for v in part.extents if v in kept]
    for v in summed:
        count = sympy.Sum(count, (names[v], 0, part.extents[v] - 1))
    return count


def _has_range(part: _Region, variable: str) -> bool:
    return all(
        cull.form is not None and cull.form.coefficients.get(variable, 0) in (-1, 0, 1)
        for cull in part.culls
    )


def _symbolic_range(part: _Region, variable: str, names: Mapping[str, sympy.Symbol]) -> sympy.Expr:
    starts, ends = [sympy.Integer(0)], [part.extents[variable]]
    count = sympy.Integer(1)
    for cull in part.culls:
        assert cull.form is not None
        terms = [f * names[v] for v, f in cull.form.coefficients.items() if v != variable]
        rest = sum(terms, start=cull.form.constant)
        match cull.form.coefficients.get(variable, 0):
            case 1:
                ends.append(1 - rest)
            case -1:
                starts.append(rest)
            case _:
                count *= _indicator("<=", rest)
    return count * sympy.Max(0, sympy.Min(*ends) - sympy.Max(*starts))


def _inside_symbolically(
    cull: _Cull, part: _Region, names: Mapping[str, sympy.Symbol]
) -> sympy.Expr:
    if cull.form is not None:
        terms = [f * names[v] for v, f in cull.form.coefficients.items()]
        return _indicator("<=", sum(terms, start=cull.form.constant))
    sides = (cull.comparison.left, cull.comparison.right)
    left, right = (evaluate(side, names, part.sizes) for side in sides)
    return _indicator(cull.comparison.operator, left - right)


def _indicator(operator: str, difference: sympy.Expr) -> sympy.Expr:
    """Return 1 where a whole difference compares with 0 as asked, else 0."""
    match operator:
        case "<=" | "<":
            return sympy.Min(1, sympy.Max(0, int(operator == "<=") - difference))
        case ">=" | ">":
            return sympy.Min(1, sympy.Max(0, int(operator == ">=") + difference))
        case "!=":
            return sympy.Min(1, sympy.Abs(difference))
        case _:
            return 1 - sympy.Min(1, sympy.Abs(difference))

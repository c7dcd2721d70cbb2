"""The shape of a cascade: a size for every rank, from sizes for some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .affine import (
    at_most_zero,
    coordinates,
    evaluate,
    extremes,
    holds,
    interval,
    linear,
    offset,
)
from .cascade import Cascade, Split
from .equation import Einsum, Populate
from .errors import CascadeError, EinfuseError, located
from .expression import Access, Comparison, Expression, Number, Span, accesses, variables, walk
from .given_sizes import check_divides, given_sizes, shown_size
from .printer import render_index

if TYPE_CHECKING:
    import sympy

_LARGEST_GRID = 2**22  # points that a check may walk


def bind(cascade: Cascade, sizes: Mapping[str, Any], *, ragged: bool = False) -> dict[str, Any]:
    """Return the size of every rank.

    Sizes that the text fixes, ranks of one size (``rank N = M``) and splits supply what is not
    given: two of whole, outer and inner give the third. Sizes are whole numbers, or NumPy arrays
    of them that broadcast together (then without the check of the indices' ranges).

    Args:
        cascade: the cascade.
        sizes: size by rank; a rank the cascade lacks is an error.
        ragged: let an outer factor be the whole divided by the inner, rounded up: the last tile
            is then partly empty, and is counted as a whole one.

    Raises:
        EinfuseError: a size is missing, unknown, below 1, or contradicts another; CascadeError
            where an index leaves its tensor.

    >>> from einfuse.einsum.library.cascades import load
    >>> shape = bind(load("attention/1-pass"), {"E": 64, "F": 64, "P": 128, "M": 256, "M0": 32})
    >>> shape["M1"]
    8
    """
    with located(cascade):
        known = _resolve(cascade, given_sizes(cascade, sizes), ragged)
    missing = [name for name in cascade.rank_names if name not in known]
    if missing:
        raise EinfuseError(_missing(cascade, missing, known))
    shape = {name: known[name] for name in cascade.rank_names}
    if not ragged and not any(isinstance(size, np.ndarray) for size in shape.values()):
        with located(cascade):
            check_ranges(cascade, shape)
    return shape


def bind_symbolic(
    cascade: Cascade, sizes: Mapping[str, int] | None = None
) -> dict[str, sympy.Expr]:
    """Return the size of every rank, as positive whole symbols where it is open.

    The whole of an open split is the product of its factors.

    >>> from einfuse.einsum.library.cascades import load
    >>> bind_symbolic(load("attention/1-pass"), {"E": 64})["M"]
    M0*M1
    """
    import sympy

    with located(cascade):
        fixed = _resolve(cascade, given_sizes(cascade, sizes or {}), False)
    known: dict[str, Any] = {name: sympy.Integer(size) for name, size in fixed.items()}
    wholes = {split.whole for split in cascade.splits}
    roots = representatives(cascade)
    names = sorted(cascade.rank_names, key=lambda name: roots[name] in wholes)
    for name in names:  # factors first: a whole follows from them
        if name not in known and roots[name] not in wholes:
            known[name] = symbol(roots[name])
    for _ in cascade.rank_names:
        for split in cascade.splits:
            outer, inner = known.get(split.outer), known.get(split.inner)
            if outer is not None and inner is not None:
                known.setdefault(split.whole, outer * inner)
                if known[split.whole].is_Integer and not outer.is_Integer:
                    known[split.outer] = known[split.whole] / inner
        for name in names:
            if roots[name] in known:
                known.setdefault(name, known[roots[name]])
            elif name in known:
                known[roots[name]] = known[name]
    return {name: known[name] for name in cascade.rank_names}


def bind_known(
    cascade: Cascade, sizes: Mapping[str, Any] | None = None, *, ragged: bool = False
) -> dict[str, int]:
    '''Return the sizes that follow from the text, and from some that are given.

    Args:
        cascade: the cascade.
        sizes: size by rank, of some or none.
        ragged: as for `bind`.

    Raises:
        CascadeError: they contradict each other.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("""
    ... rank M = 8, M0 = 2
    ... split M -> M1, M0
    ... input A[M]
    ... Y[] = A[m]
    ... """)
    >>> bind_known(cascade)
    {'M': 8, 'M0': 2, 'M1': 4}
    '''
    return _resolve(cascade, given_sizes(cascade, sizes or {}), ragged)


def symbol(rank: str) -> sympy.Symbol:
    """Return the symbol of a rank's size, positive and whole."""
    import sympy

    return sympy.Symbol(rank, integer=True, positive=True)


def representatives(cascade: Cascade) -> dict[str, str]:
    """Return for each rank the one whose size it shares: ``rank N = M`` maps N to M.

    Raises:
        CascadeError: the ranks name each other in a circle.
    """
    alias = {rank.name: rank.size for rank in cascade.ranks if isinstance(rank.size, str)}
    found: dict[str, str] = {}
    for name in cascade.rank_names:
        root, seen = name, [name]
        while root in alias:
            root = alias[root]
            if root in seen:
                span = next(rank.span for rank in cascade.ranks if rank.name == name)
                circle = " = ".join([*seen, root])
                raise CascadeError(f"ranks take their sizes from each other: {circle}", span)
            seen.append(root)
        found[name] = root
    return found


def generations(cascade: Cascade, name: str) -> tuple[int, ...]:
    """Return how many generations beyond the rank's size each rank of a tensor has: 0 or 1.

    A tensor written at ``v+1`` or at ``0`` of an iterative rank of size N has N+1 generations.

    >>> from einfuse.einsum.library.cascades import load
    >>> generations(load("attention/1-pass"), "RNV")
    (0, 1, 0)
    """
    tensor = cascade.tensor(name)
    extra = [0] * len(tensor.ranks)
    iterative = {iteration.rank: iteration.variable for iteration in cascade.iterations}
    for einsum in cascade.producers(name):
        for output in einsum.outputs:
            if output.tensor != name:
                continue
            for place, (index, rank) in enumerate(zip(output.indices, tensor.ranks, strict=True)):
                if rank in iterative and (
                    offset(index.expression, iterative[rank]) == 1 or index.expression == Number(0)
                ):
                    extra[place] = 1
    return tuple(extra)


def tensor_shape(cascade: Cascade, name: str, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the extents of a tensor, generations counted, in the order of its ranks.

    Args:
        cascade: the cascade.
        name: a tensor of it.
        sizes: size of every rank, as from `bind` (whole numbers, arrays or symbols).

    >>> from einfuse.einsum.library.cascades import load
    >>> cascade = load("attention/1-pass")
    >>> shape = bind(cascade, {"E": 4, "F": 4, "P": 2, "M1": 3, "M0": 5})
    >>> tensor_shape(cascade, "RM", shape), tensor_shape(cascade, "LM", shape)
    ((4, 2), (3, 2))
    """
    ranks, extra = cascade.tensor(name).ranks, generations(cascade, name)
    return tuple(sizes[rank] + more for rank, more in zip(ranks, extra, strict=True))


def check_ranges(cascade: Cascade, sizes: Mapping[str, int]) -> None:
    """Raise a `CascadeError` if an index can leave its tensor at a shape.

    Filters count: ``K[e, p-w: p-w>=0]`` stays inside. Where an index or a filter depends on
    data (a gather), only the run itself can tell.
    """
    extents = {tensor.name: tensor_shape(cascade, tensor.name, sizes) for tensor in cascade.tensors}
    for einsum in cascade.einsums:
        _check_populates(cascade, einsum, sizes)
        for cull in filters(einsum):
            box = {v: sizes[cascade.rank_of(v)] for v in variables(cull)}
            for side in (cull.left, cull.right):
                if not any(accesses(side)):
                    interval(side, box, sizes)  # refuses a divisor that is no size
        for access in (*einsum.outputs, *einsum.operands):
            _check_access(cascade, einsum, access, extents[access.tensor], sizes)


def check_own_ranges(cascade: Cascade) -> None:
    """Raise a `CascadeError` if an index leaves its tensor at the sizes of the text, if all are."""
    with located(cascade):
        sizes = bind_known(cascade)
        if all(name in sizes for name in cascade.rank_names):
            check_ranges(cascade, sizes)


def filters(einsum: Einsum) -> tuple[Comparison, ...]:
    """Return all comparisons that cull the iteration space of an Einsum."""
    roots = (*einsum.outputs, einsum.expression)
    found = (node for root in roots for node in walk(root) if isinstance(node, Comparison))
    return tuple(dict.fromkeys(found))


def _resolve(cascade: Cascade, given: Mapping[str, Any], ragged: bool) -> dict[str, Any]:
    """Return all sizes that follow from the text and the given ones."""
    roots = representatives(cascade)
    known: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def learn(name: str, size: Any, why: str, span: Span | None = None) -> bool:
        root = roots.get(name, name)
        if root not in known:
            known[root], origin[root] = size, why
            return True
        if not np.all(known[root] == size):
            also = f" ({name} = {root})" if name != root else ""
            raise CascadeError(
                f"rank {root} has two sizes{also}: {shown_size(known[root])} "
                f"{origin[root]} and {shown_size(size)} {why}",
                span,
                source=cascade.source,
            )
        return False

    for rank in cascade.ranks:
        if isinstance(rank.size, int):
            learn(rank.name, rank.size, "in the text", rank.span)
    for name, size in given.items():
        learn(name, size, "as given" if name == roots[name] else f"as given for {name}")
    changed = True
    while changed:
        changed = False
        for split in cascade.splits:
            sizes = [known.get(roots[n]) for n in (split.whole, split.outer, split.inner)]
            if sum(size is not None for size in sizes) >= 2:
                changed |= _complete(split, sizes, learn, ragged)
    return {name: known[roots[name]] for name in cascade.rank_names if roots[name] in known}


def _complete(split: Split, sizes: list[Any], learn: Callable[..., bool], ragged: bool) -> bool:
    whole, outer, inner = sizes
    why = f"by the split {split.whole} -> {split.outer}, {split.inner}"
    if whole is None:
        return learn(split.whole, outer * inner, why, split.span)
    if outer is None:
        if not ragged:
            check_divides(split, whole, split.inner, inner)
        return learn(split.outer, -(-whole // inner), why, split.span)
    if inner is None:
        check_divides(split, whole, split.outer, outer)
        return learn(split.inner, whole // outer, why, split.span)
    wanted = (outer - 1) * inner < whole if ragged else whole == outer * inner
    if not np.all(np.logical_and(wanted, whole <= outer * inner)):
        raise CascadeError(
            f"the sizes of a split must multiply: {split.whole} = {shown_size(whole)}, but "
            f"{split.outer}*{split.inner} = {shown_size(outer)}*{shown_size(inner)} = "
            f"{shown_size(outer * inner)}",
            split.span,
        )
    return False


def _missing(cascade: Cascade, missing: list[str], known: Mapping[str, Any]) -> str:
    for split in cascade.splits:
        if split.whole in known and split.outer in missing and split.inner in missing:
            return (
                f"{cascade.name}: {split.whole} = {shown_size(known[split.whole])} is split into "
                f"{split.outer} and {split.inner}: give the size of one of them"
            )
    roots = representatives(cascade)
    asked = list(dict.fromkeys(roots[name] for name in missing))
    wholes = {split.whole for split in cascade.splits} & set(asked)
    asked = [name for name in asked if name not in wholes] or asked
    example = ",".join(f"{name}=..." for name in asked)
    ranks = "rank" if len(asked) == 1 else "ranks"
    return (
        f"{cascade.name}: {ranks} {', '.join(asked)} without a size: give {example} in the shape "
        "(--shape)"
    )


def _check_populates(cascade: Cascade, einsum: Einsum, sizes: Mapping[str, int]) -> None:
    for action in einsum.actions:
        if isinstance(action, Populate):
            source, target = cascade.rank_of(action.source), cascade.rank_of(action.target)
            if sizes[target] > sizes[source]:
                raise CascadeError(
                    f"{action.operator}({action.source} -> {action.target}) asks for "
                    f"{target} = {sizes[target]} of {source} = {sizes[source]}",
                    action.span,
                )


def _check_access(
    cascade: Cascade,
    einsum: Einsum,
    access: Access,
    extents: tuple[int, ...],
    sizes: Mapping[str, int],
) -> None:
    for index, extent in zip(access.indices, extents, strict=True):
        reach = _reach(cascade, einsum, index.expression, extent, sizes)
        if reach is not None and not (reach[0] >= 0 and reach[1] < extent):
            worst = reach[0] if reach[0] < 0 else reach[1]
            raise CascadeError(
                f"index {render_index(index.expression)} of {access.tensor} reaches {worst}, "
                f"outside 0..{extent - 1}",
                index.expression.span,
            )


def _reach(
    cascade: Cascade, einsum: Einsum, index: Expression, extent: int, sizes: Mapping[str, int]
) -> tuple[int, int] | None:
    """Return the least and largest value of an index where it may leave 0..extent-1.

    None where it stays inside, where no point is left, and where only data can tell.
    """
    if any(accesses(index)):
        return None
    extents = {v: sizes[cascade.rank_of(v)] for v in variables(index)}
    reach = interval(index, extents, sizes)
    if reach[0] >= 0 and reach[1] < extent:
        return None
    culls = filters(einsum)
    if any(True for cull in culls for _ in accesses(cull)):
        return None
    extents |= {v: sizes[cascade.rank_of(v)] for cull in culls for v in variables(cull)}
    form = linear(index, sizes)
    constraints = [at_most_zero(cull, sizes) for cull in culls]
    if form is not None and None not in constraints:
        return extremes(form, extents, [form for forms in constraints if forms for form in forms])
    if math.prod(extents.values()) > _LARGEST_GRID:
        return None
    grid = coordinates(extents)
    inside = holds(culls, grid, sizes)
    values = np.broadcast_to(evaluate(index, grid, sizes), inside.shape)[inside]
    return (int(values.min()), int(values.max())) if values.size else None

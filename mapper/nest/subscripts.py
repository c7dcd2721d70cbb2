"""The subscripts of an access, read from the indices of a cascade."""

from __future__ import annotations

from einfuse.einsum import (
    Access,
    Cascade,
    Coordinate,
    Expression,
    is_view,
    linear,
    put,
    render_expression,
    variables,
)

from .coordinates import Part, Subscript

_SIZES = ((2, 3, 5, 7, 11, 13, 17, 19), (23, 29, 31, 37, 41, 43, 47, 53))


def find_part(cascade: Cascade, access: Access, carried: bool) -> Part:
    """Return the subscripts of an access in the tensor behind its views.

    Args:
        cascade: the access stands in it.
        access: of a tensor or of a view.
        carried: whether an iterative rank carries the tensor on: then words are told apart by the
            rank, whatever is added to it.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank P, W\\ninput X[N], F[W]\\noutput Y\\nY[p] = X[2*p+w] * F[w]"
    >>> cascade = parse("rank N\\n" + text)
    >>> find_part(cascade, cascade.einsums[0].operands[0], False)[0].strides
    (2, 1)
    """
    tensor, indices = access.tensor, [index.expression for index in access.indices]
    while (view := _view_of(cascade, tensor)) is not None:
        made, read = view
        plain = [index.expression for index in made.indices]
        if not all(isinstance(one, Coordinate) for one in plain):
            every = {cascade.rank_of(v) for index in indices for v in variables(index)}
            return (Subscript(tuple(sorted(every)), distinct=False, first=False),)
        names = [one.variable for one in plain if isinstance(one, Coordinate)]
        values = dict(zip(names, indices, strict=True))
        tensor, indices = read.tensor, [put(index.expression, values) for index in read.indices]
    ranks = cascade.tensor(tensor).ranks
    return tuple(
        _subscript(cascade, index, rank, carried)
        for index, rank in zip(indices, ranks, strict=True)
    )


def _view_of(cascade: Cascade, tensor: str) -> tuple[Access, Access] | None:
    """The accesses on both sides of the Einsum that makes a tensor, where it is a view."""
    producers = cascade.producers(tensor)
    if len(producers) != 1 or not is_view(producers[0]):
        return None
    iterative = {iteration.variable for iteration in cascade.iterations}
    made = producers[0].output
    if any(
        set(variables(index)) & iterative and not isinstance(index.expression, Coordinate)
        for index in made.indices
    ):
        return None  # it is carried on, and starts from another
    return made, producers[0].operands[0]


def _subscript(cascade: Cascade, index: Expression, size: str, carried: bool) -> Subscript:
    names = dict.fromkeys(variables(index))
    ranks = tuple(cascade.rank_of(name) for name in names)
    iterative = {iteration.rank for iteration in cascade.iterations}
    if carried and (size in iterative or iterative & {*ranks}):
        return Subscript(ranks, size, first=bool(ranks))
    literal = {rank.name: rank.size for rank in cascade.ranks if isinstance(rank.size, int)}
    aliases = {rank.name: rank.size for rank in cascade.ranks if isinstance(rank.size, str)}
    ordered = (*cascade.rank_names, *(rank for rank in ranks if rank not in cascade.rank_names))
    forms, radix = [], True
    for primes in _SIZES:
        sizes = {r: primes[n % len(primes)] + 60 * n for n, r in enumerate(ordered)} | literal
        sizes |= {rank: sizes[same] for rank, same in aliases.items() if same in sizes}
        form = linear(index, sizes)
        if form is None:
            return Subscript(ranks, size, distinct=False, first=False)
        forms.append(form)
        radix = (
            radix
            and form.constant == 0
            and _is_mixed_radix(
                {cascade.rank_of(v): c for v, c in form.coefficients.items()}, sizes
            )
        )
    one, other = forms
    same = {v: c for v, c in one.coefficients.items() if other.coefficients.get(v) == c}
    known = all(name in same for name in names)
    constant = one.constant == other.constant
    return Subscript(
        ranks,
        size,
        distinct=radix or len(ranks) < 2,
        first=radix,
        strides=tuple(int(same[name]) for name in names) if known else None,
        offsets=(int(one.constant) if constant else 0,),
        origin="" if constant else render_expression(index),
    )


def _is_mixed_radix(strides: dict[str, int], sizes: dict[str, int]) -> bool:
    """Whether ranks count the coordinates as digits do (``m1*M0+m0``)."""
    step = 1
    for rank, stride in sorted(strides.items(), key=lambda item: abs(item[1])):
        if stride != step:
            return False
        step *= sizes[rank]
    return True

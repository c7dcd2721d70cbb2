"""A loop, written out generation by generation: `unroll`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from einfuse.einsum.language.affine import linear
from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import CascadeError, located
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Number,
    variables,
)
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.shape import bind_symbolic
from einfuse.einsum.language.substitution import plain_access, put, rebuild

from .chunks import without_chunks
from .normal_form import fresh, names_of

Key = tuple[int, ...]


def unroll(cascade: Cascade, shape: Mapping[str, int] | None = None) -> Cascade:
    """Return an equal cascade without a loop: a tensor for each generation.

    Args:
        cascade: with a loop, or without (returned as it is).
        shape: sizes of the iterative ranks, where the text leaves them open.

    Raises:
        CascadeError: an iterative rank's size is open, a ``stop`` depends on data, or a generation
            is read by another index than a generation's.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = "rank N = 2\\niter n over N\\ninput A[N]\\noutput Y\\n"
    >>> text += "init:\\nS[0] = 1\\nloop:\\nS[n+1] = S[n] * A[n]\\nfinal:\\nY[] = S[N]"
    >>> print(*map(render_einsum, unroll(parse(text)).einsums), sep="\\n")
    S_0[] = 1
    S_1[] = S_0[] * A[0]
    S_2[] = S_1[] * A[1]
    Y[] = S_2[]
    """
    if not cascade.loop:
        return cascade
    with located(cascade):
        return _Unrolling(without_chunks(cascade), shape or {}).cascade()


def without_idle_iterations(cascade: Cascade) -> Cascade:
    """Return a cascade without a loop free of its ``iter`` lines, which say nothing there.

    An iterative variable becomes that of the rank it runs over, or where both stand in one Einsum
    that of a rank of its own of the same size.
    """
    if cascade.loop or cascade.stop or not cascade.iterations:
        return cascade
    names, ranks = dict[str, str](), list(cascade.ranks)
    for iteration in cascade.iterations:
        own, plain = iteration.variable, iteration.rank.lower()
        used = [{*e.variables, *e.output_variables} for e in cascade.einsums]
        if own != plain and any({own, plain} <= found for found in used):
            ranks.append(Rank(own.upper(), iteration.rank))
        elif own != plain:
            names[own] = plain
    values: dict[str, Expression] = {v: Coordinate(plain) for v, plain in names.items()}

    def change(einsum: Einsum) -> Einsum:
        moved = tuple(put(output, values) for output in einsum.outputs)
        return replace(
            einsum,
            outputs=tuple(m for m in moved if isinstance(m, Access)),
            expression=put(einsum.expression, values),
            actions=tuple(_action(action, names) for action in einsum.actions),
        )

    einsums = tuple(map(change, cascade.init + cascade.final))
    return validated(
        replace(cascade, ranks=tuple(ranks), iterations=(), init=einsums, final=(), tensors=())
    )


class _Unrolling:
    """The loop's tensors, by generation, and the Einsums that write them."""

    def __init__(self, cascade: Cascade, shape: Mapping[str, int]) -> None:
        self.source = cascade
        sizes = bind_symbolic(cascade, shape)
        self.sizes = {rank: int(n) for rank, n in sizes.items() if n.is_Integer}
        if cascade.stop:
            raise CascadeError("a loop with a stop cannot be unrolled", cascade.stop[0].span)
        for iteration in cascade.iterations:
            if iteration.rank not in self.sizes:
                raise CascadeError(
                    f"unrolling needs the size of rank {iteration.rank}: give "
                    f"--shape {iteration.rank}=..., or 'rank {iteration.rank} = ...'",
                    iteration.span,
                )
        self.taken = names_of(cascade)
        self.axes = {
            output.tensor: axes
            for einsum in cascade.loop
            for output in einsum.outputs
            if (axes := self._generational(output))
        }
        self.names: dict[tuple[str, Key], str] = {}
        self.whole: dict[str, str] = {}

    def cascade(self) -> Cascade:
        source = self.source
        einsums = [part for e in source.init for part in self._written(e, {})]
        ranges = [range(self.sizes[iteration.rank]) for iteration in source.iterations]
        for coordinates in product(*ranges):
            fixed = {
                iteration.variable: Number(k)
                for iteration, k in zip(source.iterations, coordinates, strict=True)
            }
            einsums += [part for e in source.loop for part in self._written(e, fixed)]
        for einsum in source.final:
            einsums += self._assembled([a.tensor for a in self._free_reads(einsum)])
            einsums += self._written(einsum, {})
        outputs = [name for name in source.outputs if name in self.axes]
        for name, key in self.names:
            ranks = source.tensor(name).ranks
            extents = [self.sizes.get(ranks[axis]) for axis in self.axes[name]]
            if name in outputs and any(k == n for k, n in zip(key, extents, strict=True)):
                raise CascadeError(
                    f"output {name} has one generation more than its rank is long: unrolled, it "
                    "has no room for it; make an output of the last one alone"
                )
        einsums += self._assembled(outputs)
        return validated(
            replace(
                source,
                iterations=(),
                init=tuple(einsums),
                loop=(),
                final=(),
                tensors=(),
                text="",
                source="",
            )
        )

    def _generational(self, output: Access) -> tuple[int, ...]:
        own = {iteration.variable for iteration in self.source.iterations}
        return tuple(
            axis
            for axis, index in enumerate(output.indices)
            if own & set(variables(index.expression))
        )

    def _written(self, einsum: Einsum, fixed: Mapping[str, Number]) -> Iterator[Einsum]:
        """Yield an Einsum with iterative variables fixed, or over their ranks outside the loop."""
        values: dict[str, Expression] = dict(fixed)
        for iteration in self.source.iterations:
            plain = iteration.rank.lower()
            if iteration.variable not in fixed and iteration.variable != plain:
                values[iteration.variable] = Coordinate(plain)
        outputs = []
        for output in einsum.outputs:
            moved = put(output, values)
            assert isinstance(moved, Access)
            outputs.append(self._named(moved, write=True))
        names = {v: e.variable for v, e in values.items() if isinstance(e, Coordinate)}
        yield replace(
            einsum,
            outputs=tuple(outputs),
            expression=self._renamed(put(einsum.expression, values)),
            actions=tuple(_action(action, names) for action in einsum.actions),
        )

    def _renamed(self, node: Expression) -> Expression:
        def change(part: Expression) -> Expression | None:
            if not isinstance(part, Access):
                return None
            indices = tuple(
                Index(
                    self._renamed(i.expression),
                    tuple(
                        Comparison(self._renamed(c.left), c.operator, self._renamed(c.right))
                        for c in i.condition
                    ),
                )
                for i in part.indices
            )
            return self._named(replace(part, indices=indices), write=False)

        return rebuild(node, change)

    def _key(self, access: Access) -> Key | None:
        forms = [linear(access.indices[k].expression, self.sizes) for k in self.axes[access.tensor]]
        fixed = [form.constant for form in forms if form is not None and not form.coefficients]
        return tuple(fixed) if len(fixed) == len(forms) else None

    def _named(self, access: Access, *, write: bool) -> Access:
        """Return an access to one generation's tensor, or to the assembled one."""
        if access.tensor not in self.axes:
            return access
        key, axes = self._key(access), self.axes[access.tensor]
        if key is None:
            if access.tensor in self.whole:
                return replace(access, tensor=self.whole[access.tensor])
            raise CascadeError(
                f"{access.tensor} is read at other than one generation inside the loop: "
                "it cannot be unrolled",
                access.span,
            )
        if write:
            name = fresh("_".join([access.tensor, *map(str, key)]), self.taken)
            self.taken.add(name)
            self.names[access.tensor, key] = name
        filters = tuple(c for axis in axes for c in access.indices[axis].condition)
        indices = [i for k, i in enumerate(access.indices) if k not in axes]
        if filters and not indices:
            raise CascadeError(f"a filter on the generation of {access.tensor}", access.span)
        if filters:
            indices[0] = Index(indices[0].expression, indices[0].condition + filters)
        return Access(self.names[access.tensor, key], tuple(indices), access.span)

    def _free_reads(self, einsum: Einsum) -> list[Access]:
        return [a for a in einsum.operands if a.tensor in self.axes and self._key(a) is None]

    def _assembled(self, tensors: list[str]) -> list[Einsum]:
        """Return the Einsums that put the generations of tensors side by side."""
        einsums = []
        for name in dict.fromkeys(tensors):
            if name in self.whole:
                continue
            self.whole[name] = name
            own = tuple(rank.lower() for rank in self.source.tensor(name).ranks)
            axes = self.axes[name]
            rest = tuple(v for k, v in enumerate(own) if k not in axes)
            total: Expression | None = None
            for (tensor, key), part in self.names.items():
                if tensor != name:
                    continue
                at = tuple((Coordinate(own[a]), Number(k)) for a, k in zip(axes, key, strict=True))
                found = _only_at(plain_access(part, rest), at)
                total = found if total is None else Binary("+", total, found)
            assert total is not None
            einsums.append(Einsum((plain_access(name, own),), total))
        return einsums


def _only_at(access: Access, at: tuple[tuple[Coordinate, Number], ...]) -> Expression:
    """Return one generation where the coordinates are its own, and nothing (0) elsewhere."""
    if access.indices:
        first, *others = access.indices
        here = tuple(Comparison(left, "==", right) for left, right in at)
        return replace(access, indices=(Index(first.expression, here), *others))
    found: Expression = access
    for pair in at:
        found = Binary("*", Binary("*", found, Call("ge", pair)), Call("le", pair))
    return found


def _action(action: Reduce | Populate, names: Mapping[str, str]) -> Reduce | Populate:
    if isinstance(action, Reduce):
        return replace(action, variables=tuple(names.get(v, v) for v in action.variables))
    return replace(
        action,
        source=names.get(action.source, action.source),
        target=names.get(action.target, action.target),
    )

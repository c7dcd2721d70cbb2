"""The gradient of a cascade, as a cascade: reverse mode over Einsums.

An Einsum's adjoints follow from its own form. With ``dY`` the adjoint of what it writes, a sum of
``f(A, B)`` gives ``dA = dY * f'`` summed over what ``A`` lacks; a maximum gives equal shares to the
elements that attain it (as PyTorch's amax); an operand behind a filter gets its adjoint behind the
same filter; a view gives a view, a gather a sum over what it selected. What a cascade leaves absent
passes nothing on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from einfuse.einsum.derivation.normal_form import names_of, prune
from einfuse.einsum.derivation.unroll import unroll
from einfuse.einsum.language.cascade import Cascade, Tensor
from einfuse.einsum.language.derivative import times
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import CascadeError, EinfuseError, closest, located
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    variables,
)
from einfuse.einsum.language.functions import monoid, partials
from einfuse.einsum.language.inference import rank_of_index
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import plain_access, plain_variables

from .expressions import Names, filtered, presence, renamed, values_of
from .presence import zero_where_nothing
from .saved import check_saved, read_saved


def gradient(
    cascade: Cascade,
    with_respect_to: Sequence[str],
    shape: Mapping[str, int] | None = None,
    *,
    saved: Sequence[str] = (),
) -> Cascade:
    """Return the cascade that computes ``dQ`` for every named input ``Q``.

    Its inputs are those of the cascade and an adjoint ``dY`` for every output ``Y``; it computes
    again what it needs of the cascade itself, but for what is saved. A loop is unrolled, with all
    generations stored.

    Args:
        cascade: what is differentiated.
        with_respect_to: names of inputs.
        shape: sizes of the iterative ranks, where the text leaves them open.
        saved: tensors of the (unrolled) cascade that become inputs, if the gradient needs them.

    Raises:
        EinfuseError: no such input or tensor, or no output depends on it; CascadeError names what
            is not differentiable, and points at it.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> product = parse("rank K, M\\ninput A[K,M], B[K]\\nY[m] = A[k,m] * B[k]")
    >>> print(*map(render_einsum, gradient(product, ["A", "B"]).einsums), sep="\\n")
    dA[k,m] = dY[m] * B[k]
    dB[k] = dY[m] * A[k,m]
    """
    for name in with_respect_to:
        if name not in cascade.inputs:
            raise EinfuseError(f"{cascade.name} has no input {name}{closest(name, cascade.inputs)}")
    if not with_respect_to or len(set(with_respect_to)) < len(with_respect_to):
        raise EinfuseError("expected the names of inputs, each once, such as Q,K,V")
    cascade = unroll(cascade, shape)
    with located(cascade):
        check_saved(cascade, saved)
        found = _Reverse(cascade, tuple(with_respect_to)).cascade(tuple(saved))
        return read_saved(found, saved) if saved else found


class _Reverse:
    """The sweep over the Einsums, last first, with the contributions to each adjoint."""

    def __init__(self, cascade: Cascade, with_respect_to: tuple[str, ...]) -> None:
        self.source = cascade
        self.wanted = with_respect_to
        self.names = Names(cascade, names_of(cascade) | set(cascade.rank_names), [])
        self.ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
        self.forward = [part for e in cascade.einsums for part in self._simple(e)]
        self.active = self._active()
        self.seeds = {name: self.names.tensor(f"d{name}") for name in cascade.outputs}
        self.titles = {
            name: self.names.tensor(f"d{name}") for name in sorted(self.active - set(self.seeds))
        }
        self.adjoints: dict[str, str] = {}
        self.contributions: dict[str, list[Access]] = {
            name: [plain_access(seed, self._plain(name))] for name, seed in self.seeds.items()
        }
        self.backward: list[Einsum] = []

    def cascade(self, kept: tuple[str, ...]) -> Cascade:
        """Return the gradient, with tensors of the cascade among its outputs, last."""
        for einsum in reversed(self.forward):
            self._differentiate(einsum)
        results = [self._result(name) for name in self.wanted]
        seeds = tuple(Tensor(seed, self.ranks[name]) for name, seed in self.seeds.items())
        titles = {
            self.adjoints[name]: title
            for name, title in self.titles.items()
            if self.adjoints.get(name) not in (None, title)
        }
        result = replace(
            self.source,
            name=f"{self.source.name} gradient",
            ranks=self.source.ranks + tuple(self.names.ranks),
            input_tensors=self.source.input_tensors + seeds,
            outputs=(*(titles.get(name, name) for name in results), *kept),
            init=tuple(renamed(einsum, titles) for einsum in (*self.forward, *self.backward)),
            loop=(),
            final=(),
            tensors=(),
            output_spans=(),
            text="",
            source="",
        )
        result = zero_where_nothing(prune(result), len(results))
        read = {access.tensor for einsum in result.einsums for access in einsum.operands}
        inputs = tuple(t for t in result.input_tensors if t.name in read)
        return validated(replace(result, input_tensors=inputs))

    # The cascade, in simple steps.

    def _simple(self, einsum: Einsum) -> Iterator[Einsum]:
        """Yield Einsums with one action each; what a maximum or a populate takes has a name."""
        steps = list(einsum.actions)
        implicit = [r for r in einsum.reductions if r not in einsum.actions]
        steps = [*implicit, *steps]
        folds = [a for a in steps if not (isinstance(a, Reduce) and a.operator == "+")]
        if len(steps) < 2 and (not folds or isinstance(einsum.expression, Access)):
            yield self._with_coordinates(einsum)
            return
        expression, kept, merge = einsum.expression, list(einsum.variables), einsum.merge
        if folds and steps[0] in folds and not isinstance(expression, Access):
            steps = [Reduce("+", ()), *steps]
        for step in steps[:-1]:
            gone = step.variables if isinstance(step, Reduce) else (step.source,)
            kept = [v for v in kept if v not in gone]
            if isinstance(step, Populate):
                kept.append(step.target)
            access = plain_access(self.names.tensor(f"{einsum.name}0"), tuple(kept))
            self.ranks[access.tensor] = tuple(self.source.rank_of(v).upper() for v in kept)
            actions = () if step == Reduce("+", ()) else (step,)
            yield self._with_coordinates(Einsum((access,), expression, actions, merge, einsum.span))
            expression, merge = access, None
        yield self._with_coordinates(
            replace(einsum, expression=expression, actions=(steps[-1],), merge=merge)
        )

    def _with_coordinates(self, einsum: Einsum) -> Einsum:
        """Return a populate with its coordinates as a second output."""
        if len(einsum.outputs) > 1 or not any(isinstance(a, Populate) for a in einsum.actions):
            return einsum
        values = einsum.output
        places = replace(values, tensor=self.names.tensor(f"{values.tensor}AT"))
        return replace(einsum, outputs=(values, places))

    def _active(self) -> set[str]:
        """Return the tensors whose values depend on what is differentiated by."""
        found = set(self.wanted)
        for einsum in self.forward:
            if any(access.tensor in found for access in values_of(einsum.expression)):
                found.add(einsum.name)
        for name in self.wanted:
            reached = {name}
            for einsum in self.forward:
                if any(access.tensor in reached for access in values_of(einsum.expression)):
                    reached.add(einsum.name)
            if not reached & set(self.source.outputs):
                why = "no output depends on it"
                if self._reaches_outputs(name):
                    why = "outputs depend on it through indices, filters and selections only"
                raise EinfuseError(f"{self.source.name}: no gradient by {name}: {why}")
        return found

    def _reaches_outputs(self, name: str) -> bool:
        """Tell whether an output depends on an input in any way, indices included."""
        reached = {name}
        for einsum in self.forward:
            if any(access.tensor in reached for access in einsum.operands):
                reached |= {output.tensor for output in einsum.outputs}
        return bool(reached & set(self.source.outputs))

    def _plain(self, name: str) -> tuple[str, ...]:
        """Return a variable for each rank of a tensor."""
        used: list[str] = []
        for rank in self.ranks[name]:
            used.append(self.names.variable(rank, set(used)))
        return tuple(used)

    # Adjoints.

    def _differentiate(self, einsum: Einsum) -> None:
        if einsum.name not in self.active or not self.contributions.get(einsum.name):
            return
        adjoint = self._adjoint(einsum.name)
        seed: Expression = Access(adjoint, einsum.output.indices)
        match einsum.actions:
            case (Populate() as populate,):
                self._through_populate(einsum, populate, seed)
            case (Reduce(operator="max" | "min") as fold,):
                self._through_extreme(einsum, fold, seed)
            case () | (Reduce(operator="+"),):
                self._through_expression(einsum, seed)
            case (Reduce() as fold,):
                monoid(fold.operator)
                if fold.operator in ("any", "all"):
                    return
                raise CascadeError(
                    f"not differentiable: the reduction {fold.operator}"
                    f"({','.join(fold.variables)})",
                    fold.span,
                )

    def _through_populate(self, einsum: Einsum, populate: Populate, seed: Expression) -> None:
        """Give each value back to the coordinate it was taken from."""
        if populate.operator not in ("topk", "bottomk"):
            raise CascadeError(
                f"not differentiable: the coordinate operator {populate.operator}", populate.span
            )
        assert isinstance(einsum.expression, Access)
        place = Comparison(einsum.outputs[1], "==", Coordinate(populate.source))
        self._contribute(einsum.expression, filtered(seed, (place,)))

    def _through_extreme(self, einsum: Einsum, fold: Reduce, seed: Expression) -> None:
        element, extreme = einsum.expression, einsum.output
        assert isinstance(element, Access)
        attains = Call("ge" if fold.operator == "max" else "le", (element, extreme))
        kept = tuple(v for v in einsum.variables if v not in fold.variables)
        hits = plain_access(self.names.tensor(f"{einsum.name}W"), einsum.variables)
        count = plain_access(self.names.tensor(f"{einsum.name}N"), kept)
        self.backward.append(Einsum((hits,), attains))
        self.backward.append(Einsum((count,), hits, (Reduce("+", fold.variables),)))
        self._contribute(element, Binary("/", times(seed, hits), count))

    def _through_expression(self, einsum: Einsum, seed: Expression) -> None:
        expression = einsum.expression
        plain = not einsum.actions and not einsum.reductions
        readable = plain and plain_variables(einsum.output) is not None
        value: Expression = einsum.output if readable else expression
        if einsum.merge is not None:
            seed = times(seed, presence(expression))
        for access, pulled in self._pull(expression, value, seed):
            missing = set(einsum.variables) - set(variables(pulled)) - set(variables(access))
            if missing:  # a sum over points where other operands stand
                pulled = times(pulled, presence(expression))
            self._contribute(access, pulled)

    def _pull(
        self, node: Expression, value: Expression, seed: Expression
    ) -> Iterator[tuple[Access, Expression]]:
        """Yield what flows to each active access below a node, by the chain rule."""
        if not any(access.tensor in self.active for access in values_of(node)):
            return
        match node:
            case Access():
                yield node, seed
            case Negate(operand=operand):
                yield from self._pull(operand, operand, Negate(seed))
            case Binary(operator="+", left=left, right=right):
                yield from self._pull(left, left, seed)
                yield from self._pull(right, right, seed)
            case Binary(operator="-", left=left, right=right):
                yield from self._pull(left, left, seed)
                yield from self._pull(right, right, Negate(seed))
            case Binary(operator="*", left=left, right=right):
                yield from self._pull(left, left, times(seed, right))
                yield from self._pull(right, right, times(seed, left))
            case Binary(left=left, right=right):
                yield from self._pull(left, left, Binary("/", seed, right))
                share = Binary("/", times(seed, value), right)
                yield from self._pull(right, right, Negate(share))
            case Call(arguments=arguments):
                try:
                    found = partials(node, value)
                except EinfuseError as error:
                    raise CascadeError(str(error), node.span) from None
                for argument, partial in zip(arguments, found, strict=True):
                    if partial is not None:
                        yield from self._pull(argument, argument, times(seed, partial))
            case Number() | RankSize() | Coordinate():
                return

    def _contribute(self, access: Access, pulled: Expression) -> None:
        """Add an Einsum that sums what flows to an access into the adjoint of its tensor."""
        if access.tensor not in self.active:
            return
        conditions = tuple(c for index in access.indices for c in index.condition)
        pulled = filtered(pulled, conditions)
        bare = replace(access, indices=tuple(Index(i.expression) for i in access.indices))
        left, moved = self._left(access.tensor, bare, pulled)
        name = self.names.tensor(f"d{access.tensor}1")
        self.backward.append(Einsum((replace(left, tensor=name, span=None),), moved))
        self.contributions.setdefault(access.tensor, []).append(replace(left, tensor=name))

    def _left(self, tensor: str, bare: Access, pulled: Expression) -> tuple[Access, Expression]:
        """Return where an adjoint is written, and its value there.

        Plain indices and joined splits are written as they are read. Any other index (affine, a
        gather) is met by a filter that finds the coordinate it names.
        """
        ranks = self.ranks[tensor]
        seen: set[str] = set()
        indices: list[Index] = []
        meets: list[Comparison] = []
        used = set(variables(pulled)) | set(variables(bare))
        for index, rank in zip(bare.indices, ranks, strict=True):
            own = set(variables(index))
            if not (own & seen) and self._writes_along(index.expression, rank):
                seen |= own
                indices.append(index)
                continue
            variable = self.names.variable(rank, used | seen)
            seen.add(variable)
            meets.append(Comparison(index.expression, "==", Coordinate(variable)))
            indices.append(Index(Coordinate(variable)))
        if not meets:
            return replace(bare, indices=tuple(indices)), pulled
        inner = tuple(dict.fromkeys((*variables(pulled), *variables(bare))))
        held = plain_access(self.names.tensor(f"d{tensor}AT"), inner)
        self.backward.append(Einsum((held,), pulled))
        return replace(bare, indices=tuple(indices)), filtered(held, tuple(meets))

    def _writes_along(self, index: Expression, rank: str) -> bool:
        """Tell whether a left-hand index reaches each coordinate of a rank once."""
        if isinstance(index, Coordinate):
            return True
        parts = {(s.outer.lower(), s.inner.lower()): s for s in self.source.splits}
        match index:
            case Binary("+", Binary("*", Coordinate(outer), RankSize(size)), Coordinate(inner)) if (
                outer,
                inner,
            ) in parts and parts[outer, inner].inner == size:
                return rank_of_index(self.source, index) == rank
            case _:
                return False

    def _adjoint(self, name: str) -> str:
        """Return the tensor that holds the whole adjoint of a tensor, its ranks in their order."""
        if name in self.adjoints:
            return self.adjoints[name]
        parts = self.contributions[name]
        if len(parts) == 1 and (name in self.seeds or self._has_ranks(parts[0], name)):
            self.adjoints[name] = parts[0].tensor
            return parts[0].tensor
        own = self._plain(name)
        total: Expression = plain_access(parts[0].tensor, own)
        for part in parts[1:]:
            total = Binary("+", total, plain_access(part.tensor, own))
        self.adjoints[name] = self.titles.get(name) or self.names.tensor(f"d{name}")
        self.backward.append(Einsum((plain_access(self.adjoints[name], own),), total))
        return self.adjoints[name]

    def _has_ranks(self, part: Access, name: str) -> bool:
        found = [rank_of_index(self.source, i.expression) for i in part.indices]
        return tuple(found) == self.ranks[name]

    def _result(self, name: str) -> str:
        """Return the tensor of a gradient that is asked for, 0 if nothing reaches it."""
        if not self.contributions.get(name):
            zero = plain_access(self.titles[name], self._plain(name))
            self.backward.append(Einsum((zero,), Number(0)))
            return zero.tensor
        return self._adjoint(name)

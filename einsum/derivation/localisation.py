"""References of each tile in the place of global ones, corrected when the tiles are merged."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import Access, Expression, Number, RankSize, variables
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import (
    plain_access,
    plain_variables,
    put,
    rebuild,
    replace_accesses,
)

from .correction import Corrector, place_of, without_variable
from .dataflow import Dataflow, Kind, operator_of, reduced_variables
from .movement import Move, Rewritten, move_along, move_of
from .normal_form import NotDerivableError, prune


def localise(flow: Dataflow) -> Rewritten:
    """Return the cascade with references of each tile in the place of global ones.

    A fold that only needs such references is folded per tile and corrected when the tiles are
    merged (split-K); a map whose other readers need more is corrected element by element (the
    local maximum of the two-pass softmax).

    Raises:
        NotDerivableError: nothing can be localised; the text says why.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> from einfuse.einsum.derivation.tiling import tile
    >>> tiled = tile(load("attention/3-pass"), "m", "M1", "M0", None)
    >>> local = localise(Dataflow(tiled, "m1")).cascade
    >>> print(*map(render_einsum, local.init[-3:]), sep="\\n")
    SD[p] = LSD[m1,p] * C[m1,p] :: +(m1)
    A[m1,m0,p] = LSN[m1,m0,p] * C[m1,p] / SD[p]
    AV[f,p] = A[m1,m0,p] * BV[f,m1,m0]
    """
    return _Localisation(flow).rewritten()


class _Localisation:
    """The state of one `localise`."""

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.variable = flow.variable
        self.body: list[Einsum] = []
        self.local: dict[str, Access] = {}
        self.corrector = Corrector(
            flow, self._here, lambda access: access, self.body, from_start=False
        )
        self.maps: dict[str, tuple[Access, Move]] = {}
        self.merged: set[str] = set()

    def rewritten(self) -> Rewritten:
        reasons: list[str] = []
        moves: dict[str, Move] = {}
        for fold in self.flow.folds:
            try:
                moves[fold.name] = move_of(self.flow, fold)
            except NotDerivableError as error:
                reasons.append(str(error))
        wanted = {a.tensor for m in moves.values() for a in m.references}
        self._localisable(wanted)
        if not self.local:
            raise NotDerivableError("; ".join(reasons) or "no reference has a value of each tile")
        changed = [e.name for e in self.flow.einsums if self._emit(e, moves)]
        if not changed:
            raise NotDerivableError("; ".join(reasons) or "no fold can use references of a tile")
        cascade = validated(prune(replace(self.flow.cascade, init=tuple(self.body))))
        rescaled = [move for _, move in self.maps.values()]
        return Rewritten(cascade, (*(moves[n] for n in changed if n in self.merged), *rescaled))

    def _localisable(self, wanted: set[str]) -> None:
        """Choose the folds of independent elements, and maps of them, that get tile values."""
        flow = self.flow
        for einsum in flow.einsums:
            kind = flow.kinds[einsum.name]
            if not flow.is_reference(einsum.name):
                continue
            if kind is Kind.FOLD:
                if flow.waits_for[einsum.name] or len(einsum.reductions) != 1:
                    continue
                inner = tuple(v for v in reduced_variables(einsum) if v != self.variable)
                if not inner and isinstance(einsum.expression, Access):
                    self.local[einsum.name] = einsum.expression
                    continue
            elif not all(
                o.tensor in self.local for o in einsum.operands if flow.is_reference(o.tensor)
            ):
                continue
            indices = self._indices(einsum)
            name = self.corrector.name(f"L{einsum.name}")
            self.local[einsum.name] = plain_access(name, indices)

    def _indices(self, einsum: Einsum) -> tuple[str, ...]:
        kept = list(plain_variables(einsum.output) or ())
        kept.insert(min(place_of(einsum, self.variable, self.flow), len(kept)), self.variable)
        return tuple(kept)

    def _here(self, access: Access) -> Access:
        """Return the value of this tile for a reference."""
        local = self.local[access.tensor]
        own = plain_variables(self.flow.producer[access.tensor].output) or ()
        values = dict(zip(own, (index.expression for index in access.indices), strict=True))
        return cast(Access, put(local, values))

    def _emit(self, einsum: Einsum, moves: dict[str, Move]) -> bool:
        flow, kind, name = self.flow, self.flow.kinds[einsum.name], einsum.name
        if name in self.local:
            self._emit_local(einsum)
            return False
        move = moves.get(name)
        if move and move.references and all(a.tensor in self.local for a in move.references):
            self._emit_merged(move)
            self.merged.add(name)
            return True
        if kind is Kind.MAP and flow.dependent(name):
            self._emit_map(einsum)
        expression = replace_accesses(einsum.expression, self._rescaled)
        self.body.append(replace(einsum, expression=expression, span=None))
        return expression != einsum.expression

    def _emit_local(self, einsum: Einsum) -> None:
        local = self.local[einsum.name]
        if self.flow.kinds[einsum.name] is Kind.FREE:
            expression = replace_accesses(
                einsum.expression,
                lambda access: self._here(access) if access.tensor in self.local else None,
            )
            expression = rebuild(expression, self._size_of_tile)
            self.body += [einsum, Einsum((local,), expression, einsum.actions, einsum.merge)]
            return
        if local == einsum.expression:
            self.body.append(einsum)
            return
        operator = operator_of(einsum)
        self.body.append(
            Einsum(
                (local,), einsum.expression, without_variable(einsum, self.variable), einsum.merge
            )
        )
        self.body.append(Einsum(einsum.outputs, local, (Reduce(operator, (self.variable,)),)))

    def _size_of_tile(self, node: Expression) -> Expression | None:
        if not isinstance(node, RankSize):
            return None
        outer = self.flow.cascade.rank_of(self.variable)
        if node.rank == outer:
            return Number(1)
        split = next((s for s in self.flow.cascade.splits if s.outer == outer), None)
        return RankSize(split.inner) if split and node.rank == split.whole else None

    def _emit_merged(self, move: Move) -> None:
        """Emit the folds of one tile at its own references, and their corrected merge."""
        fold = move.fold
        indices = self._indices(fold)
        states = {}
        for number, function in enumerate(move.orbit.functions):
            if number in move.counted:
                continue
            base = fold.name if number == 0 else f"{fold.name}{number}"
            if number == 0:
                expression = self._at_tile(fold.expression)
            else:
                expression = self.corrector.formula(move, function.formula)
            expression = self._guarded(fold, expression)
            states[number] = plain_access(self.corrector.name(f"L{base}"), indices)
            actions = without_variable(fold, self.variable)
            self.body.append(Einsum((states[number],), expression, actions))
        inner = next(
            (s.inner for s in self.flow.cascade.splits if s.outer == self.variable.upper()), None
        )
        count = Number(1) if inner is None else RankSize(inner)
        moved = self.corrector.moved(move, 0, states.__getitem__, count, indices)
        merge = "left" if move.orbit.shift != 0 else None
        merged = (Reduce(move.operator, (self.variable,)),)
        self.body.append(Einsum(fold.outputs, moved, merged, merge))

    def _at_tile(self, expression: Expression) -> Expression:
        local = replace_accesses(
            expression,
            lambda access: self._here(access) if access.tensor in self.local else None,
        )
        return self.corrector.rename(local)

    def _emit_map(self, einsum: Einsum) -> None:
        """Emit a map at the references of its tile, for it to be rescaled where it is read."""
        references = self.flow.references(self.flow.cone(einsum))
        blocked = self.flow.blocking_maps(self.flow.cone(einsum))
        if blocked or einsum.reductions or not all(a.tensor in self.local for a in references):
            return
        own = plain_variables(einsum.output)
        if own is None:
            return
        local = Access(self.corrector.name(f"L{einsum.name}"), einsum.output.indices)
        expression = self._guarded(einsum, self._at_tile(einsum.expression))
        self.body.append(Einsum((local,), expression, (), einsum.merge))
        self.corrector.renamed[einsum.name] = local.tensor
        varying = {v for a in references for v in variables(a)}
        try:
            move = move_along(self.flow, einsum, tuple(v for v in own if v not in varying), "+")
        except NotDerivableError:
            return
        if len(move.orbit.functions) == 1:
            self.maps[einsum.name] = local, move

    def _guarded(self, einsum: Einsum, expression: Expression) -> Expression:
        sources = [o.tensor for o in einsum.operands if self.flow.is_reference(o.tensor)]
        return self.corrector.guarded(expression, sources, self._here)

    def _rescaled(self, access: Access) -> Expression | None:
        if access.tensor not in self.maps:
            return None
        local, move = self.maps[access.tensor]
        own = plain_variables(local) or ()
        whole = self.corrector.moved(move, 0, lambda _: local, Number(1), own)
        values = dict(zip(own, (index.expression for index in access.indices), strict=True))
        return put(whole, values)

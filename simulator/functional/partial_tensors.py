"""Tensors as tasks fill them: numbers, and of each element how much of it is made.

An element is *made* when every point that folds into it has been worked on. A read of one that is
not is an illegal mapping. Einsums of several actions (a sum, then a maximum) go in steps, a tensor
of their own between them; a step runs where what it folds is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import (
    Access,
    Arithmetic,
    Binary,
    Cascade,
    Coordinate,
    Einsum,
    Expression,
    Index,
    Number,
    Operand,
    Populate,
    Reduce,
    Space,
    Target,
    Value,
    backend_of,
    evaluate,
    is_constant,
    is_view,
    make_plan,
    monoid,
    ordered_actions,
    plain_access,
    put,
    put_in_condition,
    read_number,
    tensor_shape,
    whole_numbers,
)
from einfuse.mapper import MappingError

Box = Mapping[str, tuple[int, int]]
"""Of each rank variable, the first coordinate and the one after the last."""

_Places = tuple[slice | NDArray[np.int64], ...]


@dataclass(slots=True)
class Carried:
    """A tensor: its numbers, where they are present, and which are made.

    ``due`` is how many points fold into each element, ``done`` how many have; ``full`` says that
    none is absent, and ``version`` counts how often it was written.
    """

    data: NDArray[np.float64]
    present: NDArray[np.bool_]
    due: NDArray[np.int64]
    done: NDArray[np.int64]
    made: NDArray[np.bool_]
    empty: float = 0.0
    full: bool = True
    version: int = 0

    def write(
        self,
        places: _Places,
        data: NDArray[Any],
        present: NDArray[np.bool_],
        points: int | NDArray[np.int64],
    ) -> None:
        """Put numbers where so many points more have folded into them."""
        self.data[places], self.present[places] = data, present
        if not (self.full and present.all()):
            self.full = bool(self.present.all())
        _add(self.done, places, points)
        done, due = self.done[places], self.due[places]
        self.made[places] = (done >= due) & (due > 0)
        self.version += 1

    def as_value(self) -> Value:
        """The numbers, as the evaluation of an Einsum reads them."""
        return Value(self.data, None if self.full else self.present, self.empty, clean=self.full)


def _blank(shape: Sequence[int]) -> Carried:
    return Carried(
        np.zeros(shape),
        np.ones(shape, bool),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, bool),
    )


def _add(array: NDArray[np.int64], places: _Places, points: int | NDArray[np.int64]) -> None:
    numbers = tuple(place for place in places if not isinstance(place, slice))
    if not numbers:
        array[places] += points
    else:
        np.add.at(array, numbers, points)  # places may come more than once


def _given(array: NDArray[Any]) -> Carried:
    ones, all_of_it = np.ones(array.shape, np.int64), np.ones(array.shape, bool)
    return Carried(np.asarray(array), all_of_it, ones, ones, all_of_it)


class Tensors:
    """The tensors of one run of a cascade, and the Einsums that fill them region by region."""

    def __init__(
        self, cascade: Cascade, inputs: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]
    ) -> None:
        if cascade.stop:
            raise MappingError(f"{cascade.name}: a loop that may stop early has no fixed tasks")
        self.cascade, self.sizes = cascade, sizes
        self.backend = backend_of("numpy", inputs)
        self.arithmetic = Arithmetic(self.backend, np.float64)
        self.iterative = {i.variable for i in cascade.iterations}
        self.tensors = {
            t.name: _blank(tensor_shape(cascade, t.name, sizes)) for t in cascade.tensors
        }
        self.tensors |= {name: _given(array) for name, array in inputs.items()}
        made = [e.name for e in cascade.einsums]
        self.views = {e.name: e for e in cascade.einsums if is_view(e) and made.count(e.name) == 1}
        self.viewed: dict[str, Carried] = {}
        self.copies = [e for e in cascade.einsums if is_view(e) and e.name not in self.views]
        self.copying: set[int] = set()
        self.copied: dict[int, int] = {}  # copy -> the versions of what it reads, summed
        self.steps: dict[str, tuple[Einsum, ...]] = {}
        self.worked: dict[str, NDArray[np.bool_]] = {}
        in_loop = {id(einsum) for einsum in cascade.loop}
        self.looped = {e.name for e in cascade.einsums if id(e) in in_loop}
        for einsum in cascade.einsums:
            if is_view(einsum):
                if einsum.name not in self.views:
                    self._declare(einsum)
                continue
            if is_constant(einsum.expression):
                self._declare(einsum)
                self._step(einsum, self._whole(einsum), {})
                continue
            steps = self.steps[einsum.name] = self._split(einsum)
            extents = [end for _, end in self._whole(einsum).values()]
            self.worked[einsum.name] = np.zeros(extents, bool)
            for step in steps:
                self._declare(step)

    def run(self, name: str, region: Mapping[str, tuple[int, int]]) -> str | None:
        """Work on an Einsum in a region of ranks.

        Returns:
            None, or the tensor that it reads before it is made.
        """
        einsum = self.steps[name][0]
        box = {v: region[self.cascade.rank_of(v)] for v in self._whole(einsum)}
        ahead = self._reads_ahead(einsum, box)
        if ahead is not None:
            return ahead
        spans = tuple(slice(*span) for span in box.values())
        here = self.worked[name][spans]
        if here.all():
            return None  # worked on before: what is computed again is the same
        if here.any():
            raise MappingError(f"{name} comes to a region of which it has worked on a part")
        self.worked[name][spans] = True
        fixed_names = self.iterative & set(box) if name in self.looped else set()
        order = sorted(fixed_names)
        for at in np.ndindex(*(box[v][1] - box[v][0] for v in order)):
            fixed = {v: box[v][0] + k for v, k in zip(order, at, strict=True)}
            for number, step in enumerate(self.steps[name]):
                own = {**box, **{v: (k, k + 1) for v, k in fixed.items()}}
                reach = {v: own.get(v, span) for v, span in self._whole(step).items()}
                for action in step.actions:
                    if isinstance(action, Populate):  # it chooses among all
                        reach[action.source] = self._whole(step)[action.source]
                through = self.worked[name][tuple(slice(*{**own, **reach}[v]) for v in box)]
                if not through.all() or (number and self._reads_ahead(step, reach) is not None):
                    break
                self._step(step, reach, fixed)
        return None

    def made(self, name: str) -> bool:
        """Whether a tensor is made wholly."""
        return bool(self._tensor(name).made.all())

    def array(self, name: str) -> NDArray[np.float64]:
        """The numbers of a tensor, absent ones as `run.run` returns them."""
        tensor = self._tensor(name)
        return np.where(tensor.present, tensor.data, tensor.empty)

    # Einsums.

    def _split(self, einsum: Einsum) -> tuple[Einsum, ...]:
        """The steps of an Einsum: an action each."""
        actions = ordered_actions(einsum)
        steps: list[Einsum] = []
        expression, merge = einsum.expression, einsum.merge
        for number, action in enumerate(actions[:-1]):
            if isinstance(action, Populate):
                raise MappingError(
                    f"{einsum.name}: {action.operator} with further actions behind it has no tiles"
                )
            gone = {v for done in actions[: number + 1] for v in getattr(done, "variables", ())}
            kept = tuple(v for v in einsum.variables if v not in gone)
            between = plain_access(f"{einsum.name} after {action.operator}", kept)
            self.tensors[between.tensor] = _blank(
                [self.sizes[self.cascade.rank_of(v)] for v in kept]
            )
            steps.append(Einsum((between,), expression, (action,), merge))
            if einsum.name in self.looped:
                self.looped.add(between.tensor)
            expression, merge = between, None
        return (*steps, replace(einsum, expression=expression, actions=actions[-1:], merge=merge))

    def _whole(self, einsum: Einsum) -> dict[str, tuple[int, int]]:
        return {v: (0, self.sizes[self.cascade.rank_of(v)]) for v in einsum.variables}

    def _written(self, einsum: Einsum, box: Box) -> tuple[tuple[str, ...], list[int], int]:
        """The variables on the left with their extents, and the points that fold into each."""
        targets = {
            a.target: self.sizes[self.cascade.rank_of(a.target)]
            for a in einsum.actions
            if isinstance(a, Populate)
        }
        variables = einsum.output_variables
        extents = [targets[v] if v in targets else box[v][1] - box[v][0] for v in variables]
        sources = {a.source for a in einsum.actions if isinstance(a, Populate)}
        folded = [v for v in box if v not in variables and v not in sources]
        return variables, extents, int(np.prod([box[v][1] - box[v][0] for v in folded], dtype=int))

    def _places(self, output: Access, variables: Sequence[str], extents: Sequence[int], box: Box
    ) -> _Places:  # fmt: skip
        """The coordinates that an output writes, over the variables on the left."""
        if tuple(index.expression for index in output.indices) == tuple(map(Coordinate, variables)):
            starts = [box[v][0] if v in box else 0 for v in variables]
            return tuple(slice(k, k + n) for k, n in zip(starts, extents, strict=True))
        space = Space(tuple(variables), tuple(extents), {}, self.sizes)
        shift = _shifts({v: box[v] for v in variables if v in box})

        def refuse(access: Access) -> Any:
            raise MappingError(f"{output.tensor} is written where {access.tensor} says, at no tile")

        return tuple(
            np.broadcast_to(
                whole_numbers(put(index.expression, shift), space, self.backend, refuse)[0],
                tuple(extents),
            )
            for index in output.indices
        )

    def _declare(self, einsum: Einsum) -> None:
        box = self._whole(einsum)
        variables, extents, points = self._written(einsum, box)
        for output in einsum.outputs:
            places = self._places(output, variables, extents, box)
            _add(self.tensors[output.tensor].due, places, points)

    def _step(self, einsum: Einsum, box: Box, fixed: Mapping[str, int]) -> None:
        """Evaluate an Einsum in a box, and fold what it gives into its tensors."""
        variables, extents, points = self._written(einsum, box)
        free = [v for v in variables if v not in fixed]
        plain = plain_access("out", tuple(free))
        shifted = _shifted(einsum, {v: s for v, s in box.items() if v not in fixed}, plain)
        plan = make_plan(shifted, fixed, self.sizes, self.cascade.rank_of)
        plan = replace(plan, extents=tuple(box[v][1] - box[v][0] for v in plan.variables))
        spans = tuple(n for v, n in zip(variables, extents, strict=True) if v not in fixed)
        target = Target(plain.indices, spans)
        values = evaluate(plan, fixed, [target] * len(einsum.outputs), self.arithmetic, self._fetch)
        last = einsum.actions[-1] if einsum.actions else None
        for output, value in zip(einsum.outputs, values, strict=False):
            tensor = self.tensors[output.tensor]
            places = self._places(output, variables, extents, box)
            data = np.broadcast_to(np.asarray(value.data, float), spans).reshape(extents)
            present = np.broadcast_to(
                True if value.present is None else np.asarray(value.present), spans
            ).reshape(extents)
            begun = tensor.done[places] > 0
            if isinstance(last, Reduce) and begun.any():
                before, there = tensor.data[places], tensor.present[places] & begun
                both = np.asarray(monoid(last.operator).combine(before, data))
                data = np.where(there & present, both, np.where(present, data, before))
                present = there | present
            tensor.write(places, data, present, points)
            tensor.empty = value.empty

    # Reads.

    def _tensor(self, name: str) -> Carried:
        """A tensor; a view is worked out from the one behind it.

        A part of a tensor that is a copy of another, such as its first generation, comes as soon
        as that is made.
        """
        view = self.views.get(name)
        if view is None:
            for number, copy in enumerate(self.copies):
                if copy.name == name:
                    while self._copies_more(number, copy):
                        pass
            return self.tensors[name]
        source = self._tensor(view.operands[0].tensor)
        if name not in self.viewed or self.viewed[name].version != source.version:
            self.viewed[name] = self._view(view, source)
        return self.viewed[name]

    def _copies_more(self, number: int, copy: Einsum) -> bool:
        """Copy what is made by now; whether there was any."""
        if number in self.copying:  # it reads an earlier part of its own tensor
            return False
        self.copying.add(number)
        versions = sum(self._tensor(access.tensor).version for access in copy.operands)
        new = self.copied.get(number) != versions and self._copy(copy)
        self.copied[number] = versions
        self.copying.remove(number)
        return new

    def _copy(self, copy: Einsum) -> bool:
        box, target = self._whole(copy), self.tensors[copy.name]
        variables, extents, _ = self._written(copy, box)
        places = self._places(copy.output, variables, extents, box)
        space = Space(tuple(variables), tuple(extents), {}, self.sizes)
        access = copy.operands[0]
        source = self._tensor(access.tensor)
        new = ~target.made[places]
        for operand in copy.operands:
            new = new & (self._read(operand, space, self._tensor(operand.tensor).made) > 0)
        if not new.any():
            return False
        there = self._inside(access, space)
        data = np.where(there, self._read(access, space, source.data), source.empty)
        present = there & (self._read(access, space, source.present) > 0)
        target.write(
            places,
            np.where(new, data, target.data[places]),
            np.where(new, present, target.present[places]),
            new * 1,
        )
        target.empty = source.empty
        return True

    def _view(self, view: Einsum, source: Carried) -> Carried:
        box, name = self._whole(view), view.name
        found = _blank(tensor_shape(self.cascade, name, self.sizes))
        variables, extents, _ = self._written(view, box)
        places = self._places(view.output, variables, extents, box)
        space = Space(tuple(variables), tuple(extents), {}, self.sizes)
        access = view.operands[0]
        there = self._inside(access, space)
        found.data[places] = np.where(there, self._read(access, space, source.data), source.empty)
        found.present[places] = there & (self._read(access, space, source.present) > 0)
        found.made[places] = self._read(access, space, source.made) > 0
        found.empty, found.full = source.empty, bool(found.present.all())
        found.version = source.version
        return found

    def _read(self, access: Access, space: Space, array: NDArray[Any]) -> NDArray[Any]:
        """An array as an access reads it over a space, 1 where its filters leave it out."""
        data, present = self._look(access, space, array)
        seen = np.asarray(data) if present is None else np.where(present, data, 1)
        return np.broadcast_to(seen, space.extents)

    def _inside(self, access: Access, space: Space) -> NDArray[np.bool_]:
        """Where over a space the filters of an access let it read."""
        _, present = self._look(access, space, np.ones(self._tensor(access.tensor).data.shape))
        return np.broadcast_to(True if present is None else np.asarray(present), space.extents)

    def _look(self, access: Access, space: Space, array: NDArray[Any]) -> tuple[Any, Any]:
        def fetch(asked: Access, space: Space) -> Operand:
            if asked is access:
                return Operand(Value(array), access.indices, array.shape, last=False)
            return self._fetch(asked, space)

        return read_number(access, space, self.arithmetic, fetch)

    def _fetch(self, access: Access, space: Space) -> Operand:
        tensor = self._tensor(access.tensor)
        return Operand(tensor.as_value(), access.indices, tensor.data.shape, last=False)

    def _reads_ahead(self, einsum: Einsum, box: Box) -> str | None:
        """The tensor of which an Einsum reads in a box what is not made, None if there is none."""
        shifted = _shifted(einsum, box, einsum.output)
        variables = tuple(box)
        space = Space(variables, tuple(end - first for first, end in box.values()), {}, self.sizes)
        for access in shifted.operands:
            if self._read(access, space, self._tensor(access.tensor).made).min() < 1:
                return access.tensor
        return None


def _shifts(box: Box) -> dict[str, Expression]:
    return {
        variable: Binary("+", Coordinate(variable), Number(first))
        for variable, (first, _) in box.items()
        if first
    }


def _shifted(einsum: Einsum, box: Box, output: Access) -> Einsum:
    """The Einsum with variables that count from the start of a box, writing another output.

    Filters on what it writes go with the output's own indices.
    """
    shifts = _shifts(box)
    filters = tuple(c for out in einsum.outputs for index in out.indices for c in index.condition)
    if filters and output.indices and output is not einsum.output:
        first, *rest = output.indices
        output = replace(
            output,
            indices=(Index(first.expression, put_in_condition(filters, shifts)), *rest),
        )
    return replace(
        einsum,
        outputs=(output,) * len(einsum.outputs),
        expression=put(einsum.expression, shifts),
    )

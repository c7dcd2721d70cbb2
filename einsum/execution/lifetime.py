"""When a tensor is read for the last time: what may be dropped, and overwritten."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.expression import Access, Comparison, accesses, variables
from einfuse.einsum.language.shape import tensor_shape

from .reading import Space, linear_form


@dataclass(frozen=True, slots=True)
class Step:
    """An Einsum in its section, ``init``, ``loop`` or ``final``; or the condition to ``stop``."""

    section: str
    place: int


@dataclass(frozen=True, slots=True)
class _Read:
    """A generation read in the loop: at which step, and how far from the current one."""

    place: int
    offset: int


class Lifetimes:
    """The last readers of a cascade's tensors, generation by generation.

    A tensor that the loop writes at an iterative variable is *generational*: it is kept as one
    value per generation. A generation can go when no later one reads it by an offset
    (``RM[m1+1,p]``), and nothing reads it by number (``RM[M1,p]``) or reads the whole tensor.
    A *chunked* tensor grows by a chunk per generation.
    """

    def __init__(self, cascade: Cascade, sizes: Mapping[str, int], wanted: Sequence[str]) -> None:
        self._cascade, self._sizes = cascade, sizes
        self._wanted = frozenset(wanted)
        self._iterative = tuple(i.variable for i in cascade.iterations)
        self.generational: dict[str, tuple[int, ...]] = {}
        self.chunked: set[str] = set()
        self._written_offset: dict[str, int] = {}
        self._find_generational()
        self._last: dict[str, Step] = {}
        self._offsets: dict[str, list[_Read]] = {}
        self._numbered: dict[str, set[tuple[int, ...]]] = {}
        self._kept_whole: set[str] = set(wanted)
        self.ends_with_loop: set[str] = set()
        reads = _reads(cascade)
        for step, access in reads:
            self._note(step, access)
        self._extend_over_loop(reads)
        self.stop_reads_generation = any(
            self._is_of_generation(access)
            for comparison in cascade.stop
            for access in accesses(comparison)
        )

    def is_read(self, name: str) -> bool:
        """Tell whether anybody reads or wants a tensor."""
        return name in self._wanted or name in self._last or name in self.ends_with_loop

    def reads_last(self, name: str, step: Step) -> bool:
        """Tell whether a step is the last to read a tensor without generations."""
        return name not in self._wanted and self._last.get(name) == step

    def reads_slot_last(
        self, name: str, step: Step, slot: tuple[int, ...], fixed: Mapping[str, int]
    ) -> bool:
        """Tell whether a step of the loop is the last to read a generation."""
        if not self.ends_in_generation(name, step) or slot in self._numbered.get(name, ()):
            return False
        least = min(read.offset for read in self._offsets[name])
        return slot[0] - fixed[self._iterative[0]] == least

    def ends_in_generation(self, name: str, step: Step) -> bool:
        """Tell whether a step of the loop reads some generation of a tensor for the last time."""
        reads = self._offsets.get(name)
        if step.section != "loop" or not reads or self.keeps_all(name):
            return False
        least = min(read.offset for read in reads)
        if least >= self._written_offset[name] and self._numbered.get(name):
            return False  # it may be the last there is, which somebody reads by its number
        return step.place == max(read.place for read in reads if read.offset == least)

    def keeps_all(self, name: str) -> bool:
        """Tell whether every generation of a tensor is kept to the end."""
        return name in self._kept_whole or len(self._iterative) != 1

    def final_slot(self, name: str) -> tuple[int, ...]:
        """Return the last generation that a tensor has room for."""
        extents = tensor_shape(self._cascade, name, self._sizes)
        return tuple(extents[axis] - 1 for axis in self.generational[name])

    def drop_generations(
        self, slots: MutableMapping[str, dict[tuple[int, ...], Any]], fixed: Mapping[str, int]
    ) -> None:
        """Drop the generations that nothing will read after the current one."""
        if len(self._iterative) != 1:
            return
        current = fixed[self._iterative[0]]
        for name, found in slots.items():
            if name in self._kept_whole:
                continue
            reads = self._offsets.get(name, ())
            numbered = self._numbered.get(name, set())
            next_read = current + 1 + min((read.offset for read in reads), default=0)
            latest = max(found, default=()) if numbered else ()
            for slot in [s for s in found if s not in numbered and s != latest]:
                if slot[0] < next_read or not reads:
                    del found[slot]

    def _find_generational(self) -> None:
        for einsum in self._cascade.loop:
            for output in einsum.outputs:
                axes, offset = [], 0
                for axis, index in enumerate(output.indices):
                    if not set(variables(index.expression)) & set(self._iterative):
                        continue
                    found = self._offset(index.expression)
                    if found is None:
                        self.chunked.add(output.tensor)
                    else:
                        axes.append(axis)
                        offset = found
                if axes:
                    self.generational[output.tensor] = tuple(axes)
                    self._written_offset[output.tensor] = max(
                        offset, self._written_offset.get(output.tensor, offset)
                    )

    def _offset(self, expression: Any) -> int | None:
        """Return c where an index is an iterative variable plus c, None otherwise."""
        form = linear_form(expression, Space(self._iterative, (), {}, self._sizes))
        if form is None or len(form.coefficients) != 1:
            return None
        ((variable, step),) = form.coefficients.items()
        return form.constant if step == 1 and variable in self._iterative else None

    def _is_of_generation(self, access: Access) -> bool:
        """Tell whether an access reads what the current generation writes."""
        written = {o.tensor for einsum in self._cascade.loop for o in einsum.outputs}
        if access.tensor not in self.generational:
            return access.tensor in written
        axis = self.generational[access.tensor][0]
        offset = self._offset(access.indices[axis].expression)
        return offset is None or offset >= self._written_offset[access.tensor]

    def _note(self, step: Step, access: Access) -> None:
        name = access.tensor
        self._last[name] = step
        if name not in self.generational:
            return
        axes = self.generational[name]
        space = Space((), (), {}, self._sizes)
        forms = [linear_form(access.indices[axis].expression, space) for axis in axes]
        if all(form is not None and not form.coefficients for form in forms):
            key = tuple(form.constant for form in forms if form is not None)
            self._numbered.setdefault(name, set()).add(key)
        elif (
            step.section in ("loop", "stop")
            and len(axes) == 1
            and (offset := self._offset(access.indices[axes[0]].expression)) is not None
        ):
            place = step.place if step.section == "loop" else len(self._cascade.loop)
            self._offsets.setdefault(name, []).append(_Read(place, offset))
        else:
            self._kept_whole.add(name)

    def _extend_over_loop(self, reads: Sequence[tuple[Step, Access]]) -> None:
        """Let what a loop reads live through it, unless each generation writes it first."""
        for name, step in list(self._last.items()):
            if step.section not in ("loop", "stop"):
                continue
            writers = [
                place
                for place, einsum in enumerate(self._cascade.loop)
                if any(o.tensor == name for o in einsum.outputs)
            ]
            readers = [s.place for s, a in reads if a.tensor == name and s.section == "loop"]
            if step.section == "stop" or not writers or min(readers) <= max(writers):
                del self._last[name]
                self.ends_with_loop.add(name)
        self.ends_with_loop -= self._wanted


def _reads(cascade: Cascade) -> list[tuple[Step, Access]]:
    """Return every read with its step, in the order of execution."""
    found = [
        (Step(section, place), access)
        for section, einsums in (("init", cascade.init), ("loop", cascade.loop))
        for place, einsum in enumerate(einsums)
        for access in einsum.operands
    ]
    found += [(Step("stop", 0), access) for c in cascade.stop for access in _of(c)]
    found += [
        (Step("final", place), access)
        for place, einsum in enumerate(cascade.final)
        for access in einsum.operands
    ]
    return found


def _of(comparison: Comparison) -> list[Access]:
    return list(accesses(comparison))

"""A cascade, run on numbers: `run`.

Each Einsum is evaluated whole; an iterative rank is a Python loop over its generations, of which
only those that are still read are kept. A tensor is dropped after its last reader, which may
overwrite its buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from einfuse.einsum.language.cascade import Cascade, Tensor
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError, expect
from einfuse.einsum.language.expression import Access, Coordinate, Index, walk
from einfuse.einsum.language.functions import closest
from einfuse.einsum.language.shape import bind, tensor_shape

from .absence import Arithmetic, Value
from .backend import Array, Backend
from .backends import backend_of
from .einsum import Operand, evaluate, read_number
from .lifetime import Lifetimes, Step
from .memory import check_fits
from .plan import Plan, make_plan
from .reading import Space, condition, linear_form
from .writing import Target


def run(
    cascade: Cascade,
    inputs: Mapping[str, Any],
    shape: Mapping[str, int] | None = None,
    backend: str = "numpy",
    *,
    all_tensors: bool = False,
    memory_limit_bytes: int | None = None,
) -> dict[str, Any]:
    """Return the outputs of a cascade as arrays, keyed by tensor name.

    Args:
        cascade: what to compute.
        inputs: an array for every input tensor without a value of its own, axes in the order of
            its declaration. A complex array stands for its parts on a last axis of 2.
        shape: sizes of ranks that neither the text nor the inputs fix.
        backend: ``numpy``, or ``torch``: takes and returns tensors, on their device, and
            autograd follows.
        all_tensors: return every tensor, with all its generations.
        memory_limit_bytes: refuse to need more than this; left out: than the memory available.

    Returns:
        An array for each output, axes in the order of the tensor's ranks, in the inputs' dtype.
        Where a value is absent the array holds 0, or the infinite identity of the maximum or
        minimum that had nothing to choose from.

    Raises:
        EinfuseError: inputs are missing, too many or of the wrong shape, sizes are missing or
            disagree, an index leaves its tensor, or the run would not fit into memory.

    >>> import numpy as np
    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M, P\\ninput A[M,P]\\noutput Y\\nY[p] = A[m,p] :: max(m)")
    >>> run(cascade, {"A": np.array([[1.0, 5.0], [3.0, 2.0]])})["Y"]
    array([3., 5.])
    """
    expect(cascade, Cascade, "cascade", "a cascade (of einfuse.load_cascade or einfuse.parse)")
    expect(inputs, Mapping, "inputs", "name -> array, a mapping")
    expect({} if shape is None else shape, Mapping, "shape", "rank -> size, a mapping")
    library = backend_of(backend, inputs)
    arrays = _imported(cascade, inputs, library)
    sizes = bound_sizes(cascade, {n: tuple(a.shape) for n, a in arrays.items()}, shape or {})
    arithmetic = Arithmetic(library, library.dtype_of(arrays.values()))
    wanted = [t.name for t in cascade.tensors] if all_tensors else list(cascade.outputs)
    check_fits(
        cascade,
        sizes,
        library.item_bytes(arithmetic.dtype),
        library.available_bytes() if memory_limit_bytes is None else memory_limit_bytes,
        wanted,
    )
    with library.quiet():
        return _Run(cascade, sizes, arithmetic, arrays, wanted).outputs()


def bound_sizes(
    cascade: Cascade, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, int]
) -> dict[str, int]:
    """Return the size of every rank, from the text, from given ones and from inputs' shapes.

    Raises:
        EinfuseError: an input has the wrong number of axes, or two sources disagree.
    """
    known = dict(given)
    origin = {rank: f"as given for {rank}" for rank in given}
    for declared in cascade.ranks:
        if isinstance(declared.size, int) and declared.name not in known:
            known[declared.name], origin[declared.name] = declared.size, "in the text"
    for tensor in cascade.input_tensors:
        if tensor.name not in shapes:
            continue
        found = shapes[tensor.name]
        if len(found) != len(tensor.ranks):
            raise EinfuseError(
                f"input {tensor.name}: expected {_axes(tensor)}, found shape {found}"
            )
        for place, (rank, size) in enumerate(zip(tensor.ranks, found, strict=True)):
            here = f"on axis {place} of {tensor.name}{list(found)}"
            if known.setdefault(rank, size) != size:
                raise EinfuseError(
                    f"rank {rank} has two sizes: {known[rank]} {origin[rank]} and {size} {here}"
                )
            origin.setdefault(rank, here)
    return bind(cascade, known)


class _Run:
    """The tensors of a run, and the walk over its Einsums."""

    def __init__(
        self,
        cascade: Cascade,
        sizes: Mapping[str, int],
        arithmetic: Arithmetic,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
    ) -> None:
        self.cascade, self.sizes = cascade, sizes
        self.arithmetic, self.backend = arithmetic, arithmetic.backend
        self.wanted = tuple(wanted)
        self.lifetimes = Lifetimes(cascade, sizes, wanted)
        self.extents = {t.name: tensor_shape(cascade, t.name, sizes) for t in cascade.tensors}
        self.whole: dict[str, Value] = {name: Value(array) for name, array in inputs.items()}
        self.slots: dict[str, dict[tuple[int, ...], Value]] = {}
        self.plans: dict[Step, Plan] = {}
        self.step = Step("init", 0)
        self.pinned: set[str] = set(inputs)

    def outputs(self) -> dict[str, Array]:
        cascade = self.cascade
        self._section("init", cascade.init, {})
        for fixed in self._generations():
            self._section("loop", cascade.loop, fixed)
            if cascade.stop and self._stops(fixed, after=True):
                break
            self.lifetimes.drop_generations(self.slots, fixed)
        for name in self.lifetimes.ends_with_loop:
            self.whole.pop(name, None)
        self._section("final", cascade.final, {})
        return {name: self._exported(name) for name in self.wanted}

    def _section(self, section: str, einsums: Sequence[Einsum], fixed: Mapping[str, int]) -> None:
        for place, einsum in enumerate(einsums):
            self.step = Step(section, place)
            plan = self._plan(section, place, einsum, fixed)
            space = plan.space(fixed)
            targets = [self._target(access, space) for access in einsum.outputs]
            values = evaluate(
                plan, fixed, [target for target, _ in targets], self.arithmetic, self._fetch
            )
            self._drop_read(plan, space)
            for access, (_, slot), value in zip(einsum.outputs, targets, values, strict=False):
                if not value.owned:
                    self.pinned.update(read.tensor for read in plan.operands)
                    self.pinned.add(access.tensor)
                self._store(access.tensor, slot, value)

    def _plan(self, section: str, place: int, einsum: Einsum, fixed: Mapping[str, int]) -> Plan:
        step = Step(section, place)
        if step not in self.plans:
            self.plans[step] = make_plan(einsum, fixed, self.sizes, self.cascade.rank_of)
        return self.plans[step]

    def _generations(self) -> Iterator[dict[str, int]]:
        """Yield the coordinates of the iterative variables, the first one outermost."""
        if not self.cascade.loop:
            return
        names = [iteration.variable for iteration in self.cascade.iterations]
        extents = [self.sizes[iteration.rank] for iteration in self.cascade.iterations]
        for coordinates in product(*map(range, extents)):
            fixed = dict(zip(names, coordinates, strict=True))
            if self.cascade.stop and self._stops(fixed, after=False):
                return
            yield fixed

    def _stops(self, fixed: Mapping[str, int], *, after: bool) -> bool:
        """Tell whether the condition to stop holds, at every point where it has free variables.

        It is looked at as soon as what it reads is written: before the generation if it reads
        nothing that the generation itself writes, else after it.
        """
        if self.lifetimes.stop_reads_generation != after:
            return False
        self.step = Step("stop", 0)
        names = {
            node.variable
            for comparison in self.cascade.stop
            for node in walk(comparison)
            if isinstance(node, Coordinate) and node.variable not in fixed
        }
        order = tuple(sorted(names))
        extents = tuple(self.sizes[self.cascade.rank_of(v)] for v in order)
        space = Space(order, extents, fixed, self.sizes)
        holds = condition(self.cascade.stop, space, self.backend, self._reader_of(space))
        return holds is not None and bool(holds.all())

    def _reader_of(self, space: Space) -> Any:
        return lambda access: read_number(access, space, self.arithmetic, self._fetch)

    # Tensors.

    def _target(self, access: Access, space: Space) -> tuple[Target, tuple[int, ...] | None]:
        """Return where an Einsum writes: the axes that stay, and the generation."""
        slot, indices, extents = self._split(access, space)
        return Target(indices, extents), slot

    def _split(
        self, access: Access, space: Space
    ) -> tuple[tuple[int, ...] | None, tuple[Index, ...], tuple[int, ...]]:
        """Return the generation that an access names, if it names one, and its other axes."""
        axes = self.lifetimes.generational.get(access.tensor, ())
        extents = self.extents[access.tensor]
        forms = [linear_form(access.indices[axis].expression, space) for axis in axes]
        named = [form.constant for form in forms if form is not None and not form.coefficients]
        if not axes or len(named) != len(axes):
            return None, access.indices, extents
        kept = [k for k in range(len(extents)) if k not in axes]
        indices = [access.indices[k] for k in kept]
        filters = tuple(c for axis in axes for c in access.indices[axis].condition)
        if filters:  # a filter on the generation culls all of it
            if indices:
                indices[0] = replace(indices[0], condition=indices[0].condition + filters)
            else:
                return None, access.indices, extents
        return tuple(named), tuple(indices), tuple(extents[k] for k in kept)

    def _fetch(self, access: Access, space: Space) -> Operand:
        name = access.tensor
        slot, indices, extents = self._split(access, space)
        if name not in self.lifetimes.generational:
            last = self.lifetimes.reads_last(name, self.step) and name not in self.pinned
            return Operand(self.whole.get(name), indices, extents, last)
        if slot is None:
            return Operand(self._stacked(name), indices, extents, False)
        found = self.slots.get(name, {})
        if space.fixed == {} and slot == self.lifetimes.final_slot(name) and slot not in found:
            slot = max(found, default=slot)  # the loop stopped early: the last there is
        last = self.lifetimes.reads_slot_last(name, self.step, slot, space.fixed)
        return Operand(found.get(slot), indices, extents, last and name not in self.pinned)

    def _store(self, name: str, slot: tuple[int, ...] | None, value: Value) -> None:
        if name not in self.lifetimes.generational:
            if self.lifetimes.is_read(name):
                chunks = name in self.lifetimes.chunked and name in self.whole
                self.whole[name] = self._added(self.whole[name], value) if chunks else value
            return
        slots = self.slots.setdefault(name, {})
        if slot is not None:
            slots[slot] = value
            return
        self.pinned.add(name)
        axes = self.lifetimes.generational[name]
        for key in product(*(range(self.extents[name][axis]) for axis in axes)):
            at: list[Any] = [slice(None)] * len(self.extents[name])
            for axis, k in zip(axes, key, strict=True):
                at[axis] = k if value.data.shape[axis] != 1 else 0
            present = None
            if value.present is not None:
                here = [
                    0 if value.present.shape[a] == 1 and a in axes else s for a, s in enumerate(at)
                ]
                present = value.present[(*here, ...)]
            slots[key] = replace(value, data=value.data[(*at, ...)], present=present, owned=False)

    def _added(self, earlier: Value, chunk: Value) -> Value:
        """Return a tensor with one chunk more."""
        assert chunk.present is not None and earlier.present is not None
        data = self.backend.where(chunk.present, chunk.data, earlier.data)
        return replace(chunk, data=data, present=chunk.present | earlier.present)

    def _drop_read(self, plan: Plan, space: Space) -> None:
        for access in plan.operands:
            name = access.tensor
            if name not in self.lifetimes.generational:
                if self.lifetimes.reads_last(name, self.step):
                    self.whole.pop(name, None)
            else:
                slot, _, _ = self._split(access, space)
                if slot is not None and self.lifetimes.reads_slot_last(
                    name, self.step, slot, space.fixed
                ):
                    self.slots.get(name, {}).pop(slot, None)

    def _stacked(self, name: str) -> Value | None:
        """Return a generational tensor as one array; generations not written are absent."""
        slots = self.slots.get(name)
        if not slots:
            return None
        axes = self.lifetimes.generational[name]
        rest = [k for k in range(len(self.extents[name])) if k not in axes]
        one = next(reversed(slots.values()))
        full = tuple(self.extents[name][k] for k in rest)
        keys = list(product(*(range(self.extents[name][axis]) for axis in axes)))
        absent = len(keys) > len(slots) or any(v.present is not None for v in slots.values())
        floating = [v.data.dtype for v in slots.values() if self.backend.is_floating(v.data)]
        dtype = floating[0] if floating else one.data.dtype
        data = [self._slot_data(slots.get(key), one, full, dtype) for key in keys]
        present = None
        if absent:
            masks = [self._slot_presence(slots.get(key), full) for key in keys]
            present = self._joined(masks, name, axes, rest)
        clean = all(value.empty == one.empty for value in slots.values())
        return Value(self._joined(data, name, axes, rest), present, one.empty, clean)

    def _slot_data(
        self, value: Value | None, one: Value, full: tuple[int, ...], dtype: Any
    ) -> Array:
        if value is None:
            fill = one.empty if self.backend.is_floating(one.data) else 0
            return self.backend.full(full, fill, dtype)
        return self.backend.broadcast(self.backend.cast(value.data, dtype), full)

    def _slot_presence(self, value: Value | None, full: tuple[int, ...]) -> Array:
        if value is None or value.present is None:
            return self.backend.truth(full, value is not None)
        return self.backend.broadcast(value.present, full)

    def _joined(
        self, arrays: list[Array], name: str, axes: Sequence[int], rest: Sequence[int]
    ) -> Array:
        extents = self.extents[name]
        joined = self.backend.stack(arrays, 0)
        joined = joined.reshape([*(extents[a] for a in axes), *(extents[k] for k in rest)])
        order = [*axes, *rest]
        return self.backend.transpose(joined, [order.index(k) for k in range(len(order))])

    def _exported(self, name: str) -> Array:
        generational = name in self.lifetimes.generational
        value = self._stacked(name) if generational else self.whole.get(name)
        self.slots.pop(name, None)
        if value is None:
            raise EinfuseError(f"output {name} was never written")
        data = self.arithmetic.as_array(value, len(self.extents[name])).data
        full = self.extents[name]
        alone = value.owned and name not in self.pinned and not generational
        if tuple(data.shape) != tuple(full):
            return self.backend.copy(self.backend.broadcast(data, full))
        return self.backend.compact(data) if alone or generational else self.backend.copy(data)


def _imported(cascade: Cascade, inputs: Mapping[str, Any], backend: Backend) -> dict[str, Array]:
    known = {t.name: t.value for t in cascade.input_tensors if t.value is not None}
    known |= {name: _real(cascade, name, array) for name, array in inputs.items()}
    missing = [tensor for tensor in cascade.input_tensors if tensor.name not in known]
    if missing:
        listed = ", ".join(f"{t.name}[{','.join(t.ranks)}]" for t in missing)
        raise EinfuseError(f"{cascade.name}: missing input {listed}")
    for name in inputs:
        if name not in cascade.inputs:
            raise EinfuseError(
                f"{cascade.name} has no input '{name}'{closest(name, cascade.inputs)}"
            )
    return {name: backend.import_input(name, known[name]) for name in cascade.inputs}


def _real(cascade: Cascade, name: str, array: Any) -> Any:
    """Return an array, a complex one with its two parts on a last axis where the input has it."""
    kind = str(getattr(array, "dtype", ""))
    ranks = len(cascade.tensor(name).ranks) if name in cascade.inputs else 0
    if "complex" not in kind or ranks != len(array.shape) + 1:
        return array
    if hasattr(array, "detach"):
        import torch

        return torch.view_as_real(array.resolve_conj())
    return np.stack([array.real, array.imag], axis=-1)


def _axes(tensor: Tensor) -> str:
    listed = ",".join(tensor.ranks)
    return (
        f"{len(tensor.ranks)} axes [{listed}]" if len(tensor.ranks) != 1 else f"1 axis [{listed}]"
    )

"""The order of definition: what an Einsum reads must have been written, generation by generation.

A loop writes generation ``v`` or ``v+1`` of an iterative variable ``v`` and reads those before
it; ``init`` may write generation 0. It may also write a chunk of a flat rank per generation
(``O[m1*M0+m0]``), which the loop itself may read at the same index. Everything else is defined
once, before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .affine import at_most_zero, has_own_places, linear, offset
from .cascade import Cascade
from .equation import Einsum
from .errors import CascadeError
from .expression import Access, Coordinate, Expression, Number, accesses, variables
from .shape import bind_symbolic, filters


@dataclass(frozen=True, slots=True)
class _Write:
    """A definition: where in the text, in which section, at which generation of which variable."""

    place: int
    section: str
    output: Access
    offsets: Mapping[str, int]  # iterative variable -> generation past it (loop only)


def check_generations(cascade: Cascade) -> None:
    """Raise a `CascadeError` on a second definition, a cycle, or a read before the write."""
    writes = _writes(cascade)
    for place, (section, einsum) in enumerate(_sectioned(cascade)):
        if section == "loop":
            _check_loop_left(cascade, einsum)
        for access in einsum.operands:
            _check_read(cascade, writes, place, section, einsum, access)
    _check_stop(cascade, writes)


def _writes(cascade: Cascade) -> dict[str, list[_Write]]:
    found: dict[str, list[_Write]] = {}
    for place, (section, einsum) in enumerate(_sectioned(cascade)):
        for output in einsum.outputs:
            offsets = _generations(cascade, output) if section == "loop" else {}
            write = _Write(place, section, output, offsets)
            if output.tensor in cascade.inputs:
                raise CascadeError(
                    f"{output.tensor} is an input and cannot be defined", output.span
                )
            earlier = found.setdefault(output.tensor, [])
            if earlier and not _is_recurrence(cascade, earlier, write):
                raise CascadeError(
                    f"{output.tensor} is defined twice, first on line {_line(earlier[0].output)}: "
                    "only generation 0 in init and generation v+1 in loop go together",
                    output.span,
                )
            earlier.append(write)
    return found


def _sectioned(cascade: Cascade) -> Iterator[tuple[str, Einsum]]:
    yield from (("init", einsum) for einsum in cascade.init)
    yield from (("loop", einsum) for einsum in cascade.loop)
    yield from (("final", einsum) for einsum in cascade.final)


def _is_recurrence(cascade: Cascade, earlier: list[_Write], write: _Write) -> bool:
    """Tell whether an initialiser at generation 0 and a loop at v+1 make one tensor."""
    if len(earlier) > 1 or earlier[0].section != "init" or write.section != "loop":
        return False
    return any(
        start.expression == Number(0) and offset(step.expression, iteration.variable) == 1
        for iteration in cascade.iterations
        for start, step in zip(earlier[0].output.indices, write.output.indices, strict=True)
    )


def _generations(cascade: Cascade, output: Access) -> dict[str, int]:
    """Return the generation a loop writes, past each iterative variable of the output."""
    found: dict[str, int] = {}
    for iteration in cascade.iterations:
        for index in output.indices:
            if iteration.variable not in variables(index.expression):
                continue
            v, step = iteration.variable, offset(index.expression, iteration.variable)
            if writes_chunk(cascade, index.expression, v):
                continue
            if step not in (0, 1):
                raise CascadeError(
                    f"a loop writes generation {v} or {v}+1 of {output.tensor}, or a chunk of a "
                    f"flat rank such as {v}*N0+n0, with n0 over all of N0",
                    index.expression.span,
                )
            found[iteration.variable] = step
    return found


def writes_chunk(cascade: Cascade, index: Expression, v: str) -> bool:
    """Tell whether an index on the left in a loop names a chunk of its own per generation."""
    sizes = bind_symbolic(cascade, {})
    extents = {name: sizes[cascade.rank_of(name)] for name in variables(index)}
    return has_own_places(linear(index, sizes), v, extents)


def _check_chunk(last: _Write, access: Access) -> None:
    """Check that a loop reads what it writes by chunks only where this generation wrote it."""
    for written, read in zip(last.output.indices, access.indices, strict=True):
        chunk = not isinstance(written.expression, Coordinate)
        if chunk and read.expression != written.expression:
            raise _unwritten(access, read.expression, "the loop writes a chunk of it", last)


def _check_loop_left(cascade: Cascade, einsum: Einsum) -> None:
    for iteration in cascade.iterations:
        v = iteration.variable
        if v in variables(einsum.expression) and v not in einsum.output_variables:
            raise CascadeError(
                f"{einsum.name} reads generation {v} and has no index for it: inside 'loop:' an "
                f"iterative variable cannot be reduced; accumulate with {einsum.name}[{v}+1,...]",
                einsum.output.span,
            )


def _check_read(
    cascade: Cascade,
    writes: Mapping[str, list[_Write]],
    place: int,
    section: str,
    einsum: Einsum,
    access: Access,
) -> None:
    if access.tensor in cascade.inputs:
        return
    last = writes[access.tensor][-1]
    if section == "loop" and last.section == "loop":
        _check_generation(cascade, writes, place, einsum, access)
    elif last.place >= place:
        _complain_of_order(cascade, writes, place, access, last)


def _check_generation(
    cascade: Cascade,
    writes: Mapping[str, list[_Write]],
    place: int,
    einsum: Einsum,
    access: Access,
) -> None:
    """Check one read inside the loop of a tensor that the loop writes."""
    last = writes[access.tensor][-1]
    started = any(write.section == "init" for write in writes[access.tensor])
    for v, position in _generational(last):
        index, written = access.indices[position].expression, last.offsets[v]
        latest, first = _latest(einsum, index, v), _first(einsum, index, v)
        if latest is None or latest > written:
            raise _unwritten(access, index, f"the loop writes {v}{'+1' if written else ''}", last)
        if first < 0:
            raise CascadeError(f"{access.tensor} is read at generation {first} of {v}", index.span)
        if first < written and not started:
            raise _unwritten(access, index, "nothing in 'init:' writes generation 0", last)
        if latest < written:
            return
    if not last.offsets:
        _check_chunk(last, access)
    if last.place >= place:
        _complain_of_order(cascade, writes, place, access, last)


def _generational(write: _Write) -> Iterator[tuple[str, int]]:
    """Yield each iterative variable that a loop writes along, with the place of its index."""
    for v in write.offsets:
        for position, index in enumerate(write.output.indices):
            if v in variables(index.expression):
                yield v, position


def _unwritten(access: Access, index: Expression, why: str, last: _Write) -> CascadeError:
    return CascadeError(
        f"{access.tensor} is read at a generation not yet written: {why} "
        f"(it is defined on line {_line(last.output)})",
        index.span,
    )


def _first(einsum: Einsum, index: Expression, v: str) -> int:
    """Return the first generation that an index reads while v runs from 0."""
    form = linear(index, {})
    lowest = form.constant if form else 0
    for cull in filters(einsum):
        for bound in at_most_zero(cull, {}) or ():
            above = form.plus(bound) if form else None
            if above is not None and not above.coefficients:
                lowest = max(lowest, above.constant)
    return int(lowest)


def _latest(einsum: Einsum, index: Expression, v: str) -> int | None:
    """Return the latest generation, counted from v, that an index may read; None if unknown."""
    form = linear(index, {})
    if form is None:
        return None
    if not form.coefficients:
        return int(form.constant)  # counted from the first generation, v = 0
    step = offset(index, v)
    if step is not None:
        return step
    bounds: list[int] = []
    for cull in filters(einsum):  # k: k<=v bounds k by v
        for bound in at_most_zero(cull, {}) or ():
            ahead = form.plus(bound, -1)
            if dict(ahead.coefficients) == {v: 1}:
                bounds.append(ahead.constant)
    return min(bounds, default=None)


def _complain_of_order(
    cascade: Cascade,
    writes: Mapping[str, list[_Write]],
    place: int,
    access: Access,
    last: _Write,
) -> None:
    circle = _circle(cascade, writes, place, last.place)
    if circle:
        raise CascadeError(f"a cycle: {' <- '.join([*circle, circle[0]])}", access.span)
    in_loop = len(cascade.init) <= place < len(cascade.init) + len(cascade.loop)
    late = "at a generation not yet written" if in_loop else "before it is defined"
    raise CascadeError(
        f"{access.tensor} is read {late}: its definition stands below, on line "
        f"{_line(last.output)}; move it up",
        access.span,
    )


def _circle(
    cascade: Cascade, writes: Mapping[str, list[_Write]], start: int, through: int
) -> list[str]:
    """Return the tensors on a way from a reader over its readers to the one it reads itself.

    Only reads within one generation count; nothing if there is no such way.
    """
    einsums = cascade.einsums
    last = {name: found[-1].place for name, found in writes.items()}
    paths = {start: [einsums[start].name]}
    frontier = [start]
    while frontier:
        place = frontier.pop()
        if place == through:
            return paths[place]
        for reader, einsum in enumerate(einsums):
            if reader in paths:
                continue
            for access in einsum.operands:
                if last.get(access.tensor) == place and not _is_earlier(
                    cascade, writes, access, einsum
                ):
                    paths[reader] = [*paths[place], einsum.name]
                    frontier.append(reader)
                    break
    return []


def _is_earlier(
    cascade: Cascade, writes: Mapping[str, list[_Write]], access: Access, einsum: Einsum
) -> bool:
    """Tell whether a read is of an earlier generation than the loop's write of this round."""
    last = writes[access.tensor][-1]
    latest = {
        v: _latest(einsum, access.indices[position].expression, v)
        for v, position in _generational(last)
    }
    return any(found is not None and found < last.offsets[v] for v, found in latest.items())


def _check_stop(cascade: Cascade, writes: Mapping[str, list[_Write]]) -> None:
    for part in cascade.stop:
        if not cascade.iterations:
            raise CascadeError("a stop needs a loop: write 'iter VARIABLE over RANK'", part.span)
        for access in accesses(part):
            if access.tensor in cascade.inputs:
                continue
            last = writes[access.tensor][-1]
            if last.section == "final":
                raise CascadeError(
                    f"stop reads {access.tensor}, which is defined in 'final:' only", access.span
                )
            for v, position in _generational(last):
                index = access.indices[position].expression
                ahead = offset(index, v)
                if ahead is None or ahead > last.offsets[v]:
                    raise _unwritten(access, index, "a stop is asked after each generation", last)


def _line(access: Access) -> str:
    return str(access.span.line) if access.span else "?"

"""The rules of what a cascade declares: ranks, splits, iterations, inputs."""

from __future__ import annotations

from .cascade import Cascade, Tensor
from .errors import CascadeError, closest
from .expression import (
    Span,
)
from .shape import bind_known, representatives


def something_is_computed(cascade: Cascade) -> None:
    """Refuse a cascade without an Einsum."""
    if not cascade.einsums:
        raise CascadeError(
            "no Einsum: expected at least one line such as 'Y[p] = A[m,p] * B[m]'",
            Span(1, 1, 1, 1) if cascade.text.strip() else None,
        )


def ranks_are_well_declared(cascade: Cascade) -> None:
    """Refuse ranks declared twice, of no size, or whose sizes go in a circle."""
    seen: set[str] = set()
    for rank in cascade.ranks:
        check_rank_name(rank.name, rank.span)
        if rank.name in seen:
            raise CascadeError(f"rank {rank.name} is declared twice", rank.span)
        seen.add(rank.name)
        if isinstance(rank.size, int) and rank.size < 1:
            raise CascadeError(
                f"rank {rank.name} needs a size of at least 1, found {rank.size}", rank.span
            )
    for rank in cascade.ranks:
        if isinstance(rank.size, str):
            known_rank(cascade, rank.size, rank.span)
    representatives(cascade)


def splits_are_well_declared(cascade: Cascade) -> None:
    """Refuse splits into themselves, and sizes that contradict each other."""
    parts: dict[str, set[str]] = {}
    for split in cascade.splits:
        three = (split.whole, split.outer, split.inner)
        for name in three:
            check_rank_name(name, split.span)
        if len(set(three)) < 3:
            raise CascadeError("a split needs three different ranks", split.span)
        parts.setdefault(split.whole, set()).update((split.outer, split.inner))
        below, frontier = set[str](), {split.whole}
        while frontier:
            below |= frontier
            frontier = {p for name in frontier for p in parts.get(name, ())} - below
            if any(split.whole in parts.get(name, ()) for name in below):
                raise CascadeError(f"rank {split.whole} is split into itself", split.span)
    bind_known(cascade)  # sizes in the text that contradict each other


def iterations_are_well_declared(cascade: Cascade) -> None:
    """Refuse iterative variables that clash or have no rank."""
    seen: set[str] = set()
    for iteration in cascade.iterations:
        name = iteration.variable
        if name != name.lower() or name == name.upper():
            raise CascadeError(
                f"an iterative variable is lower case, found '{name}'", iteration.span
            )
        known_rank(cascade, iteration.rank, iteration.span)
        if name in seen:
            raise CascadeError(f"variable {name} iterates twice", iteration.span)
        seen.add(name)
        if name.upper() != iteration.rank and name.upper() in cascade.rank_names:
            raise CascadeError(
                f"variable {name} would run over both {iteration.rank} and rank {name.upper()}: "
                "give one of them another name",
                iteration.span,
            )
    if cascade.loop and not cascade.iterations:
        raise CascadeError(
            "a loop needs an iterative rank: write 'iter VARIABLE over RANK'",
            cascade.loop[0].span,
        )


def inputs_are_well_declared(cascade: Cascade) -> None:
    """Refuse inputs declared twice, or with unknown ranks."""
    seen: dict[str, Tensor] = {}
    for tensor in cascade.input_tensors:
        for rank in tensor.ranks:
            known_rank(cascade, rank, tensor.span)
        if tensor.name in seen:
            message = f"input {tensor.name} is declared twice"
            if seen[tensor.name].ranks != tensor.ranks:
                lists = (f"[{','.join(t.ranks)}]" for t in (seen[tensor.name], tensor))
                message += ", with two rank lists: " + " and ".join(lists)
            raise CascadeError(message, tensor.span)
        seen[tensor.name] = tensor


def known_rank(cascade: Cascade, name: str, span: Span | None) -> None:
    """Refuse a rank that is not declared."""
    if name in cascade.rank_names:
        return
    if name.upper() in cascade.rank_names:
        raise CascadeError(f"ranks are upper case: expected {name.upper()}, found {name}", span)
    raise CascadeError(f"undefined rank {name}{closest(name, cascade.rank_names)}", span)


def check_rank_name(name: str, span: Span | None) -> None:
    """Refuse a rank that is not in upper case."""
    if name != name.upper() or name == name.lower():
        raise CascadeError(f"a rank is upper case, found '{name}'", span)

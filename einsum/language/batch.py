"""Batch ranks: every tensor gets them, as where notation leaves ``b`` and ``h`` out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from .cascade import Cascade, Rank, Tensor
from .equation import Einsum
from .errors import EinfuseError
from .expression import Access, Comparison, Coordinate, Expression, Index
from .rules import validated
from .substitution import rebuild


def with_batch(cascade: Cascade, ranks: Sequence[str], *, shared: Collection[str] = ()) -> Cascade:
    """Return the cascade with batch ranks in front of every tensor that lacks them.

    Args:
        cascade: written for one element of the batch.
        ranks: names of the batch ranks, outermost first.
        shared: tensors that all of the batch share and that stay without (weights, a scale).

    Raises:
        EinfuseError: a rank's variable already iterates, or a shared tensor would depend on the
            batch.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> batched = with_batch(load("attention/3-pass"), ["B", "H"])
    >>> render_einsum(batched.einsums[0])
    'QK[b,h,m,p] = Q[b,h,e,p] * K[b,h,e,m]'
    """
    unknown = sorted(set(shared) - {tensor.name for tensor in cascade.tensors})
    if unknown:
        raise EinfuseError(f"{cascade.name} has no tensor {', '.join(unknown)} to share")
    for iteration in cascade.iterations:
        if iteration.variable.upper() in ranks:
            raise EinfuseError(f"variable {iteration.variable} iterates and cannot be a batch's")
    missing = {
        tensor.name: () if tensor.name in shared else _missing(tensor, ranks)
        for tensor in cascade.tensors
    }
    for einsum in cascade.einsums:
        for output in einsum.outputs:
            varying = [a.tensor for a in einsum.operands if missing[a.tensor]]
            if output.tensor in shared and varying:
                raise EinfuseError(
                    f"{output.tensor} cannot be shared: it depends on {varying[0]}, which has "
                    f"ranks {', '.join(missing[varying[0]])}"
                )
    new = tuple(Rank(rank) for rank in ranks if rank not in cascade.rank_names)
    return validated(
        replace(
            cascade,
            ranks=new + cascade.ranks,
            input_tensors=tuple(
                replace(tensor, ranks=missing[tensor.name] + tensor.ranks)
                for tensor in cascade.input_tensors
            ),
            init=tuple(_batched(einsum, missing) for einsum in cascade.init),
            loop=tuple(_batched(einsum, missing) for einsum in cascade.loop),
            final=tuple(_batched(einsum, missing) for einsum in cascade.final),
            stop=tuple(_comparison(c, missing) for c in cascade.stop),
        )
    )


def _missing(tensor: Tensor, ranks: Sequence[str]) -> tuple[str, ...]:
    return tuple(rank for rank in ranks if rank not in tensor.ranks)


def _batched(einsum: Einsum, missing: Mapping[str, tuple[str, ...]]) -> Einsum:
    return replace(
        einsum,
        outputs=tuple(_access(output, missing) for output in einsum.outputs),
        expression=_expression(einsum.expression, missing),
    )


def _expression(node: Expression, missing: Mapping[str, tuple[str, ...]]) -> Expression:
    return rebuild(node, lambda part: _access(part, missing) if isinstance(part, Access) else None)


def _access(access: Access, missing: Mapping[str, tuple[str, ...]]) -> Access:
    batch = tuple(Index(Coordinate(rank.lower())) for rank in missing[access.tensor])
    own = tuple(
        Index(
            _expression(index.expression, missing),
            tuple(_comparison(c, missing) for c in index.condition),
        )
        for index in access.indices
    )
    return replace(access, indices=batch + own)


def _comparison(c: Comparison, missing: Mapping[str, tuple[str, ...]]) -> Comparison:
    return replace(c, left=_expression(c.left, missing), right=_expression(c.right, missing))

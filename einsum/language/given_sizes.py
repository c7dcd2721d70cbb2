"""Sizes as they are given: whole numbers that divide."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from .cascade import Cascade, Split
from .errors import CascadeError, EinfuseError, closest


def given_sizes(cascade: Cascade, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes as whole numbers or arrays; EinfuseError where one is neither."""
    known = cascade.rank_names
    for name, size in sizes.items():
        if name not in known:
            raise EinfuseError(
                f"{cascade.name} has no rank '{name}'{closest(name, known)} (sizes are given by "
                "rank, in upper case)"
            )
        check_size(name, size)
    return {n: s if isinstance(s, np.ndarray) and s.ndim else int(s) for n, s in sizes.items()}


def check_size(name: str, size: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    whole = (
        np.issubdtype(size.dtype, np.integer) if isinstance(size, np.ndarray)
        else isinstance(size, numbers.Integral) and not isinstance(size, bool)
    )  # fmt: skip
    if not whole:
        raise EinfuseError(f"rank {name} needs a whole size, found {size!r}")
    if not np.all(np.asarray(size) >= 1):
        raise EinfuseError(f"rank {name} needs a size of at least 1, found {np.min(size)}")


def check_divides(split: Split, whole: Any, factor: str, size: Any) -> None:
    """Refuse a tile that does not divide its rank."""
    if not np.all(whole % size == 0):
        raise CascadeError(
            f"the sizes of a split must multiply: {split.whole} = {shown_size(whole)} is no "
            f"multiple of {factor} = {shown_size(size)}",
            split.span,
        )


def shown_size(size: Any) -> str:
    """Return a size as text."""
    if isinstance(size, np.ndarray):
        return f"{size.min()}..{size.max()}"
    return str(size)

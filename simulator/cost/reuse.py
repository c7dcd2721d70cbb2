"""How often what comes to a level is used there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from einfuse.mapper import REGISTERS, Design, Values

from .point import find_point


def find_reuse(design: Design, shape: Mapping[str, Any]) -> dict[str, dict[str, Values]]:
    """Return level -> tensor -> reads of the level for each word that is written there.

    Args:
        design: a cascade on a machine, with its loop tree.
        shape: rank -> size.

    Returns:
        The reuse at every memory that tensors are brought or made into. What nobody writes there
        (inputs in the outermost memory) or nobody reads there has none.

    >>> from einfuse.mapper.design.design import load_design
    >>> shape = {"B": 64, "H": 12, "M": 4096, "P": 4096, "E": 64, "F": 64}
    >>> reuse = find_reuse(load_design("fusemax"), shape)
    >>> float(reuse["buffer"]["K"])  # the query tiles that a key tile stays for
    16.0
    """
    reads: dict[tuple[str, str], Values] = {}
    writes: dict[tuple[str, str], Values] = {}
    counts = find_point(design, shape, {}, scalar=True).counts
    for (_, tensor, level), moved in counts.traffic.items():
        if level != REGISTERS:
            reads[level, tensor] = reads.get((level, tensor), 0.0) + moved.reads
            writes[level, tensor] = writes.get((level, tensor), 0.0) + moved.writes
    found: dict[str, dict[str, Values]] = {}
    for (level, tensor), written in writes.items():
        if np.all(written > 0) and np.all(reads[level, tensor] > 0):
            found.setdefault(level, {})[tensor] = reads[level, tensor] / written
    return found

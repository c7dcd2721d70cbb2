"""Relations between tiles, sizes and parameters that a mapping has to keep: ``P <= 4 * M0``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import closest
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import Formula, Values, parse_formula

_LONG = 200  # characters of a list of names
_TRUTHS = ("compare", "either", "both", "inverse")


@dataclass(frozen=True, slots=True)
class Relation:
    """A formula that has to be true of the tiles beneath the loops above an Einsum.

    Attributes:
        formula: what is to hold.
        ranks: those of loops; it binds the Einsums that have all of them.
        parameters: the values of the parameters that it reads.
    """

    formula: Formula
    ranks: frozenset[str]
    parameters: Mapping[str, Values] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.formula.text

    def holds(self, tiles: Mapping[str, Values]) -> NDArray[np.bool_]:
        """Tell for arrays of tiles, and of sizes of the other ranks, where it holds.

        What is no number at some tiles (a division by zero) does not hold there.

        >>> relation = parse_relation("P <= 2 * M0", [{"P", "M0"}], (), {})
        >>> relation.holds({"P": np.array([4, 8]), "M0": np.array([2, 2])})
        array([ True, False])
        """
        names = {name: tiles[name] for name in self.formula.names if name in tiles}
        arrays = {name: np.atleast_1d(np.asarray(one, float)) for name, one in names.items()}
        try:
            with np.errstate(all="ignore"):
                found = self.formula.evaluate({**self.parameters, **arrays})
        except MappingError:
            raise
        except (ArithmeticError, TypeError, ValueError) as error:
            raise MappingError(f"relation '{self}': {error}") from None
        return np.asarray(found, bool)


def parse_relation(
    text: str,
    einsums: Collection[Collection[str]],
    sizes: Collection[str],
    parameters: Mapping[str, Any],
) -> Relation:
    """Return a relation; MappingError says what is wrong with it.

    Args:
        text: the formula.
        einsums: the ranks of each Einsum, over which loops may stand.
        sizes: the other ranks; their names mean their sizes.
        parameters: those of the architecture; None is unknown.
    """
    try:
        formula = parse_formula(text)
    except RecursionError:
        raise MappingError(f"'{text[:40]} ...': nested too deeply") from None
    if formula.tree.data not in _TRUTHS:
        raise MappingError(f"'{text}': expected a comparison, such as P <= 4 * M0")
    looped = frozenset[str]().union(*einsums)
    for name in formula.names:
        if name not in looped and name not in sizes and name not in parameters:
            near = closest(name, {*looped, *sizes, *parameters})
            if len(near) > _LONG:
                near = closest(name, looped) + ", and the parameters of the architecture"
            raise MappingError(f"'{text}': unknown '{name}'{near}")
    ranks = looped.intersection(formula.names)
    known = {n: parameters[n] for n in formula.names if n not in looped and n not in sizes}
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise MappingError(f"'{text}': expected a number as {name}, found {value}")
    if not ranks:
        raise MappingError(f"'{text}': expected a rank that loops stand over, found none")
    if not any(ranks <= {*own} for own in einsums):
        raise MappingError(f"'{text}': no Einsum has all of {', '.join(sorted(ranks))}")
    relation = Relation(formula, ranks, known)
    relation.holds({name: np.ones(2) for name in (*ranks, *sizes)})
    return relation

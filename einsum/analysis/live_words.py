"""Numbers of words in rank sizes: for every point of outer ranks, or shared by all points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, slots=True)
class Words:
    """A number of words: some for every point of the outer ranks, some shared by all points."""

    per_point: sympy.Expr
    shared: sympy.Expr

    def __add__(self, other: Words) -> Words:
        return Words(self.per_point + other.per_point, self.shared + other.shared)

    def total(self, points: Any = 1) -> sympy.Expr:
        """Return the words of a tile of points."""
        return self.per_point * points + self.shared


@dataclass(frozen=True, slots=True)
class Boundary:
    """What crosses from one sweep into the later ones.

    Attributes:
        after: the sweep before the boundary.
        stored: the tensors held across it, with their words.
        words: the sum of them.
        reread: the inputs from which the stored tensors could be computed once more instead.
        reread_words: the words of those inputs, which the alternative moves again.
        reason: which is cheaper, in words.
    """

    after: int
    stored: tuple[tuple[str, Words], ...]
    words: Words
    reread: tuple[str, ...]
    reread_words: Words
    reason: str


def no_words() -> Words:
    """Return no words at all."""
    import sympy

    return Words(sympy.Integer(0), sympy.Integer(0))


def choice(stored: list[str], words: Words, reread: tuple[str, ...], again: Words) -> str:
    """Return whether to store or to recompute, and where that turns."""
    names = " and ".join(stored)
    if not stored:
        return "nothing crosses"
    kept = words.total()
    if not reread or set(stored) == set(reread):
        return f"hold {names}: {kept} words"
    if words.per_point != 0 and again.per_point == 0:
        turn = again.shared / (2 * words.per_point)
        return (
            f"store {names}: {kept} words a point; off chip, write and read them while a tile has "
            f"fewer than {turn.cancel()} points, else recompute from {' and '.join(reread)} "
            f"({again.total()} words)"
        )
    return f"store {names}: {kept} words; recomputing moves {again.total()} words"


def exceeds(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Tell whether a - b is positive whatever the sizes."""
    rest = (a - b).expand()
    return rest != 0 and all(c > 0 for c in rest.as_coefficients_dict().values())


def common(totals: list[sympy.Expr]) -> sympy.Expr:
    """Return the terms that all sums share."""
    import sympy

    parts = [w.expand().as_coefficients_dict() for w in totals]
    return sympy.Add(
        *(t * min(p[t] for p in parts) for t in parts[0] if all(t in p for p in parts))
    )

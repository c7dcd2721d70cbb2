"""Random valid cascades and shapes, as hypothesis strategies, for tests of what takes a cascade.

Hypothesis is imported when a strategy is asked for, so that the package works without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind, representatives

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_RANKS = ("E", "F", "M", "P")
_ELEMENTWISE = (
    "tanh({x})",
    "sigmoid({x})",
    "exp(-abs({x}))",
    "relu({x})",
    "-{x}",
    "{x} * 0.5",
    "{x} + {y}",
    "{x} - {y}",
    "max({x}, {y})",
    "{x} / (1 + abs({y}))",
    "where(ge({x}, 0), {x}, {y})",
)
_RECURRENCES = (
    "{old} + {new}",
    "max({old}, {new})",
    "{old} * 0.5 + {new}",
    "exp({old} - max({old}, {new}))",
)
_FILTERS = ("{a}<={b}", "{a}<{b}", "{a}<={b} & {a}+2>{b}", "{a}!={b}", "{a}+{b}<3")


def cascades(
    *, max_einsums: int = 6, loops: bool = True, splits: bool = True, filters: bool = True
) -> SearchStrategy[Cascade]:
    """Return a strategy of valid cascades: products, folds, functions, views, filters, a loop.

    Their values stay tame (no division by nothing, no overflow) for inputs within -1..1, and
    their indices stay inside for every shape.

    Args:
        max_einsums: at most so many Einsums, those of a loop apart.
        loops: whether there may be a recurrence.
        splits: whether a rank may be split, with views to its factors and back.
        filters: whether operands may be filtered.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_cascade(draw: Any) -> Cascade:
        text = _Text(draw, splits=splits, filters=filters)
        for _ in range(draw(st.integers(1, max_einsums))):
            text.add_einsum()
        if loops and draw(st.booleans()):
            text.add_loop()
        return parse(text.render(), "random")

    strategy: SearchStrategy[Cascade] = draw_cascade()
    return strategy


def shapes(
    cascade: Cascade, *, min_size: int = 1, max_size: int = 4
) -> SearchStrategy[dict[str, int]]:
    """Return a strategy of shapes that bind a cascade: a size for every rank.

    Args:
        cascade: any cascade; shapes at which an index would leave its tensor are not drawn.
        min_size: least size of a rank that is open and no whole of a split.
        max_size: largest size of such a rank.
    """
    from hypothesis import assume
    from hypothesis import strategies as st

    roots = representatives(cascade)
    wholes = {roots[split.whole] for split in cascade.splits}
    fixed = {roots[rank.name] for rank in cascade.ranks if isinstance(rank.size, int)}
    free = sorted({roots[name] for name in cascade.rank_names} - wholes - fixed)

    @st.composite
    def draw_shape(draw: Any) -> dict[str, int]:
        sizes = {name: draw(st.integers(min_size, max_size)) for name in free}
        try:
            return bind(cascade, sizes)
        except EinfuseError:
            assume(False)
            raise

    strategy: SearchStrategy[dict[str, int]] = draw_shape()
    return strategy


@dataclass
class _Text:
    """A cascade's text while it grows: what is defined so far, and the lines that do it."""

    draw: Any
    splits: bool
    filters: bool
    ranks: list[str] = field(default_factory=list)
    split: tuple[str, str, str] | None = None
    tensors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(
        default_factory=lambda: {"init": [], "loop": [], "final": []}
    )
    iterated: str | None = None
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from hypothesis import strategies as st

        self.ranks = sorted(self.draw(st.sets(st.sampled_from(_RANKS), min_size=2, max_size=4)))
        if self.splits and self.draw(st.booleans()):
            whole = self.pick(self.ranks)
            self.split = (whole, f"{whole}1", f"{whole}0")
        for number in range(self.draw(st.integers(1, 3))):
            self.inputs.append(f"I{number}")
            self.tensors[f"I{number}"] = self.some(self.ranks, least=1, most=3)

    def pick(self, choices: Any) -> Any:
        from hypothesis import strategies as st

        return self.draw(st.sampled_from(list(choices)))

    def some(self, choices: Any, least: int = 0, most: int = 4) -> tuple[str, ...]:
        from hypothesis import strategies as st

        found = self.draw(
            st.lists(st.sampled_from(list(choices)), min_size=least, max_size=most, unique=True)
        )
        return tuple(found)

    def operand(self) -> str:
        name: str = self.pick(self.tensors)
        self.used.add(name)
        return name

    def access(self, name: str, ranks: tuple[str, ...] | None = None) -> str:
        ranks = self.tensors[name] if ranks is None else ranks
        return f"{name}[{','.join(rank.lower() for rank in ranks)}]"

    def add_einsum(self) -> None:
        kinds = ["product", "fold", "elementwise"] + ["view"] * (self.split is not None)
        {
            "product": self.add_product,
            "fold": self.add_fold,
            "elementwise": self.add_elementwise,
            "view": self.add_view,
        }[self.pick(kinds)]()

    def define(self, ranks: tuple[str, ...], expression: str, section: str = "init") -> str:
        name = f"T{len(self.tensors)}"
        self.sections[section].append(f"{self.access(name, ranks)} = {expression}")
        self.tensors[name] = ranks
        return name

    def filtered(self, access: str, ranks: tuple[str, ...]) -> str:
        """Return an access, perhaps with a filter between two of the variables of the space."""
        name, indices = access[:-1].split("[")
        places = indices.split(",") if indices else []
        if not self.filters or not places or len(ranks) < 2 or self.pick((True, True, False)):
            return access
        place = self.pick(range(len(places)))
        other = self.pick([r.lower() for r in ranks if r.lower() != places[place]])
        places[place] += ": " + self.pick(_FILTERS).format(a=places[place], b=other)
        return f"{name}[{','.join(places)}]"

    def add_product(self) -> None:
        a, b = self.operand(), self.operand()
        space = tuple(dict.fromkeys((*self.tensors[a], *self.tensors[b])))
        kept = self.some(space) if space else ()
        self.define(kept, f"{self.filtered(self.access(a), space)} * {self.access(b)}")

    def add_fold(self) -> None:
        a = self.operand()
        space = self.tensors[a]
        kept = self.some(space) if space else ()
        folded = ",".join(r.lower() for r in space if r not in kept)
        fold = f" :: {self.pick(('max', 'min', '+'))}({folded})" if folded else ""
        self.define(kept, self.filtered(self.access(a), space) + fold)

    def add_elementwise(self) -> None:
        form = self.pick(_ELEMENTWISE)
        a = self.operand()
        if "{y}" not in form:
            self.define(self.tensors[a], form.format(x=self.access(a)))
            return
        b = self.operand()
        space = tuple(dict.fromkeys((*self.tensors[a], *self.tensors[b])))
        self.define(space, form.format(x=self.access(a), y=self.access(b)))

    def add_view(self) -> None:
        assert self.split is not None
        whole, outer, inner = self.split
        a = self.operand()
        ranks = self.tensors[a]
        joined = f"{outer.lower()}*{inner}+{inner.lower()}"
        if whole in ranks and not {outer, inner} & set(ranks):
            parts = tuple(p for r in ranks for p in ((outer, inner) if r == whole else (r,)))
            indices = ",".join(joined if r == whole else r.lower() for r in ranks)
            self.define(parts, f"{a}[{indices}]")
        elif {outer, inner} <= set(ranks) and whole not in ranks:
            name = f"T{len(self.tensors)}"
            kept = tuple(whole if r == outer else r for r in ranks if r != inner)
            indices = ",".join(joined if r == whole else r.lower() for r in kept)
            self.sections["init"].append(f"{name}[{indices}] = {self.access(a)}")
            self.tensors[name] = kept
        else:
            self.define(ranks, self.access(a))

    def add_loop(self) -> None:
        """Add a recurrence along one rank of a tensor: an initialiser, a step, the last value."""
        choices = [name for name, ranks in self.tensors.items() if ranks]
        a = self.pick(choices)
        self.used.add(a)
        ranks = self.tensors[a]
        rank = self.pick(ranks)
        self.iterated, v = rank, rank.lower()
        state = f"T{len(self.tensors)}"
        self.tensors[state] = ranks

        def at(index: str) -> str:
            return f"{state}[{','.join(index if r == rank else r.lower() for r in ranks)}]"

        self.sections["init"].append(f"{at('0')} = {self.pick(('0', '-inf', '1'))}")
        form = self.pick(_RECURRENCES)
        old = at(v) if "exp" not in form else f"max({at(v)}, -1)"
        step = form.format(old=old, new=self.access(a))
        self.sections["loop"].append(f"{at(f'{v}+1')} = {step}")
        if self.pick((True, False)):
            self.define(ranks, f"{self.access(a)} - max({at(f'{v}+1')}, -1)", "loop")
        rest = tuple(r for r in ranks if r != rank)
        self.define(rest, at(rank), "final")

    def render(self) -> str:
        lines = ["rank " + ", ".join(self.ranks)]
        if self.split:
            whole, outer, inner = self.split
            lines.append(f"split {whole} -> {outer}, {inner}")
        if self.iterated:
            lines.append(f"iter {self.iterated.lower()} over {self.iterated}")
        declared = [f"{n}[{','.join(self.tensors[n])}]" for n in self.inputs if n in self.used]
        lines.append("input " + ", ".join(declared))
        for label, section in self.sections.items():
            if section:
                lines += [f"{label}:", *section]
        return "\n".join(lines) + "\n"

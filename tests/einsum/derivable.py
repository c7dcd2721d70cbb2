"""Random cascades for `derive`: folds that read folds, filters, views, absent values.

Plain random texts, for campaigns of thousands: no shrinking, one seed a cascade.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from einfuse.einsum.derivation.search import derive
from einfuse.einsum.derivation.verification import multiplied_inputs
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse

Arrays = dict[str, npt.NDArray[np.float64]]

SIZES = (
    {"K": 12, "P": 5, "KI": 3, "K0": 3},
    {"K": 7, "P": 11, "KI": 1, "K0": 1},
    {"K": 10, "P": 3, "KI": 5, "K0": 5},
)
"""Sizes above every literal of the texts, primes among them, and those of tiles."""

_FILTERS = ("k<4", "k>=2", "k!=3", "k<5", "k+3<K", "k%2==0")
_ROW_FILTERS = ("k<=p", "k+1<p", "k>p", "k<p & k+3>p", "k<4", "k+9<p")


class _Text:
    """A cascade in the making: what has been written, by its variables."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rows = self.random.random() < 0.45
        self.long = ["A", "B"]
        self.summaries: list[str] = []
        self.lines: list[str] = []

    def text(self) -> str:
        choose = self.random
        self.fold()
        for _ in range(choose.randint(2, 6)):
            choose.choice((self.fold, self.fold, self.map, self.map, self.free))()
        self.fold()
        made = [line.split("[")[0] for line in self.lines]
        outputs = {made[-1], *choose.sample(made, min(len(made), choose.randint(0, 2)))}
        ranks, shape = ("rank K, P", "K,P") if self.rows else ("rank K", "K")
        read = [name for name in "AB" if any(f"{name}[" in line for line in self.lines)]
        inputs = ", ".join(f"{name}[{shape}]" for name in read)
        listed = ", ".join(sorted(outputs))
        return "\n".join([ranks, f"input {inputs}", f"output {listed}", *self.lines])

    def fold(self) -> None:
        name = f"F{len(self.lines)}"
        index = "p" if self.rows else ""
        operator = self.random.choice(("max", "+", "+", "max", "min"))
        self.lines.append(f"{name}[{index}] = {self.element(2)} :: {operator}(k)")
        self.summaries.append(f"{name}[{index}]")

    def map(self) -> None:
        name = f"T{len(self.lines)}"
        index = "k,p" if self.rows else "k"
        self.lines.append(f"{name}[{index}] = {self.element(2)}")
        self.long.append(name)

    def free(self) -> None:
        name = f"G{len(self.lines)}"
        index = "p" if self.rows else ""
        self.lines.append(f"{name}[{index}] = {self.summary(1)}")
        self.summaries.append(f"{name}[{index}]")

    def access(self) -> str:
        """Return an access along k: bare, filtered, shifted or reversed."""
        choose = self.random
        name, kind = choose.choice((*self.long, "A")), choose.random()
        if kind < 0.72:
            index = "k"
        elif kind < 0.9:
            index = f"k: {choose.choice(_ROW_FILTERS if self.rows else _FILTERS)}"
        elif kind < 0.95:
            index = "k+1: k+1<K"
        else:
            index = "K-1-k"
        return f"{name}[{index}{',p' if self.rows else ''}]"

    def element(self, depth: int) -> str:
        """Return a value that varies along k."""
        choose, kind = self.random, self.random.random()
        if depth == 0 or kind < 0.15:
            return self.access()
        inner = self.element(depth - 1)
        other = self.summary(1) if choose.random() < 0.6 else self.element(depth - 1)
        match choose.randint(0, 12):
            case 0 | 1 | 2:
                return f"({inner} - {other})"
            case 3:
                return f"({inner} + {other})"
            case 4 | 5:
                return f"{inner} * {other}"
            case 6 | 7:
                return f"{inner} / {other}"
            case 8 | 9:
                return f"exp({inner} - {other})"
            case 10:
                return f"{choose.choice(('abs', 'sq', 'relu', 'exp'))}({inner})"
            case 11:
                return f"max({inner}, {other})"
            case _:
                return f"where(ge({self.access()}, 0), {inner}, -inf)"

    def summary(self, depth: int) -> str:
        """Return a value that does not vary along k."""
        choose = self.random
        if not self.summaries or choose.random() < 0.08:
            return choose.choice(("2", "0.5", "3"))
        one = choose.choice(self.summaries)
        if depth == 0 or choose.random() < 0.5:
            return one
        other = self.summary(depth - 1)
        forms = ("{0} + {1}", "{0} * {1}", "{0} / {1}", "{0} - {1}")
        calls = ("rsqrt(abs({0}))", "log(abs({0}))", "sqrt(abs({0}))", "sq({0})", "exp({0})")
        return f"({choose.choice((*forms, *calls)).format(one, other)})"


def derivable(seed: int) -> Cascade:
    """Return the random cascade of a seed; its rank is K."""
    return parse(_Text(seed).text(), f"seed {seed}")


def inputs_of(cascade: Cascade, sizes: Mapping[str, int], kind: str, seed: int) -> Arrays:
    """Return random inputs: mixed, negative, positive, huge, masked, or fully masked.

    What is added is -inf at half of its points where masked, at all where fully masked.
    """
    generator = np.random.default_rng(seed)
    found: Arrays = {}
    finite = multiplied_inputs(cascade)
    for tensor in cascade.input_tensors:
        values = generator.normal(size=tuple(sizes[rank] for rank in tensor.ranks))
        match kind:
            case "negative":
                values = -np.abs(values) - 0.1
            case "positive":
                values = np.abs(values) + 0.1
            case "huge":
                values = values * 1e4
            case "masked" if tensor.name not in finite:
                values[generator.random(values.shape) < 0.5] = -np.inf
                values[: len(values) // 2] = -np.inf
            case "fully masked" if tensor.name not in finite:
                values[:] = -np.inf
        found[tensor.name] = values
    return found


def differences(origin: Cascade, derived: Cascade, *, stable: bool) -> list[str]:
    """Return where a derived cascade gives other numbers than its origin, as sentences.

    A cascade that is unstable is held to inputs of usual size, where its origin overflows nowhere.
    """
    found = []
    kinds = ("mixed", "negative", "positive", "masked", "fully masked", "huge")
    own = {rank.name: rank.size for rank in origin.ranks if isinstance(rank.size, int)}
    for given in SIZES:
        sizes = given | own
        for seed, kind in enumerate(kinds if stable else kinds[:3]):
            inputs = inputs_of(origin, sizes, kind, seed)
            expected = run(origin, inputs, _known(origin, sizes))
            if not stable and any(np.isposinf(v).any() for v in expected.values()):
                continue
            values = run(derived, inputs, _known(derived, sizes))
            for name, want in expected.items():
                if not _close(want, values[name]):
                    found.append(f"{kind}, {sizes}: {name} is {values[name]}, expected {want}")
    return found


def _known(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    inner = {split.inner: sizes["K0"] for split in cascade.splits}
    return {rank: sizes[rank] for rank in sizes if rank in cascade.rank_names} | inner


def _close(want: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> bool:
    """Tell whether numbers are close where the origin's are finite."""
    finite = np.isfinite(want)
    scale = max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
    return want.shape == found.shape and bool(
        np.allclose(found[finite], want[finite], rtol=1e-7, atol=1e-8 * scale)
    )


def faults(origin: Cascade) -> list[str]:
    """Return where what is derived of a cascade gives other numbers, with the text."""
    found = []
    for derived in derive(origin, "K")[1:]:
        wrong = differences(origin, derived.cascade, stable=derived.stable)
        found += [f"{wrong[0]}\n{derived.text}"] if wrong else []
    return found

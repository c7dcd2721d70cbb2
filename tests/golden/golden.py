"""Golden results: what the product says today, so that a change of its insides shows.

``make golden`` compares, ``make golden-update`` writes anew; sections may be named. Numbers are
compared to 1e-12, texts byte for byte. Figures, times of this machine and searches that stop by
the clock are left out.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import einfuse as ef
from einfuse.studies import run_study

FOLDER = Path(__file__).with_name("data")
TOLERANCE = 1e-12
ACCOUNTINGS = ("published", "published-all-registers", "physical")
SHAPES = (
    {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64},
    {"B": 64, "H": 12, "M": 16384, "P": 16384, "E": 64, "F": 64},
    {"B": 4, "H": 16, "M": 4096, "P": 4096, "E": 128, "F": 128},
)
DESIGNS = (
    ("flat", None),
    ("fusemax", None),
    ("fusemax-architecture", None),
    ("fusemax-cascade", None),
    ("unfused", None),
    ("flash-attention-2", "a100"),
    ("flash-attention-3", "h100"),
    ("triton-attention", "h100"),
    ("triton-attention-backward", "h100"),
)
SEARCHES = (
    ("attention/1-pass", "fusemax", "latency", SHAPES[1]),
    ("attention/3-pass", "flat", "latency", SHAPES[2]),
    ("attention/3-pass", "fusemax", "energy", SHAPES[0]),
    ("peer/matmuls", "nvdla", "edp", {"M": 64, "N0": 32, "N1": 32, "N2": 32}),
)
STUDIES = ("accelforge", "analytic-vs-simulated", "costs", "footprint", "fusemax", "taxonomy")
CLOCK = re.compile(r"second|speed|rate|took|cpu|time", re.IGNORECASE)


def passes() -> Iterator[tuple[str, Any]]:
    """The proof of every cascade, as `einfuse passes` prints it."""
    for name in _cascades():
        yield name, str(ef.passes(ef.load_cascade(name))).splitlines()


def derive() -> Iterator[tuple[str, Any]]:
    """The cascades that follow from each one of the library."""
    for name in _cascades():
        try:
            found = ef.derive(ef.load_cascade(name))
        except ef.EinfuseError as error:
            yield name, str(error)
            continue
        yield name, [[str(one.passes), one.stable, one.text.splitlines()] for one in found]


def evaluate() -> Iterator[tuple[str, Any]]:
    """Every shipped design under every accounting."""
    for design, architecture in DESIGNS:
        loaded = ef.load_design(design, **({"architecture": architecture} if architecture else {}))
        for shape in SHAPES:
            for accounting in ACCOUNTINGS if not architecture else ("physical",):
                key = f"{design} {json.dumps(shape)} {accounting}"
                yield key, ef.evaluate(loaded, shape, accounting=accounting).to_json()


def mappings() -> Iterator[tuple[str, Any]]:
    """The optima of searches that end proven."""
    for cascade, architecture, objective, shape in SEARCHES:
        machine = ef.load_architecture(architecture)
        space = ef.MapSpace(ef.load_cascade(cascade), machine, shape)
        result = ef.find_best(space, ef.find_objective(objective, machine))
        yield f"{cascade} {architecture} {objective}", [result.score, result.gap]


def studies() -> Iterator[tuple[str, Any]]:
    """The tables of the studies."""
    for study in STUDIES:
        with tempfile.TemporaryDirectory() as out:
            run_study(study, Path(out))
            for path in sorted(Path(out).rglob("*.csv")):
                table = pd.read_csv(path, comment="#", dtype=str, keep_default_na=False)
                columns = [name for name in table.columns if not CLOCK.search(name)]
                yield f"{study}/{path.name}", {name: list(table[name]) for name in columns}


def compiled() -> Iterator[tuple[str, Any]]:
    """The instructions of every shipped kernel, compiled without a GPU."""
    from einfuse.kernels import check_all, list_tasks

    for check in check_all(list_tasks()):
        yield f"{check.kernel} {check.label} {check.arch}", check.to_row()


SECTIONS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    section.__name__: section for section in (passes, derive, evaluate, mappings, studies, compiled)
}


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """Say where two values differ, leaf by leaf.

    >>> list(differences({"a": [1.0, 2]}, {"a": [1.0 + 1e-14, 3]}))
    ['a.1: expected 2, found 3']
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            if key not in expected or key not in found:
                yield f"{place}{key}: only {'found' if key in found else 'expected'}"
            else:
                yield from differences(expected[key], found[key], f"{place}{key}.")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{place}{number}.")
    elif not _equal(expected, found):
        yield f"{place.rstrip('.')}: expected {expected!r}, found {found!r}"


def _equal(expected: Any, found: Any) -> bool:
    first, second = _number(expected), _number(found)
    if first is None or second is None:
        return bool(expected == found)
    return math.isclose(first, second, rel_tol=TOLERANCE) or (first != first and second != second)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _cascades() -> tuple[str, ...]:
    from einfuse.einsum import names

    return names()


def main(arguments: list[str]) -> int:
    """Compare the named sections (all, where none is named), or write them; 1 where they differ."""
    warnings.simplefilter("ignore")
    update = "--update" in arguments
    wanted = [name for name in arguments if name != "--update"] or list(SECTIONS)
    failed = False
    for name in wanted:
        # through JSON, so that both sides have its types
        found = json.loads(json.dumps(dict(SECTIONS[name]()), default=str))
        path = FOLDER / f"{name}.json"
        if update:
            FOLDER.mkdir(exist_ok=True)
            lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
            path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
            continue
        lines = list(differences(json.loads(path.read_text(encoding="utf-8")), found))
        print(f"{name}: {len(found)} entries, {len(lines)} differences", flush=True)
        for line in lines[:20]:
            print(f"  {line[:200]}")
        failed |= bool(lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

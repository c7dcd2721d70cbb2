"""``einfuse derive``, run as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from einfuse.einsum.language.parser import parse

TEXT = """rank M = 24
input X[M]
output L
G[] = X[m] :: max(m)
S[] = exp(X[m] - G[]) :: +(m)
L[] = G[] + log(S[])
"""

LONG = """rank M
input X[M]
output Y
S[] = abs(X[m]) :: +(m)
Y[m] = X[m] / S[]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lse.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_json_lists_cascades_with_costs_and_steps(einfuse: Callable[..., Any], file: Path) -> None:
    done = einfuse("derive", str(file), "--rank", "M", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    keys = {"text", "passes", "operations", "footprint", "steps", "exact", "stable"}
    assert all(keys <= set(derived) for derived in found)
    assert found[0]["steps"] == []
    assert {derived["passes"] for derived in found} == {1, 2}
    one = next(d for d in found if d["passes"] == 1 and d["stable"] and d["sweeps"] == 1)
    assert one["exact"] is True
    assert one["steps"][-1]["text"] == one["text"]
    assert one["operations"]["exp"] == 26  # one for each element, one for each of two tiles
    assert parse(one["text"]).loop


def test_formulas_stand_where_sizes_are_open(einfuse: Callable[..., Any]) -> None:
    found = json.loads(einfuse("derive", "attention/3-pass-deferred", "--json").stdout)
    assert found[0]["operations"]["divide"] == "F*P"


def test_the_shape_goes_into_the_texts(einfuse: Callable[..., Any]) -> None:
    arguments = ("derive", "attention/3-pass-deferred", "--shape", "M=64,M0=16", "--json")
    found = json.loads(einfuse(*arguments).stdout)
    assert any("M0 = 16" in derived["text"] for derived in found)


def test_the_listing_explains_each_step(einfuse: Callable[..., Any], file: Path) -> None:
    done = einfuse("derive", str(file))
    assert done.returncode == 0
    assert "S moves to a new G by the factor exp(G - G')" in done.stdout
    assert "iter m1 over M1" in done.stdout
    assert "# in floating point: safe" in done.stdout


def test_the_listing_says_why_no_fewer_passes_exist(
    einfuse: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text(LONG, encoding="utf-8")
    done = einfuse("derive", str(path))
    assert "# no fewer: Y is as long as M and depends on S" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rank", "Z"), "Z"),
        (("--shape", "Z=4"), "found Z"),
        (("--shape", "M=0"), "at least 1"),
        (("--shape", "M0=5"), "M0"),
    ],
)
def test_what_the_user_gets_wrong_exits_with_two(
    einfuse: Callable[..., Any], file: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("derive", str(file), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_does_not_exist_exits_with_two(einfuse: Callable[..., Any]) -> None:
    assert einfuse("derive", "no/such").returncode == 2


def test_a_time_limit_gives_the_best_so_far(einfuse: Callable[..., Any]) -> None:
    done = einfuse("derive", "attention/3-pass", "--seconds", "0", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["passes"] == 3

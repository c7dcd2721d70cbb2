"""``einfuse passes``, run as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import einfuse as ef

SPT = """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
S[m,p] = clamp(QK[m,p], -10, 10)
GM[p] = S[m,p] :: max(m)
SN[m,p] = exp(S[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
SNV[f,p] = SN[m,p] * V[f,m]
AV[f,p] = SNV[f,p] / SD[p]
"""
POWER = """
rank T, K
iter t over T
input X0[K]
output Y
init:
X[0,k] = X0[k]
loop:
N[t] = sq(X[t,k]) :: +(k)
X[t+1,k] = X[t,k] / N[t]
final:
Y[k] = X[T,k]
"""


def test_text_shows_counts_witness_and_footprint(einfuse: Callable[..., Any]) -> None:
    done = einfuse("passes", "attention/3-pass", "--rank", "M")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "attention/3-pass over M: passes 3, sweeps 3",
        "  level M: passes 3, sweeps 3",
        "    live words: M + Max(2*E, 2*F) + 1",
        "    K: passes 3  QK -> GM -> SN -> SD -> A",
        "      GM | SN: GM is folded over m: complete only after the whole of M",
        "      SD | A: SD is folded over m: complete only after the whole of M",
        "    V: passes 1  AV",
    ]


def test_the_rank_that_was_chosen_is_said(einfuse: Callable[..., Any]) -> None:
    done = einfuse("passes", "attention/3-pass")
    assert "M is swept most often; --rank asks about another" in done.stdout


def test_json_has_the_documented_keys(einfuse: Callable[..., Any]) -> None:
    found = json.loads(einfuse("passes", "attention/1-pass", "--json").stdout)
    assert (found["cascade"], found["rank"]) == ("attention/1-pass", "M")
    assert (found["passes"], found["sweeps"], found["per_iteration"]) == (1, 1, False)
    assert found["roots"] == {"K": 1, "V": 1}
    assert found["levels"] == {
        "M1": {"passes": 1, "sweeps": 1},
        "M0": {"passes": 2, "sweeps": 2},
    }
    assert found["barriers"] == []
    assert found["footprint"]["M1"] == "E*M0 + E + F*M0 + F + 2"
    (barrier,) = json.loads(einfuse("passes", "attention/1-pass", "--rank", "M0", "--json").stdout)[
        "barriers"
    ]
    assert set(barrier) == {"from", "to", "tensor", "reason"}
    assert (barrier["from"], barrier["to"]) == ("RM", "SLN")


def test_json_places_every_einsum(einfuse: Callable[..., Any]) -> None:
    found = json.loads(einfuse("passes", "attention/2-pass", "--json").stdout)
    placed = {e["name"]: (e["pass"], e["sweep"]) for e in found["einsums"]}
    assert placed["QK"] == (1, 1)
    assert placed["PLM"] == (2, 2)
    assert placed["A"] == (2, 3)
    assert [b["to"] for b in found["sweep_barriers"]] == ["PLM", "A"]


def test_slopes_and_bounded_maxima_of_a_file(einfuse: Callable[..., Any], tmp_path: Path) -> None:
    power = tmp_path / "power.txt"
    power.write_text(POWER)
    found = json.loads(einfuse("passes", str(power), "--rank", "K", "--json").stdout)
    assert (found["passes"], found["per_iteration"]) == (1, True)
    clamped = tmp_path / "spt.txt"
    clamped.write_text(SPT)
    found = json.loads(einfuse("passes", str(clamped), "--json").stdout)
    assert (found["passes"], found["bounded"], found["passes_if_bounded"]) == (2, ["GM"], 1)
    assert "only guards an exponential" in einfuse("passes", str(clamped)).stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_a_picture(einfuse: Callable[..., Any], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cascade.{suffix}"
    assert einfuse("passes", "attention/2-pass", "--plot", str(path)).returncode == 0
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("attention/3-pass", "--rank", "Z"), "one of E, F, P, M; found 'Z'"),
        (("attention/4-pass",), "no cascade and no file is called 'attention/4-pass'"),
        (("attention/3-pass", "--shape", "M=4K"), "ranks E, F, P without a size"),
        (("attention/3-pass", "--shape", "Z=4"), "has no rank 'Z'"),
        (("attention/3-pass", "--plot", "x.docx"), "ending in .png, .svg or .pdf"),
        (
            ("attention/3-pass", "--plot", "nowhere/x.png"),
            "cannot be written: there is no folder nowhere; make it first",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    einfuse: Callable[..., Any], arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("passes", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_python_says_the_same() -> None:
    cascade = ef.parse(SPT)
    assert ef.passes(cascade, "M").roots == {"K": 2, "V": 1}
    assert ef.passes(cascade).rank == "M"


def test_a_shape_gives_live_words_as_numbers(einfuse: Callable[..., Any]) -> None:
    """3-pass: M + Max(2*E, 2*F) + 1; 1-pass: tiles of K and V, and E + F + 2 for a query."""
    done = einfuse("passes", "attention/3-pass", "--shape", "E=64,F=32,P=1K,M=4K")
    assert f"live words at level M: {4096 + 128 + 1:,} for one point" in done.stdout
    sizes = "E=64,F=32,P=1K,M=4K,M0=16"
    done = einfuse("passes", "attention/1-pass", "--shape", sizes, "--json")
    assert json.loads(done.stdout)["live_words"]["M1"] == 16 * (64 + 32) + 64 + 32 + 2

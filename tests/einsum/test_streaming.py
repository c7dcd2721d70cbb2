"""Running folds: what starts where, what follows after the loop."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.localisation import localise
from einfuse.einsum.derivation.normal_form import NotDerivableError, normalise
from einfuse.einsum.derivation.streaming import stream
from einfuse.einsum.derivation.tiling import tile
from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_einsum
from einfuse.einsum.library.cascades import load

HEAD = "rank M, P\ninput X[M,P], W[M]\noutput {outputs}\n"

pytestmark = pytest.mark.filterwarnings("ignore:input")


def tiled(lines: str, outputs: str) -> tuple[Cascade, Dataflow]:
    origin = parse(HEAD.format(outputs=outputs) + lines)
    return origin, Dataflow(tile(normalise(origin, "m"), "m", "M1", "M0", None), "m1")


def streamed(lines: str, outputs: str = "Y") -> Cascade:
    origin, flow = tiled(lines, outputs)
    found = stream(flow).cascade
    assert Verification(origin, "M").agrees(found)
    return found


def starts(found: Cascade) -> dict[str, str]:
    return {
        e.name: render_einsum(e).split(" = ")[1] for e in found.init if "[0" in render_einsum(e)
    }


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("G[p] = X[m,p] :: max(m)\nY[p] = exp(X[m,p] - G[p]) :: +(m)", "-inf"),
        ("G[p] = X[m,p] :: min(m)\nY[p] = exp(G[p] - X[m,p]) :: +(m)", "inf"),
        ("G[p] = abs(X[m,p]) :: max(m)\nY[p] = X[m,p] / G[p] :: +(m)", "0"),
        ("G[p] = sq(X[m,p]) :: +(m)\nY[p] = X[m,p] / G[p] :: +(m)", "0"),
    ],
)
def test_a_fold_starts_at_its_identity(lines: str, expected: str) -> None:
    assert starts(streamed(lines))["RG"] == expected


@pytest.mark.parametrize(
    ("definition", "reader", "expected"),
    [
        ("H[p] = S[p] / M", "sq(X[m,p] - H[p])", "0"),
        ("H[p] = rsqrt(S[p] / M + 0.1)", "X[m,p] * H[p]", "1"),
        ("H[p] = sqrt(S[p] + 4)", "X[m,p] / H[p]", "2"),
        ("H[p] = log(S[p])", "exp(X[m,p] - H[p])", "-inf"),
        ("H[p] = max(S[p], W[0])", "exp(X[m,p] - H[p])", "max(0, W[0])"),
    ],
)
def test_a_map_of_folds_starts_at_a_value_that_does_no_harm(
    definition: str, reader: str, expected: str
) -> None:
    lines = f"S[p] = sq(X[m,p]) :: +(m)\n{definition}\nY[p] = {reader} :: +(m)"
    assert starts(streamed(lines))["RH"] == expected


def test_folds_without_a_correction_follow_in_the_final_section() -> None:
    found = streamed(
        "G[p] = X[m,p] :: max(m)\nS[p] = exp(X[m,p] - G[p]) :: +(m)\n"
        "Y[p] = tanh(exp(X[m,p] - G[p]) / S[p]) :: +(m)"
    )
    assert "RS" in {e.name for e in found.loop}
    assert [e.name for e in found.final] == ["Y"]


def test_outputs_that_run_are_read_at_the_end() -> None:
    found = streamed("G[p] = X[m,p] :: max(m)\nY[p] = exp(X[m,p] - G[p]) :: +(m)", "Y, G")
    assert sorted(map(render_einsum, found.final)) == ["G[p] = RG[M1,p]", "Y[p] = RY[M1,p]"]


def test_running_sums_of_a_mean_count_their_points() -> None:
    found = streamed("S[p] = X[m,p] / M\nY[p] = sq(X[m,p] - S[p]) :: +(m)")
    assert "RS[m1+1,p] = RS0[m1+1,p] / ((m1 + 1) * M0)" in map(render_einsum, found.loop)


@pytest.mark.parametrize("rewrite", [stream, localise])
def test_without_a_barrier_there_is_nothing_to_do(rewrite: object) -> None:
    _, flow = tiled("Y[p] = X[m,p]", "Y")
    with pytest.raises(NotDerivableError, match="no"):
        rewrite(flow)  # type: ignore[operator]


def test_localised_variances_merge_by_counts() -> None:
    origin, flow = tiled("S[p] = X[m,p] / M\nY[p] = sq(X[m,p] - S[p]) :: +(m)", "Y")
    found = localise(flow).cascade
    assert Verification(origin, "M").agrees(found)
    assert "Y[p] = LY[m1,p] + M0 * sq(D[m1,p]) :: +(m1)" in map(render_einsum, found.init)


def test_a_cascade_in_tiles_already_runs_over_the_outer_rank() -> None:
    found = stream(Dataflow(load("attention/2-pass"), "m1")).cascade
    assert found.iterations[0].rank == "M1"
    assert Verification(load("attention/3-pass"), "M").agrees(found)

"""``einfuse map`` and ``einfuse explain`` from the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from .conftest import Command

SHAPE = "B=2,H=2,M=512,P=512,E=64,F=64"


def mapping(*more: str) -> tuple[str, ...]:
    return ("map", "--cascade", "attention/1-pass", "--architecture", "fusemax", "--shape", SHAPE,
            *more)  # fmt: skip


COUNTED = ("map", "--cascade", "peer/attention", "--architecture", "nvdla",
           "--constraints", "accelforge-nvdla")  # fmt: skip
SMALL = "B=1,H=1,M=16,P=16,E=8,F=8"


def test_counting_as_accelforge_does_is_searched_and_written(
    einfuse: Command, tmp_path: Path
) -> None:
    out = tmp_path / "found.yaml"
    done = einfuse(*COUNTED, "--shape", SMALL, "--objective", "latency,energy", "--json",
                   "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"mapping", "optimal", "gap", "candidates", "structures", "infeasible"} <= set(found)
    assert found["optimal"] and found["gap"] == 0
    assert "composition: sequential" in out.read_text()
    again = einfuse("evaluate", "--design", str(out), "--shape", SMALL, "--json")
    evaluated = json.loads(again.stdout)
    for name in set(evaluated) - {"design"}:
        assert evaluated[name] == found[name], name
    why = einfuse("explain", str(out), "--seconds", "0.5")
    assert why.returncode == 0, why.stderr
    assert "twice of a resource" in why.stdout


def test_the_file_that_comes_out_evaluates_to_the_same_numbers(
    einfuse: Command, tmp_path: Path
) -> None:
    out = tmp_path / "found.yaml"
    done = einfuse(*mapping("--json", "--out", str(out)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["optimal"] and found["gap"] == 0
    assert found["candidates"] > 0 and found["structures"] > 0
    again = einfuse("evaluate", "--design", str(out), "--shape", SHAPE, "--json")
    assert again.returncode == 0, again.stderr
    evaluated = json.loads(again.stdout)
    for name in set(evaluated) - {"design"}:
        assert evaluated[name] == found[name], name
    ran = einfuse("simulate", "--design", str(out), "--shape", SHAPE, "--json")
    assert ran.returncode == 0, ran.stderr
    simulated = json.loads(ran.stdout)
    assert simulated["cycles"] == pytest.approx(simulated["analytic"]["cycles"], rel=1e-12)
    assert simulated["cycles"] >= found["cycles"]  # with the fill and drain of its offsets


def test_what_is_charged_on_request_is_searched_and_written(
    einfuse: Command, tmp_path: Path
) -> None:
    out = tmp_path / "found.yaml"
    include = ("--include", "leakage,interconnect", "--include", "multicast,ports")
    done = einfuse("map", "--cascade", "attention/1-pass", "--architecture", "fusemax-7nm",
                   "--shape", SHAPE, "--objective", "energy", *include, "--json",
                   "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["include"] == ["leakage", "interconnect", "multicast", "ports"]
    assert found["energy_by_component_pj"]["buffer.leakage"] > 0
    again = einfuse("evaluate", "--design", str(out), "--shape", SHAPE, *include, "--json")
    assert again.returncode == 0, again.stderr
    evaluated = json.loads(again.stdout)
    for name in set(evaluated) - {"design"}:
        assert evaluated[name] == found[name], name
    why = einfuse("explain", str(out), "--seconds", "0.5")
    assert why.returncode == 0, why.stderr


def test_map_names_the_figures_that_an_option_needs(einfuse: Command) -> None:
    done = einfuse(*mapping("--objective", "energy", "--include", "leakage"))
    assert done.returncode == 2
    assert "set dram.leakage_mw, buffer.leakage_mw" in done.stderr


def test_explain_says_what_binds_and_what_comes_next(einfuse: Command, tmp_path: Path) -> None:
    out, cascade = tmp_path / "found.yaml", tmp_path / "product.txt"
    cascade.write_text("rank M, N, K\ninput A[M,K], B[K,N]\noutput Z\nZ[m,n] = A[m,k] * B[k,n]\n")
    done = einfuse("map", "--cascade", str(cascade), "--architecture", "fusemax", "--shape",
                   "M=512,N=512,K=64", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = einfuse("explain", str(out), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # by hand: 512 x 512 x 64 / 65536 cycles at 940 MHz are 272 ns; 524,288 + 131,072 bytes at
    # 400 GiB/s are 1,526 ns, half of it with twice the bandwidth
    assert found["bound"] == "dram"
    assert found["resource_seconds"]["dram"] == pytest.approx(655360 / 429496729600)
    assert found["worth"]["dram.bandwidth_bytes_per_s"] == pytest.approx(0.5)
    assert found["worth"]["array_2d.rows"] == pytest.approx(1)
    on_vector, dram = 512 * 512 * 64 / 256 / 940e6, 655360 / 429496729600
    assert found["alternatives"]["Z on array_2d"] == pytest.approx(on_vector / dram)
    text = einfuse("explain", str(out))
    for words in ("compute Z on array_2d", "bound by dram", "without a decision"):
        assert words in text.stdout


def test_constraints_are_kept(einfuse: Command, tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.yaml"
    constraints.write_text("tiles: {M0: 128, P: 256}\nunits: {PRM: array_2d}\n")
    done = einfuse(*mapping("--json", "--constraints", str(constraints)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["splits"] == {"M0": 128}
    assert found["per_einsum"]["PRM"]["unit"] == "array_2d"


def test_fixed_loops_and_relations_are_counted(einfuse: Command, tmp_path: Path) -> None:
    constraints, out = tmp_path / "constraints.yaml", tmp_path / "found.yaml"
    constraints.write_text(
        "relations: 'P <= array_2d.columns / 2'\nparallel: {QK: {M: rows, P: columns}}\n"
        "order: [P, M]\ninnermost: {QK: E}\n"
    )
    shape = "B=1,H=1,M=512,P=512,E=16,F=16"
    arguments = ("map", "--cascade", "attention/3-pass", "--architecture", "fusemax", "--shape",
                 shape, "--constraints", str(constraints), "--json", "--out", str(out))  # fmt: skip
    done = einfuse(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["infeasible"]["relation P <= array_2d.columns / 2"] > 0
    text = out.read_text()
    assert "parallel M over rows" in text
    constraints.write_text("relations: [P > 512]\n")
    done = einfuse(*arguments)
    assert done.returncode == 2
    assert "the constraint relations[0] (P > 512) leaves no mapping" in done.stderr


def test_a_front_has_no_point_that_another_beats(einfuse: Command) -> None:
    shape = "B=1,H=1,M=64,P=64,E=16,F=16"
    done = einfuse("map", "--cascade", "attention/3-pass", "--architecture", "flat",
                   "--shape", shape, "--objective", "latency,buffer", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    points = [(p["seconds"], p["peak_bytes"].get("buffer", 0)) for p in found["front"]]
    assert points == sorted(points)
    assert all(b[1] < a[1] for a, b in itertools.pairwise(points))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (mapping("--objective", "speed"), "no objective 'speed'"),
        (mapping("--seconds", "0"), "more than 0"),
        (
            mapping("--set", "buffer.bytes=1,staging.bytes=1"),
            "the smallest needs 1 bytes more than buffer has",
        ),
        ((*COUNTED, "--shape", "B=1,H=1,M=8,P=8,E=8"), "give F=... in the shape (--shape)"),
        ((*COUNTED, "--shape", SMALL + ",G=2"), "no rank 'G'"),
        (mapping("--constraints", "none.yaml"), "none.yaml"),
        (mapping("--constraints", "accelforge"), "did you mean 'accelforge-nvdla'"),
        (mapping("--constraints", "accelforge-nvdla"), "knows no iterative ranks"),
        (
            ("map", "--cascade", "attention/1-pass", "--architecture", "flat", "--shape",
             "B=1,H=1,M=64,P=64,E=16"),
            "rank F without a size: give F=... in the shape (--shape)",
        ),
        (
            ("map", "--cascade", "attention/1-pass", "--architecture", "fusemax", "--shape",
             SHAPE + ",G=2"),
            "no rank 'G'",
        ),
        (mapping("--out", "no/such/mapping.yaml"), "there is no folder no/such; make it first"),
        (("explain", "none.yaml"), "no such mapping file"),
        (("explain", "none.yaml", "--seconds", "nan"), "more than 0"),
    ],
)  # fmt: skip
def test_bad_input_exits_with_2_and_says_what(
    einfuse: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse(*arguments)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", ["3", "[P]", "{1: 2}"])
def test_a_mapping_without_a_shape_is_not_explained(
    einfuse: Command, tmp_path: Path, shape: str
) -> None:
    path = tmp_path / "mapping.yaml"
    content = {"schema": 1, "name": "given", "cascade": "attention/3-pass", "architecture": "flat"}
    lines = [f"{key}: {value}" for key, value in content.items()]
    leaf = "mapping: [compute QK on array_1d]"
    path.write_text("\n".join([*lines, leaf, f"found: {{objective: latency, shape: {shape}}}"]))
    done = einfuse("explain", str(path))
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert "the objective and the shape" in done.stderr

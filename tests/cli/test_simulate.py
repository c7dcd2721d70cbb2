"""``einfuse simulate``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SHAPE = "B=1,H=1,M=1K,P=1K,E=64,F=64"
HUGE = "B=1,H=1,M=256K,P=256K,E=64,F=64"
NAMES = ("cycles", "seconds", "utilization", "peak_bytes", "dram_bytes")


def test_json_has_simulated_and_analytic_under_the_same_names(einfuse: Any) -> None:
    done = einfuse("simulate", "--design", "fusemax", "--shape", SHAPE, "--json")
    found = json.loads(done.stdout)
    assert {name: found[name] for name in NAMES} == found["analytic"]
    assert found["stalls"]["array_2d"]["unit"] > 0


def test_overheads_are_charged_and_said(einfuse: Any) -> None:
    done = einfuse("simulate", "--design", "fusemax", "--shape", SHAPE, "--overhead", "drain")
    assert done.returncode == 0
    assert "overheads: drain" in done.stdout
    assert "array_1d: busy" in done.stdout


def test_the_trace_is_in_the_trace_event_format(einfuse: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = einfuse(
        "simulate", "--design", "fusemax", "--shape", SHAPE, "--overhead", "all",
        "--trace", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = json.loads(path.read_text())["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(rows.values()) == {"array_2d", "array_1d", "dram"}
    tasks = [event for event in events if event["ph"] == "X"]
    assert len(tasks) == 11 * 16 + 1 + 1 + 2 * 4  # Einsums x tiles, AV, fetches of Q, K and V
    for event in tasks:
        assert event["tid"] in rows
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    for row in rows:  # a unit does one task at a time
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in tasks if e["tid"] == row)
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(own))


def test_a_trace_that_is_too_large_offers_sampling(einfuse: Any, tmp_path: Path) -> None:
    large = ("simulate", "--design", "fusemax", "--shape", "B=1,H=1,M=128K,P=128K,E=64,F=64")
    path = str(tmp_path / "out.json")
    done = einfuse(*large, "--trace", path)
    assert done.returncode == 2
    assert "--sample 7" in done.stderr
    assert not Path(path).exists()
    small = ("simulate", "--design", "fusemax", "--shape", SHAPE, "--trace", path)
    assert "--trace-limit 228" in einfuse(*small, "--trace-limit", "100").stderr
    assert einfuse(*large, "--trace", path, "--sample", "2000").returncode == 0
    tasks = [e for e in json.loads(Path(path).read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["args"]["tile"] % 2000 for event in tasks if event["name"] == "QK"} == {0}


@pytest.mark.parametrize("design", ["fusemax", "fusemax-architecture", "flat", "unfused"])
def test_the_plot_is_a_picture(einfuse: Any, tmp_path: Path, design: str) -> None:
    path = tmp_path / "out.png"
    done = einfuse("simulate", "--design", design, "--shape", SHAPE, "--plot", str(path))
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shape", "B=1,H=1,M=1K,P=256,E=64,F=64", "--strict"], "deadlock: SPD on tile 1"),
        (["--overhead", "gravity"], "no overhead 'gravity'"),
        (["--set", "dram.bandwidth_bytes_per_s=0"], "dram.bandwidth_bytes_per_s"),
        (["--set", "buffer.bytes=1000"], "no tile of queries fits the buffer"),
        (["--overhead", "drain,gravity"], "no overhead 'gravity'"),
        (["--set", "array_3d.lanes=2"], "no parameter 'array_3d.lanes'"),
        (["--set", "dram.bandwidth_bytes_per_s=nan"], "needs a finite number, found 'nan'"),
        (["--plot", "out.nothing"], "expected a figure's name, ending in .png, .svg or .pdf"),
        (
            ["--plot", "/nowhere/out.png"],
            "/nowhere/out.png: cannot be written: there is no folder /nowhere",
        ),
        (["--plot", "/tmp"], "/tmp: cannot be written: it is a folder"),
        (
            ["--trace", "/nowhere/out.json"],
            "/nowhere/out.json: cannot be written: there is no folder",
        ),
    ],
)
def test_what_is_wrong_is_said(einfuse: Any, more: list[str], words: str) -> None:
    arguments = ["simulate", "--design", "fusemax", "--shape", SHAPE, *more]
    done = einfuse(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_functional_prints_the_largest_error(einfuse: Any) -> None:
    small = (
        "simulate", "--design", "fusemax", "--shape", "B=1,H=2,M=16,P=8,E=4,F=4",
        "--set", "array_2d.rows=4", "--set", "array_2d.columns=4", "--functional",
    )  # fmt: skip
    found = json.loads(einfuse(*small, "--json").stdout)
    assert found["max_error"] < 1e-12
    # while the last tiles of a head are worked on, the first ones of the next are there as well
    assert found["live_bytes"]["buffer"] > found["peak_bytes"]["buffer"]
    assert found["tallied"]["peak_bytes"] == found["peak_bytes"]
    dram = found["tallied"]["words"]["dram"]
    assert 2 * (dram["reads"] + dram["writes"]) == found["dram_bytes"]
    assert "max error" in einfuse(*small).stdout
    done = einfuse("simulate", "--design", "fusemax", "--shape", HUGE, "--functional")
    assert done.returncode == 2
    assert "choose a smaller shape" in done.stderr

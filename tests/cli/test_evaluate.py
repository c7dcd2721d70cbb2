"""``einfuse evaluate``, ``study`` and ``schema`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from einfuse.mapper import load_design
from einfuse.simulator import evaluate

from .conftest import Command

SHAPE = "B=64,H=12,M=4096,P=4096,E=64,F=64"


def test_json_has_the_names_of_the_python_result(einfuse: Command) -> None:
    done = einfuse("evaluate", "--design", "fusemax", "--shape", SHAPE, "--accounting",
                   "published", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # by hand: 64 * 12 heads, 16 x 16 tiles, 2D work of 2E + 9 = 137 cycles, 1D of 2F + 10 a tile
    # and F a tile of queries at the end; the vector unit is the longer one
    tiles = 64 * 12 * 16
    assert result["cycles"] == tiles * (16 * (2 * 64 + 10) + 64)
    assert result["seconds"] == pytest.approx(result["cycles"] / 940e6)
    assert result["bound"] == "array_1d"
    assert result["utilization"]["array_1d"] == pytest.approx(1)
    assert result["per_einsum"]["QK"]["cycles"] == tiles * 16 * 64
    assert result["area_um2"] is None


def test_the_table_shows_units(einfuse: Command) -> None:
    done = einfuse("evaluate", "--design", "fusemax", "--shape", SHAPE, "--set",
                   "array_1d.lanes=512")  # fmt: skip
    assert done.returncode == 0
    for word in ("cycles", "bytes", "pJ", "um^2", "array_2d"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--design", "fusemx", "--shape", SHAPE), "did you mean 'fusemax'"),
        (("--design", "fusemax", "--shape", "B=1,H=1,M=4096,P=4096,E=64"), "rank F has no size"),
        (("--design", "fusemax", "--shape", SHAPE + ",G=1"), "no rank 'G'"),
        (("--design", "fusemax", "--shape", "B=1,H=1,M=0,P=1,E=1,F=1"), "at least 1"),
        (("--design", "fusemax", "--shape", "B=1,H=1,M=-4,P=1,E=1,F=1"), "whole size"),
        (
            ("--design", "fusemax", "--shape", SHAPE, "--set", "array_1d.lane=2"),
            "did you mean 'array_1d.lanes'",
        ),
        (("--design", "fusemax", "--shape", SHAPE, "--set", "array_1d.lanes=x"), "needs a number"),
        (("--design", "fusemax", "--shape", SHAPE, "--set", "clock_hz=0"), "above 0"),
        (("--design", "fusemax", "--shape", SHAPE, "--set", "clock_hz=nan"), "finite number"),
        (("--design", "fusemax", "--shape", SHAPE, "--set", "buffer.bytes=4096"), "no tile"),
        (("--design", "fusemax", "--shape", SHAPE, "--accounting", "paper"), "no accounting"),
        (("--design", "none.yaml", "--shape", SHAPE), "no such design file"),
    ],
)
def test_bad_input_exits_with_2_and_says_what(
    einfuse: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("evaluate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_broken_pipeline_is_a_warning_when_published_and_a_wait_otherwise(
    einfuse: Command,
) -> None:
    shape = "B=1,H=1,M=4096,P=256,E=64,F=64"
    published = einfuse("evaluate", "--design", "fusemax", "--shape", shape, "--accounting",
                        "published", "--json")  # fmt: skip
    physical = einfuse("evaluate", "--design", "fusemax", "--shape", shape, "--json")
    assert "warning: fusemax: SPD reads RD of the tile before" in published.stderr
    first, second = json.loads(published.stdout), json.loads(physical.stdout)
    assert second["cycles"] > first["cycles"]


def test_a_bad_yaml_file_names_file_and_line(einfuse: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("schema: 1\nname: [unclosed\n")
    done = einfuse("evaluate", "--design", str(path), "--shape", SHAPE)
    assert done.returncode == 2
    assert f"{path}:3:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_of_an_architecture_names_its_parts(einfuse: Command) -> None:
    done = einfuse("schema", "architecture")
    schema = json.loads(done.stdout)
    assert {"memories", "units", "clock_hz"} <= set(schema["properties"])
    assert einfuse("schema", "mapping").returncode == 2


def test_options_and_sources_are_asked_for_by_name(einfuse: Command, tmp_path: Path) -> None:
    design = tmp_path / "mine.yaml"
    design.write_text("extends: fusemax\nname: mine\narchitecture: fusemax-7nm\n")
    asked = ("evaluate", "--design", str(design), "--shape", SHAPE)
    done = einfuse(*asked, "--include", "leakage,ports", "--include", "multicast", "--sources",
                   "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["include"] == ["leakage", "multicast", "ports"]
    assert result["energy_by_component_pj"]["array_2d.leakage"] > 0
    line = next(row for row in result["sources"] if row["path"] == "buffer.read_pj")
    assert line["unit"] == "pJ" and "TPUv4i" in line["source"]
    text = einfuse(*asked, "--include", "ports", "--sources").stdout
    assert "accounting physical + ports" in text and "from 5.98 um2/bit x 0.059" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--include", "leakage"), "set dram.leakage_mw, buffer.leakage_mw"),
        (("--include", "leakage,,ports"), "--include: expected names"),
        (("--include", "wires"), "no option 'wires'"),
        (("--include", "ports", "--accounting", "published"), "options of the accounting physical"),
    ],
)
def test_options_without_figures_are_refused(
    einfuse: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("evaluate", "--design", "fusemax", "--shape", SHAPE, *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stdout == ""


def test_a_result_of_many_points_says_that_it_shows_the_first() -> None:
    shape = {"B": 1, "H": 1, "M": [1024, 2048, 4096], "P": 1024, "E": 64, "F": 64}
    found = evaluate(load_design("fusemax"), shape)
    assert "the first of 3 points" in str(found)
    assert "points" not in str(evaluate(load_design("fusemax"), {**shape, "M": 1024}))

"""``einfuse zoo``, and ``--set`` of an algorithm's parameters."""

from __future__ import annotations

import json

from .conftest import Command


def test_the_zoo_is_a_table_and_json(einfuse: Command) -> None:
    done = einfuse("zoo", "--family", "dense")
    assert done.returncode == 0, done.stderr
    assert "attention/1-pass" in done.stdout
    assert "attention/window" not in done.stdout
    found = {facts["name"]: facts for facts in json.loads(einfuse("zoo", "--json").stdout)}
    assert found["attention/3-pass"]["passes_over_keys"] == 3
    assert found["attention/3-pass"]["passes_over_queries"] == 1
    assert found["attention/window"]["parameters"]["window"]["default"] == 512
    assert "StreamingLLM" in found["attention/window"]["implements"]


def test_what_is_simplified_is_in_the_table(einfuse: Command) -> None:
    found = json.loads(einfuse("zoo", "--json").stdout)
    simplified = {facts["name"] for facts in found if facts["simplification"]}
    assert "attention/estimated-mask" in simplified and "attention/window" not in simplified
    lines = einfuse("zoo", "--family", "pooled").stdout.splitlines()
    assert "simplification" in next(line for line in lines if "confidence" in line)
    rows = {line.split()[0]: line.rstrip() for line in lines if line.startswith(" attention/")}
    assert {name for name, line in rows.items() if not line.endswith(" -")} == {
        name for name in rows if name in simplified
    }


def test_a_family_is_json_too(einfuse: Command) -> None:
    found = json.loads(einfuse("zoo", "--family", "pooled", "--json").stdout)
    assert {facts["family"] for facts in found} == {"pooled"} and len(found) > 3
    assert all(facts["assumption"] for facts in found if facts["confidence"] == "outline")


def test_an_unknown_family_is_told_the_closest(einfuse: Command) -> None:
    done = einfuse("zoo", "--family", "dens")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'dense'?" in done.stderr


def test_show_and_passes_fix_parameters(einfuse: Command) -> None:
    assert (
        "W = 12, S = 3" in einfuse("show", "attention/window", "--set", "window=12,sinks=3").stdout
    )
    done = einfuse("passes", "attention/window", "--set", "window=12")
    assert done.returncode == 0, done.stderr
    assert "passes 2" in done.stdout


def test_run_takes_parameters_and_defaults(einfuse: Command) -> None:
    shape = ("--shape", "E=4,F=3,P=5,M=9")
    ran = [
        einfuse("run", "attention/window", *shape, *more).stdout
        for more in ((), ("--set", "window=512,sinks=4"), ("--set", "window=1,sinks=1"))
    ]
    assert ran[0] == ran[1] != ran[2]


def test_parameters_that_cannot_be_are_errors(einfuse: Command) -> None:
    for command in ("show", "passes", "run"):
        done = einfuse(command, "attention/window", "--set", "windw=4")
        assert (done.returncode, done.stdout) == (2, "")
        assert "no parameter 'windw'; did you mean 'window'?" in done.stderr
    shape = ("--shape", "E=4,F=3,P=5,M=9")
    done = einfuse("run", "attention/1-pass", *shape, "--set", "tile=4")
    assert done.returncode == 2
    assert "M = 9 is no multiple of M0 = 4; M0 is the parameter tile" in done.stderr
    done = einfuse("run", "attention/shifted-groups", "--shape", "H=2,E=4,F=3,P=16")
    assert (
        "rank T without a size: give T=... in the shape (--shape); T is the parameter group"
        in done.stderr
    )
    sizes = "sinks=1,local=1,last=1,stride=3,phase=1e30"
    done = einfuse("run", "attention/grid", "--shape", "E=4,F=3,P=5", "--set", sizes)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has to fit in 64 bits" in done.stderr and "Traceback" not in done.stderr

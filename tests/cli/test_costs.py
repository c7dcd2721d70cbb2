"""``einfuse costs``: the tables, a component at sizes, one model beside another."""

from __future__ import annotations

import json

import pytest

from .conftest import Command


def test_the_list_names_sizes_and_sources(einfuse: Command) -> None:
    done = einfuse("costs", "--technology", "7nm")
    assert done.returncode == 0, done.stderr
    for words in ("mac  bf16  energy_pj  0.32", "from Jouppi", "bytes 8192 to 1.04858e+06"):
        assert words in done.stdout
    rows = json.loads(einfuse("costs", "--component", "dram", "--type", "hbm2", "--json").stdout)
    assert {row["quantity"] for row in rows} == {"read_pj", "write_pj"}
    assert all(row["value"] == "3.9" and row["per"] == "width_bits" for row in rows)


def test_a_component_at_sizes_stands_beside_another_technology(einfuse: Command) -> None:
    done = einfuse("costs", "--component", "multiply", "--type", "fp16", "--at", "", "--against",
                   "45nm", "--json")  # fmt: skip
    row = json.loads(done.stdout)[0]
    assert row["quantity"] == "energy_pj" and row["value"] == 0.34 and row["45nm"] == 1.1
    assert row["ratio"] == pytest.approx(0.34 / 1.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--technology", "8nm"), "no technology '8nm'"),
        (("--component", "srm"), "no component 'srm'; did you mean 'sram'"),
        (("--component", "mac", "--type", "bf17"), "did you mean 'bf16'"),
        (("--at", "bytes=1"), "need a --component"),
        (("--component", "sram", "--at", "bytes=1,width_bits=64"), "outside the table"),
        (("--component", "sram", "--at", "bytes=a"), "--at: bytes needs a number"),
        (("--component", "sram", "--at", "bytes"), "--at: expected NAME=VALUE"),
        (("--component", "dram", "--type", "hbm2", "--at", "width_bits=-8"), "at least 0"),
        (("--component", "dram", "--type", "hbm2", "--at", "width_bits=inf"), "finite number"),
        (("--component", "dram", "--type", "hbm2", "--at", "width_bits=nan"), "nan"),
        (("--technology", "hwcomponents-45nm"), "hwcomponents"),
    ],
)
def test_what_is_not_known_is_refused(
    einfuse: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("costs", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""

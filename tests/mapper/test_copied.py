"""A copy with a time of its own (``keep VIEW at LEVEL copied``), worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from einfuse.einsum.language.parser import parse
from einfuse.mapper.design.design import Design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.nest.nest import parse_nest, render_nest
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.point import find_point
from einfuse.simulator.events.simulation import simulate

TEXT = "rank M, N\ninput X[M], W[N]\noutput Y\nI[m] = X[m]\nY[m,n] = I[m] * W[n]\n"
SHAPE = {"M": 64, "N": 8}
LINES = ["keep I at GlobalBuffer copied", "for M in 1", "for N in 1", "compute Y on MAC"]


def design(*lines: str, **more: Any) -> Design:
    counted = {"retention": "explicit", "drains": "read", "composition": "sequential", **more}
    nest = parse_nest(list(lines or LINES))
    return Design("copied", parse(TEXT), load_architecture("nvdla"), nest, **counted)


def test_a_copy_is_charged_to_its_view() -> None:
    every = find_point(design(), SHAPE, {}, scalar=True).counts.traffic
    words = {key: (traffic.reads, traffic.writes) for key, traffic in every.items()}
    assert words["I", "X", "MainMemory"] == (64, 0)
    assert words["I", "X", "GlobalBuffer"] == (0, 64)
    assert words["Y", "X", "GlobalBuffer"] == (64 * 8, 0)
    assert ("Y", "X", "MainMemory") not in words


def test_it_takes_a_time_of_its_own_and_no_other_energy() -> None:
    """128 bytes at 38.4 GB/s, before what Y takes: it cannot hide behind Y's other words."""
    own = evaluate(design(), SHAPE)
    hidden = evaluate(design("keep X at GlobalBuffer", *LINES[1:]), SHAPE)
    assert own.energy_pj == pytest.approx(hidden.energy_pj, rel=1e-12)
    copy = 64 * 2 / 38.4e9
    product = (64 * 8 + 64 * 8) * 2 / 38.4e9  # W is read and Y written at main memory
    assert own.seconds == pytest.approx(copy + max(product, 64 * 8 / 1e9), rel=1e-12)
    assert hidden.seconds == pytest.approx(max(copy + product, 64 * 8 / 1e9), rel=1e-12)


def test_it_is_written_as_it_is_read() -> None:
    assert render_nest(design().nest) == LINES


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            design("keep X at GlobalBuffer copied", *LINES[1:]),
            r"a view of .*\(I\), found X",
        ),
        (design(composition="published"), "a time of its own under 'composition: sequential'"),
        (design(*LINES[1:3], "keep I at registers copied", LINES[3]), "found registers"),
    ],
)
def test_what_is_no_copy_is_refused(wrong: Design, said: str) -> None:
    with pytest.raises(MappingError, match=said):
        evaluate(wrong, SHAPE)


def test_a_view_of_what_is_made_is_no_copy() -> None:
    text = TEXT.replace("I[m] = X[m]", "Z[m] = X[m] * X[m]\nI[m] = Z[m]")
    lines = [
        "keep I at GlobalBuffer copied",
        {"branch": [["for M", "compute Z on MAC"], LINES[1:]]},
    ]
    made = replace(design(), cascade=parse(text), nest=parse_nest(lines))
    with pytest.raises(MappingError, match="a view of what Z makes"):
        evaluate(made, SHAPE)


def test_the_simulation_takes_the_time_of_the_copy_too() -> None:
    """128 bytes at 38.4 GB/s, then what Y takes, in cycles of 1 GHz; the units wait for it."""
    run = simulate(design(), SHAPE)
    copy, product = (words * 2 / 38.4 for words in (64, 64 * 8 + 64 * 8))
    assert run.cycles == pytest.approx(copy + max(product, 64 * 8), rel=1e-12)
    assert run.cycles == pytest.approx(float(evaluate(design(), SHAPE).cycles), rel=1e-12)
    assert run.dram_bytes == evaluate(design(), SHAPE).dram_bytes
    for unit, busy in run.busy_cycles.items():
        assert busy + sum(run.stalls[unit].values()) == pytest.approx(run.cycles, rel=1e-12)

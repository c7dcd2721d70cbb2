"""Whether anything fits is known before the search: which level lacks how much."""

from __future__ import annotations

from typing import Any

import pytest

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.mapper.errors import MappingError
from einfuse.mapper.grouped.capacity_bounds import least_words
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.objectives import find_objective

from .test_beyond_attention import shape_of

SHAPE = {"B": 64, "H": 12, "E": 64, "F": 64, "L": 1024, "C": 16}


def space_of(cascade: str, shape: dict[str, int], **given: float) -> MapSpace:
    settings = {f"{level}.bytes": held for level, held in given.items()}
    return MapSpace(load(cascade), load_architecture("fusemax").with_settings(settings), shape)


def refusal(space: MapSpace) -> str:
    with pytest.raises(MappingError) as error:
        find_best(space, find_objective("latency", space.architecture), seconds=60)
    return str(error.value)


def test_a_state_takes_one_generation_of_it() -> None:
    # by hand: 8 words of R; S goes from register to register
    text = (
        "rank E, M\niter m over M\ninput A[E,M]\noutput Y\ninit:\nR[e,0] = 0\nloop:\n"
        "S[m] = R[e,m] :: +(e)\nR[e,m+1] = A[e,m] + S[m]\nfinal:\nY[e] = R[e,M] + R[e,M]"
    )
    settings: dict[str, Any] = {"buffer.bytes": 14, "staging.bytes": 4}
    machine = load_architecture("fusemax").with_settings(settings)
    space = MapSpace(parse(text), machine, {"E": 8, "M": 4})
    assert "needs 2 bytes more than buffer has" in refusal(space)
    enough = machine.with_settings({"buffer.bytes": 16})
    space = MapSpace(parse(text), enough, {"E": 8, "M": 4})
    assert find_best(space, find_objective("latency", enough)).optimal


@pytest.mark.slow
def test_a_state_that_does_not_fit_is_named_at_once() -> None:
    # by hand: the state of E x F words, and as many that are added to it, made apart from each
    # other; SH takes over the room of neither, and X, a word, is there in the meantime
    words = 2 * 64 * 64 + 1
    for held in (8, 200):
        space = space_of("attention/linear-decay", SHAPE, buffer=held, staging=4)
        assert f"needs {2 * words - held} bytes more than buffer has" in refusal(space)


def test_what_is_lacking_is_just_what_helps() -> None:
    text = (
        "rank P\ninput A[P]\noutput Y, Z\nS[] = A[p] :: +(p)\nY[p] = A[p] * S[]\nZ[p] = Y[p] - S[]"
    )
    for held in (1, 2):
        settings: dict[str, Any] = {"buffer.bytes": held, "staging.bytes": 1}
        machine = load_architecture("fusemax").with_settings(settings)
        space = MapSpace(parse(text), machine, {"P": 4})
        assert find_best(space, find_objective("latency", machine)).optimal


@pytest.mark.parametrize("length", [16, 1024])
def test_one_pass_needs_a_word_for_each_state_of_a_query(length: int) -> None:
    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": length, "P": length}
    space = space_of("attention/1-pass", shape)
    # by hand: RM and RD of a query, and RNV, of which SPNV takes the room of no other
    assert least_words(space, space.einsums, next(space.splits())) == 3


def test_a_loop_of_one_point_takes_the_whole_of_it() -> None:
    # no loop over F stands above the maker of T, which would compute it anew
    text = "rank P, F\ninput A[P], W[P,F]\noutput Y\nT[p] = A[p] + A[p]\nY[p,f] = T[p] * W[p,f]"
    sizes = {"P": 4, "F": 1}
    space = MapSpace(parse(text), load_architecture("fusemax"), sizes)
    assert least_words(space, space.einsums, sizes) <= 1
    assert find_best(space, find_objective("latency", space.architecture)).optimal


def test_sizes_of_one_in_a_large_cascade_are_no_obstacle() -> None:
    cascade = load("attention/agent")
    shape = shape_of(cascade, long=16, short=4, batch=(2, 2))
    space = MapSpace(cascade, load_architecture("fusemax"), shape)
    every = list(space.splits())
    least = {rank: min(sizes[rank] for sizes in every) for rank in every[0]}
    names = space.einsums
    runs = [names[a:b] for a in range(len(names)) for b in range(a + 1, len(names) + 1)]
    assert all(0 <= least_words(space, run, least) < 1000 for run in runs)

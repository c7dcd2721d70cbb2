"""The traffic bound: closed forms, monotony, and optimal pebblings of tiny cascades."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import pytest

from einfuse.einsum.analysis.traffic import compulsory_words, traffic_bound_bytes
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load

SHAPE = {"E": 64, "F": 64, "P": 256, "M": 4096}
NORMALISE = "rank M\ninput X[M]\noutput Y\nS[] = X[m] :: +(m)\nY[m] = X[m] / S[]"
SOFTMAX = """
rank M
input X[M]
output Y
G[] = X[m] :: max(m)
N[m] = exp(X[m] - G[])
S[] = N[m] :: +(m)
Y[m] = N[m] / S[]
"""


def test_without_a_buffer_every_pass_reads_the_keys_again() -> None:
    keys, values = 64 * 4096, 64 * 4096
    queries, outputs = 64 * 256, 64 * 256
    for name, passes in (("3-pass", 3), ("3-pass-deferred", 2)):
        bound = traffic_bound_bytes(load(f"attention/{name}"), SHAPE, 0, 2)
        assert bound == 2 * (passes * keys + values + queries + outputs)
    one = traffic_bound_bytes(load("attention/1-pass"), SHAPE | {"M0": 256}, 0, 2)
    assert one == 2 * (keys + values + queries + outputs)


def test_for_few_queries_the_scores_are_spilled_instead() -> None:
    # One query: 2 boundaries re-read M scores each, one of them is written: 3 M, not 2 E M.
    bound = traffic_bound_bytes(load("attention/3-pass"), SHAPE | {"P": 1}, 0, 1)
    assert bound == 64 * 4096 * 2 + 2 * 64 + 3 * 4096


def test_a_buffer_of_one_row_of_scores_ends_the_extra_traffic() -> None:
    cascade = load("attention/3-pass")
    compulsory = compulsory_words(cascade, SHAPE)
    assert traffic_bound_bytes(cascade, SHAPE, 4096, 1) == compulsory
    assert traffic_bound_bytes(cascade, SHAPE, 4095, 1) > compulsory


def test_the_bound_falls_with_the_buffer_and_is_convex() -> None:
    buffers = np.arange(0, 6000, 50)
    bound = traffic_bound_bytes(load("attention/3-pass"), SHAPE, buffers, 1)
    steps = np.diff(bound)
    assert bound.shape == buffers.shape
    assert (steps <= 0).all()
    assert (np.diff(steps) >= -1e-6).all()


def test_filtered_and_gathered_inputs_count_only_what_is_certain() -> None:
    gathered = parse("rank M, T\ninput X[M], IX[T]\noutput Y\nY[t] = X[IX[t]]")
    assert compulsory_words(gathered, {"M": 100, "T": 5}) == 10  # IX and Y, nothing of X
    filtered = parse(SOFTMAX.replace("X[m] :: max(m)", "X[m: m<7] :: max(m)"))
    assert traffic_bound_bytes(filtered, {"M": 100}, 0, 1) == 200


def test_a_strided_input_is_not_read_whole() -> None:
    strided = parse("rank M, N\ninput X[N]\noutput Y\nY[m] = X[2*m]")
    assert compulsory_words(strided, {"M": 4, "N": 8}) == 4


@pytest.mark.parametrize(("buffer", "word"), [(-1, 2), (np.nan, 2), ([0, -5], 2), (0, 0)])
def test_bad_sizes_are_refused(buffer: object, word: int) -> None:
    with pytest.raises(EinfuseError, match="expected buffers of at least 0 bytes"):
        traffic_bound_bytes(parse(NORMALISE), {"M": 4}, buffer, word)  # type: ignore[arg-type]


Graph = dict[str, tuple[str, ...]]


def normalise_graph(size: int) -> Graph:
    graph: Graph = {}
    for m in range(size):
        graph[f"S{m}"] = (f"X{m}", *([f"S{m - 1}"] if m else []))
    for m in range(size):
        graph[f"Y{m}"] = (f"X{m}", f"S{size - 1}")
    return graph


def softmax_graph(size: int) -> Graph:
    graph: Graph = {}
    last = size - 1
    for m in range(size):
        graph[f"G{m}"] = (f"X{m}", *([f"G{m - 1}"] if m else []))
    for m in range(size):
        graph[f"N{m}"] = (f"X{m}", f"G{last}")
        graph[f"S{m}"] = (f"N{m}", *([f"S{m - 1}"] if m else []))
    for m in range(size):
        graph[f"Y{m}"] = (f"N{m}", f"S{last}")
    return graph


def least_traffic(graph: Graph, size: int, buffer_words: int) -> int:
    """Return the fewest moves to and from memory (red-blue pebbles, Hong and Kung, 1981).

    A result may take the place of an operand: the buffer holds what is alive after each step.
    """
    names = [f"X{m}" for m in range(size)] + list(graph)
    bit = {name: 1 << k for k, name in enumerate(names)}
    needs = {bit[name]: sum(bit[o] for o in operands) for name, operands in graph.items()}
    goal = sum(bit[f"Y{m}"] for m in range(size))
    start = (0, sum(bit[f"X{m}"] for m in range(size)))
    best = {start: 0}
    queue = [(0, start)]
    while queue:
        cost, (red, blue) = heapq.heappop(queue)
        if blue & goal == goal:
            return cost
        if cost > best[red, blue]:
            continue
        steps = []
        for own in bit.values():
            if red & own:
                steps.append((cost, (red & ~own, blue)))
                if not blue & own:
                    steps.append((cost + 1, (red, blue | own)))
            else:
                if blue & own and red.bit_count() < buffer_words:
                    steps.append((cost + 1, (red | own, blue)))
                operands = needs.get(own, -1)
                if operands >= 0 and operands & red == operands:
                    after = {red | own} | {
                        (red | own) & ~other for other in bit.values() if operands & other
                    }
                    steps += [(cost, (r, blue)) for r in after if r.bit_count() <= buffer_words]
        for price, state in steps:
            if price < best.get(state, 1 << 30):
                best[state] = price
                heapq.heappush(queue, (price, state))
    raise AssertionError("the buffer is too small for any step")


@pytest.mark.parametrize(
    ("text", "graph", "size"), [(NORMALISE, normalise_graph, 3), (SOFTMAX, softmax_graph, 2)]
)
def test_the_bound_is_below_the_best_pebbling(
    text: str, graph: Callable[[int], Graph], size: int
) -> None:
    for buffer_words in range(2, 6):
        bound = traffic_bound_bytes(parse(text), {"M": size}, buffer_words, 1)
        best = least_traffic(graph(size), size, buffer_words)
        assert 2 * size <= bound <= best

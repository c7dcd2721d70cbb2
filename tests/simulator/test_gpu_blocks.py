"""Thread blocks: tiles counted element by element, waves and tails by hand."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.simulator.gpu.blocks import UNBOUNDED, Blocks, count_tiles, find_makespan


def blocks(
    owned: int,
    tile: int,
    looped: int,
    step: int,
    *,
    below: int = -UNBOUNDED,
    above: int = UNBOUNDED,
    copies: int = 1,
    density: float = 1.0,
    split: float = 1.0,
) -> Blocks:
    whole = (np.array([n], dtype=np.int64) for n in (owned, tile, looped, step, below, above))
    return Blocks(
        *whole, np.array([copies], dtype=np.int64), np.array([density]), np.array([split])
    )


def makespan(of: Blocks, slots: int, order: str = "in-order", block_cycles: float = 0.0) -> float:
    one = np.ones(1)
    return float(find_makespan(of, slots * one, one, 0 * one, block_cycles * one, order)[0])


def by_elements(
    owned: int, tile: int, looped: int, step: int, below: int, above: int
) -> tuple[int, int]:
    """Tiles that are seen at all, and those that are not seen by every element, by their mask."""
    i, j = np.arange(owned)[:, None], np.arange(looped)[None, :]
    seen = (j >= i + below) & (j <= i + above)
    tiles = partial = 0
    for first in range(0, owned, tile):
        for start in range(0, looped, step):
            part = seen[first : first + tile, start : start + step]
            tiles += part.any()
            whole = part.all() and part.shape[1] == step  # a ragged last tile is masked, too
            partial += part.any() and not whole
    return tiles, partial


def test_tiles_are_those_of_the_mask_element_by_element() -> None:
    draw = np.random.default_rng(7)
    for _ in range(150):
        owned, looped = (int(n) for n in draw.integers(1, 40, 2))
        tile, step = (int(n) for n in draw.integers(1, 12, 2))
        shift = looped - owned
        window = int(draw.integers(1, 20))
        for below, above in (
            (-UNBOUNDED, UNBOUNDED),
            (-UNBOUNDED, shift),  # causal, aligned at the last query and key
            (shift - window + 1, shift),  # a window
            (shift, UNBOUNDED),  # causal, seen from the keys
            (shift, shift + window - 1),
        ):
            counted = count_tiles(blocks(owned, tile, looped, step, below=below, above=above))
            found = (counted.tiles[0], counted.partial[0])
            assert found == by_elements(owned, tile, looped, step, below, above)


@pytest.mark.parametrize(("copies", "waves"), [(1, 1), (132, 1), (133, 2), (264, 2), (265, 3)])
def test_equal_blocks_go_in_waves(copies: int, waves: int) -> None:
    assert makespan(blocks(64, 64, 10, 1, copies=copies), 132) == 10 * waves


@pytest.mark.parametrize(("order", "end"), [("in-order", 6), ("longest-first", 5), ("static", 6)])
def test_a_causal_tail_by_hand(order: str, end: int) -> None:
    causal = blocks(4, 1, 4, 1, above=0)  # 1, 2, 3 and 4 tiles, on two slots
    assert makespan(causal, 2, order) == end
    assert makespan(causal, 1, order) == 10


def test_blocks_cost_their_fixed_cycles() -> None:
    assert makespan(blocks(4, 1, 4, 1, above=0), 1, block_cycles=100.0) == 410


def test_many_copies_continue_at_the_steady_rate() -> None:
    few, many = blocks(64, 1, 64, 1, above=0, copies=64), blocks(64, 1, 64, 1, above=0, copies=640)
    work = 64 * 65 / 2
    assert makespan(many, 16) == pytest.approx(makespan(few, 16) + 576 * work / 16)


def test_split_blocks_share_the_tiles() -> None:
    assert makespan(blocks(64, 64, 100, 1, split=4.0), 4) == 25
    assert makespan(blocks(64, 64, 100, 1, split=3.0), 4) == 34  # 33 1/3 tiles, whole ones
    assert makespan(blocks(64, 64, 100, 1, density=0.25), 4) == 25


def test_more_slots_are_never_slower() -> None:
    draw = np.random.default_rng(3)
    for _ in range(30):
        rows, copies = (int(n) for n in draw.integers(1, 30, 2))
        causal = blocks(rows, 1, rows, 1, above=0, copies=copies)
        ends = [makespan(causal, slots) for slots in range(1, 40, 3)]
        assert ends == sorted(ends, reverse=True)

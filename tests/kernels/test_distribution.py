"""How tiles lie over threads, and what a reduction then takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einfuse.kernels.compiled.distribution import Distribution, read_distributions

IR = """
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [1, 32], warpsPerCTA = [1, 4], order = [1, 0]}>
#mma = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [8, 1], instrShape = [16, 64, 16]}>
  %s = ttng.warp_group_dot %q, %k, %z {isAsync = true} : !ttg.memdesc<128x64xf16, #shared> * !ttg.memdesc<64x64xf16, #shared1> -> tensor<128x64xf32, #mma> loc(#loc)
  }) : (tensor<128x64xf32, #mma>) -> tensor<128xf32, #ttg.slice<{dim = 1, parent = #mma}>> loc(#loc)
  %a = tt.dot %q, %k, %z : tensor<16x32xf16, #d> * tensor<32x64xf16, #e> -> tensor<16x64xf32, #mma>
  }) : (tensor<4x1024xf32, #blocked>) -> tensor<4xf32, #ttg.slice<{dim = 1, parent = #blocked}>>
"""  # noqa: E501


def mma(rows: int, columns: int, warps: tuple[int, int]) -> Distribution:
    return Distribution(rows, columns, block=(2, 2), lanes=(8, 4), warps=warps)


def test_products_and_reductions_are_read_with_their_layouts() -> None:
    assert read_distributions(IR) == (
        mma(128, 64, (8, 1)),
        mma(16, 64, (8, 1)),
        Distribution(4, 1024, block=(1, 8), lanes=(1, 32), warps=(1, 4)),
    )


@pytest.mark.parametrize(
    ("tile", "rows", "columns"),
    [
        (mma(128, 128, (8, 1)), 2, 32),
        (mma(128, 64, (4, 1)), 4, 16),
        (mma(64, 64, (8, 1)), 2, 16),  # twice as many warps as rows need: held twice
        (mma(64, 32, (1, 4)), 8, 2),
        (mma(16, 64, (1, 4)), 2, 4),
    ],
)
def test_a_thread_holds_its_share_of_a_tile(tile: Distribution, rows: int, columns: int) -> None:
    assert (tile.rows_per_thread, tile.columns_per_thread) == (rows, columns)


@given(
    rows=st.sampled_from([16, 32, 64, 128, 256]),
    columns=st.sampled_from([8, 16, 32, 64, 128]),
    warps=st.sampled_from([(1, 1), (4, 1), (8, 1), (2, 2), (1, 4)]),
)
def test_threads_hold_every_element_at_least_once(
    rows: int, columns: int, warps: tuple[int, int]
) -> None:
    tile = mma(rows, columns, warps)
    threads = 32 * warps[0] * warps[1]
    held = tile.rows_per_thread * tile.columns_per_thread * threads
    assert held >= rows * columns
    if rows % (16 * warps[0]) == 0 and columns % (8 * warps[1]) == 0:
        assert held == rows * columns


def test_a_row_is_folded_in_the_thread_then_over_four_lanes() -> None:
    # 2 rows of 32 elements: 31 operations in the thread and 2 shuffles, each with one more.
    assert mma(128, 128, (8, 1)).steps_along_columns() == (2 * (31 + 2), 2 * 2)


def test_warps_beside_each_other_fold_their_partial_results_once_more() -> None:
    # 8 rows of 2: (1 + 2) each; then 64 * 4 partial results over 128 threads, two steps each.
    assert mma(64, 32, (1, 4)).steps_along_columns() == (8 * 3 + 4, 8 * 2 + 4)


def test_a_column_is_folded_over_eight_lanes_and_the_warps() -> None:
    operations, shuffles = mma(128, 8, (8, 1)).steps_along_rows()
    # 2 columns of 2 rows: 1 in the thread, 3 over lanes; 8 * 8 partial results, three steps.
    assert (operations, shuffles) == (2 * (1 + 3) + 3, 2 * 3 + 3)

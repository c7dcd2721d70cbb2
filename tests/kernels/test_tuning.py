"""Tiles ranked by what they compile to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.compiled.ranking import rank_candidates  # noqa: E402
from einfuse.kernels.errors import KernelError  # noqa: E402

ONE_PASS = find_kernel("one-pass")


@pytest.mark.slow
def test_spilling_candidates_come_last_and_larger_tiles_need_fewer_instructions(
    tmp_path: Path,
) -> None:
    ranked = rank_candidates(
        ONE_PASS, "forward", "sm_90", 128, tiles={"block_p": (64, 128), "block_m": (64,)},
        warps=(4, 8), stages=(2,), cache=tmp_path,
    )  # fmt: skip
    assert [c.is_fit for c in ranked] == sorted((c.is_fit for c in ranked), reverse=True)
    spilling = next(c for c in ranked if not c.is_fit)
    # 128 x 64 scores and 128 x 128 sums over four warps: 64 + 128 registers before all else.
    assert dict(spilling.configuration.tiles) == {"block_p": 128, "block_m": 64}
    assert spilling.configuration.warps == 4 and spilling.spills > 0
    # A warp group computes 64 rows: twice the warps on 64 queries repeat the work per score.
    small = {
        c.configuration.warps: c for c in ranked if dict(c.configuration.tiles)["block_p"] == 64
    }
    assert small[8].instructions_per_score > 1.5 * small[4].instructions_per_score
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_a_candidate_that_does_not_compile_says_so(tmp_path: Path) -> None:
    (candidate,) = rank_candidates(
        ONE_PASS, "forward", "sm_90", 64, tiles={"block_p": (48,)}, warps=(4,), stages=(2,),
        cache=tmp_path,
    )  # fmt: skip
    assert "does not compile for sm_90" in candidate.error and not candidate.is_fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"launch": "forwards"}, "launch: kernel one-pass has forward, .* not 'forwards'"),
        ({"tiles": {"block_q": (64,)}}, "tiles: .* has block_p, block_m, not block_q"),
        ({"architecture": "sm_1"}, "architecture: expected one of sm_80, .*, found 'sm_1'"),
    ],
)
def test_wrong_questions_are_answered_with_what_there_is(
    changes: dict[str, Any], words: str
) -> None:
    usual = {"launch": "forward", "architecture": "sm_90", "head_size": 64, "tiles": {}}
    with pytest.raises(KernelError, match=words):
        rank_candidates(ONE_PASS, **{**usual, **changes})

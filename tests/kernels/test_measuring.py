"""A suite is checked, timed, written row by row, and taken up where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="measuring needs torch")

from einfuse.kernels.calls.pairs import visible  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.measured import measuring  # noqa: E402
from einfuse.kernels.measured.contenders import (  # noqa: E402
    Contender,
    attend_by_backend,
    attend_in_three_passes,
    list_contenders,
)
from einfuse.kernels.measured.device import find_device  # noqa: E402
from einfuse.kernels.measured.gate import error_ratio, find_truth, judge  # noqa: E402
from einfuse.kernels.measured.measurement import read_measurements  # noqa: E402
from einfuse.kernels.measured.suites import Case  # noqa: E402

DEVICE = find_device("cpu")
CASES = (
    Case("fwd", "float32", 2, 4, 2, 32, 32, 16, causal=True),
    Case("bwd", "float32", 1, 2, 2, 32, 32, 16),
    Case("fwd", "float32", 1, 2, 2, 32, 32, 16, causal=True, window=8, sinks=2),
    Case("fwd", "float32", 1, 2, 2, 32, 32, 16, similarity="sigmoid"),
)


def run(path: Path, cases: tuple[Case, ...] = CASES, **more: float) -> list[measuring.Outcome]:
    arguments = {"seconds": 60.0, **more}
    return list(measuring.measure_suite(cases, DEVICE, path, "a test", **arguments))


def problem(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(0)
    return measuring._problems(case, DEVICE, generator)[0]


def test_every_case_gets_a_row_per_contender(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    outcomes = run(path)
    rows = read_measurements(path)
    assert not any(outcome.failures for outcome in outcomes)
    assert {(r.direction, r.options) for r in rows} == {(c.direction, c.options) for c in CASES}
    assert {row.algorithm for row in rows} == {"torch-3-pass", "sdpa-flash"}
    for row in rows:
        assert row.min_ms is not None and row.median_ms == row.value >= row.min_ms > 0
        assert row.repeats is not None and row.repeats >= 5
        assert row.error_ratio is not None and row.error_ratio <= 1
        assert row.gpu == DEVICE.name and row.torch == torch.__version__ and row.threads


def test_rows_in_the_file_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    run(path, CASES[:1])
    before = path.read_text()
    (again,) = run(path, CASES[:1])
    assert (len(again.measured), again.known) == (0, 2)
    assert path.read_text() == before


def test_only_the_missing_contender_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    run(path, CASES[:1])
    measuring.write_measurements(path, read_measurements(path)[:1])
    (again,) = run(path, CASES[:1])
    assert [row.algorithm for row in again.measured] == ["sdpa-flash"]


def test_no_case_is_begun_behind_the_time_limit(tmp_path: Path) -> None:
    outcomes = run(tmp_path / "rows.csv", seconds=0.0)
    assert all(outcome.out_of_time for outcome in outcomes)
    assert not (tmp_path / "rows.csv").exists()


def test_a_wrong_contender_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Contender("wrong", lambda p: attend_in_three_passes(p) * 1.01)
    nan = Contender("nan", lambda p: attend_in_three_passes(p) * float("nan"))
    right = Contender("right", attend_in_three_passes)
    monkeypatch.setattr(measuring, "list_contenders", lambda *_: (wrong, nan, right))
    (outcome,) = run(tmp_path / "rows.csv", CASES[:1])
    assert [row.algorithm for row in outcome.measured] == ["right"]
    assert [failure.split(":")[0] for failure in outcome.failures] == ["wrong", "nan"]
    assert "not timed, FAILED" in outcome.failures[0]


def test_an_interruption_leaves_complete_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(case: Case, *arguments: object) -> measuring.Outcome:
        if case is CASES[1]:
            raise KeyboardInterrupt
        return measure_case(case, *arguments)  # type: ignore[arg-type]

    measure_case = measuring.measure_case
    monkeypatch.setattr(measuring, "measure_case", interrupted)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert {row.direction for row in read_measurements(path)} == {"fwd"}


@pytest.mark.parametrize("case", [c for c in CASES if c.similarity == "softmax"], ids=str)
def test_the_backends_and_the_formula_agree(case: Case) -> None:
    given = problem(case)
    names = {c.name: c for c in list_contenders(given, "cpu", training=False)}
    first, second = (names[name].attend(given) for name in ("torch-3-pass", "sdpa-flash"))
    torch.testing.assert_close(first, second)


def test_scores_that_do_not_fit_leave_the_formula_out() -> None:
    given = problem(CASES[0])
    names = [c.name for c in list_contenders(given, "cpu", training=False, memory_bytes=1000)]
    assert names == ["sdpa-flash"]


def test_the_formula_is_that_of_sdpa_in_float64() -> None:
    q, k, v = torch.randn(3, 2, 4, 16, 8, dtype=torch.float64)
    given = Problem(q, k, v, Options(scale=8**-0.5))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend_in_three_passes(given), wanted)


def test_a_window_masks_the_backends_alike() -> None:
    given = problem(CASES[2])
    backend = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    masked = torch.nn.functional.scaled_dot_product_attention(
        given.q, given.k, given.v, attn_mask=visible(given)
    )
    torch.testing.assert_close(attend_by_backend(given, backend), masked)


def test_the_truth_of_a_part_is_that_of_the_whole() -> None:
    given = replace(problem(CASES[0]), options=Options(scale=0.25, causal=True))
    truth = find_truth(given)
    result = attend_in_three_passes(given)
    assert truth.exact[0].shape == (1, 2, 32, 16)
    assert truth.judge((result,)).passed
    shifted = result.clone()
    shifted[-1, -1, 3, 3] += 0.5
    assert not truth.judge((shifted,)).passed


def test_gradients_are_judged_for_all_three_inputs() -> None:
    given = problem(CASES[1])
    grad_out = torch.randn(given.q.shape, generator=torch.Generator().manual_seed(1))
    truth = find_truth(given, grad_out)
    out = attend_in_three_passes(given)
    grads = torch.autograd.grad(out, (given.q, given.k, given.v), grad_out)
    assert truth.judge(grads).passed
    assert not truth.judge((*grads[:2], grads[2] * 1.01)).passed


def test_an_error_of_nan_is_infinite() -> None:
    nan = torch.full((4,), float("nan"))
    one = torch.ones(4)
    assert error_ratio(judge(nan, one, one)) == float("inf")

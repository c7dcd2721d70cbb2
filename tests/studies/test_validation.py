"""Predictions judged: matching, skipping, fits, baselines, leaving one out, the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.kernels.measured.measurement import Measurement, write_measurements
from einfuse.studies.validation import baselines as validation_baselines
from einfuse.studies.validation.baselines import Known, interpolated_ms
from einfuse.studies.validation.cases import Case, Skipped, find_case
from einfuse.studies.validation.constants import (
    Constants,
    Owner,
    find_constants,
    format_constants,
    read_constants,
)
from einfuse.studies.validation.figures import draw_held_out, draw_scatter
from einfuse.studies.validation.fit import Range, fit_constants
from einfuse.studies.validation.holdout import leave_one_out
from einfuse.studies.validation.names import find_gpu, find_kernel
from einfuse.studies.validation.prediction import fit, predict
from einfuse.studies.validation.report import report
from einfuse.studies.validation.rows import AttentionRow, read_rows
from einfuse.studies.validation.verdicts import Verdict, error_summary, judge, to_json

from .validation_models import LAUNCH_S, LineModel, row

FA2 = Owner("flash-attention-2", "h100", "fwd")
TRUE = {"efficiency": 0.62, "row_ns": 3.0}


@pytest.fixture(autouse=True)
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_baselines, "published_peaks", lambda architecture: (1e15, 3e12))


def case(**cells: object) -> Case:
    found = find_case(row(**cells))
    assert isinstance(found, Case), found
    return found


def timed(constants: dict[str, float], **cells: object) -> AttentionRow:
    """A row whose time is that of the model under given constants."""
    call = case(**cells).call
    taken = LineModel("", "", "fwd").seconds([call], constants)[0]
    return row(**cells, metric="ms", value=1e3 * taken)


def grid(constants: dict[str, float] = TRUE, **cells: object) -> list[AttentionRow]:
    return [
        timed(constants, seqlen_q=n, seqlen_k=n, head_dim=d, causal=c, **cells)
        for n in (1024, 4096, 16384)
        for d in (64, 128)
        for c in (False, True)
    ]


def cases(rows: Sequence[AttentionRow]) -> list[Case]:
    return [one for one in map(find_case, rows) if isinstance(one, Case)]


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("FA2", "flash-attention-2"),
        ("flash-attention 2", "flash-attention-2"),
        ("FlashAttention-2 (2.7)", "flash-attention-2"),
        ("flash_attn v2.6.3", "flash-attention-2"),
        ("FlashAttention-1", "flash-attention-1"),
        ("FA3", "flash-attention-3"),
        ("triton fa2", "triton"),
        ("Triton tutorial", "triton"),
        ("cuDNN 9.19", "cudnn-9"),
        ("cuDNN", "cudnn"),
        ("SDPA cuDNN backend", "cudnn"),
        ("sdpa-flash", "flash-attention-2"),
        ("PyTorch standard", "standard"),
        ("Standard attention", "standard"),
        ("xformers (memory-efficient)", "xformers"),
        ("FlashMLA decode", "flash-mla"),
        ("Lightning Attention-2", "lightning-attention"),
    ],
)
def test_names_of_kernels_are_matched(name: str, version: str) -> None:
    found = find_kernel(name)
    assert not isinstance(found, str), found
    assert found.version == version


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("H100-SXM5-80GB", "h100"),
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("A100-SXM4-80GB", "a100"),
    ],
)
def test_names_of_gpus_are_matched(name: str, architecture: str) -> None:
    found = find_gpu(name)
    assert not isinstance(found, str), found
    assert found.architecture == architecture


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"algorithm": "MyAttention"}, "kernel 'MyAttention' is not modelled"),
        ({"algorithm": ""}, "the kernel is not named"),
        ({"algorithm": "FlashAttention-4"}, "no design for FlashAttention-4"),
        ({"algorithm": "FlashAttention"}, "version is not given"),
        ({"gpu": "GB200"}, "Blackwell is not modelled"),
        ({"gpu": "unspecified"}, "the GPU is not named"),
        ({"dtype": "fp8_e4m3"}, "data type 'fp8_e4m3' is not modelled"),
        ({"metric": "tokens/s"}, "metric 'tokens/s' is no time"),
        ({"value": "nan"}, "no positive value given"),
        ({"value": -1}, "no positive value given"),
        ({"value": 1e-320}, "tflops is no time"),
        ({"causal": ""}, "ambiguous by a factor of two"),
        ({"metric": "GB/s", "direction": "bwd"}, "what GB/s counts backward is not known"),
        ({"algorithm": "lightning attention"}, "what tflops counts for linear attention"),
    ],
)
def test_rows_that_are_not_predicted_say_why(cells: dict[str, object], reason: str) -> None:
    found = find_case(row(**cells))
    assert isinstance(found, Skipped)
    assert reason in found.reason


def test_an_unnamed_h100_is_taken_for_the_sxm5_and_says_so() -> None:
    assert case(gpu="H100").notes == ("the GPU is taken for SXM5",)
    assert case().notes == ()


def test_a_mask_does_not_matter_to_linear_attention() -> None:
    calls = [case(algorithm="lightning attention", metric="ms", causal=c).call for c in ("", True)]
    assert calls[0] == calls[1]
    assert not calls[0].causal


def test_few_queries_are_decoded_by_the_decoding_kernel() -> None:
    assert case(seqlen_q=1).design == "split-kv-decode"
    assert case(seqlen_q=1).owner.kernel == "flash-attention-2-decode"
    assert case(seqlen_q=4096).design == "flash-attention-2"


def test_a_fit_finds_the_constants_that_made_the_rows() -> None:
    own = fit(cases(grid()), LineModel)[FA2]
    assert own.values["efficiency"] == pytest.approx(TRUE["efficiency"], rel=0.01)
    assert own.values["row_ns"] == pytest.approx(TRUE["row_ns"], rel=0.1)
    assert own.mean_error < 0.005
    assert own.fitted_on == {one.key for one in grid()}


def test_one_odd_row_does_not_carry_a_fit() -> None:
    rows = [*grid(), row(seqlen_q=8192, seqlen_k=8192, metric="ms", value=500)]
    own = fit(cases(rows), LineModel)[FA2]
    assert own.values["efficiency"] == pytest.approx(TRUE["efficiency"], rel=0.05)


def test_constants_that_the_rows_do_not_tell_stay_at_their_prior() -> None:
    times = np.array([1.0, 2.0, 4.0])
    found = fit_constants(
        lambda values: times / values["a"][:, None] + 0 * values["b"][:, None],
        times / 0.25,
        {"a": Range(0.5, 0, 1), "b": Range(7.0, 0, 10)},
    )
    assert found["a"] == pytest.approx(0.25, rel=0.02)
    assert found["b"] == pytest.approx(7.0, rel=1e-3)


def test_more_than_three_constants_are_not_fitted() -> None:
    ranges = {name: Range(0.5, 0, 1) for name in "abcd"}
    with pytest.raises(EinfuseError, match="at most 3 constants"):
        fit_constants(lambda values: np.ones((1, 1)), np.ones(1), ranges)


def test_too_few_rows_get_no_constants() -> None:
    assert fit(cases(grid()[:2]), LineModel) == {}


def test_relatives_lend_their_constants_and_are_named() -> None:
    own = Constants(FA2, {"efficiency": 0.7}, frozenset(), 0.0)
    table = {FA2: own}
    assert str(find_constants(table, FA2)) == "own"
    h200 = find_constants(table, Owner("flash-attention-2", "h200", "fwd"))
    assert str(h200) == "from flash-attention-2 on h100, fwd"
    backward = find_constants(table, Owner("flash-attention-2", "h100", "bwd"))
    assert backward.values == {"efficiency": 0.7}
    assert not backward.own
    assert str(find_constants(table, Owner("standard", "h100", "fwd"))) == "defaults"


def test_constants_are_written_and_read_again(tmp_path: Path) -> None:
    table = fit(cases(grid()), LineModel)
    path = tmp_path / "constants.csv"
    path.write_text(format_constants(table.values()))
    again = read_constants(path)
    assert again[FA2].fitted_on == table[FA2].fitted_on
    assert again[FA2].values == pytest.approx(table[FA2].values, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "expected the columns kernel, gpu"),
        ("", "found nothing"),
        ("k,h100,up,x=1,1,0.1,ab", "column direction: expected fwd"),
        ("k,h100,fwd,x=fast,1,0.1,ab", "column constants: expected NAME=NUMBER, found 'x=fast'"),
        ("k,h100,fwd,x=1,1,low,ab", "column mean_error"),
        ("k,h100", "column direction"),
    ],
)
def test_files_that_are_no_constants_are_refused(tmp_path: Path, text: str, words: str) -> None:
    header = "kernel,gpu,direction,constants,rows,mean_error,fitted_on\n"
    path = tmp_path / "constants.csv"
    path.write_text(text if "\n" in text or not text else header + text)
    with pytest.raises(EinfuseError) as error:
        read_constants(path)
    assert words in str(error.value)


def test_the_interpolation_is_a_line_of_logarithms() -> None:
    """Rates of 100 and 400 at lengths 1024 and 4096: 200 at 2048, 800 at 8192."""
    rows = [case(seqlen_q=n, seqlen_k=n, value=v) for n, v in ((1024, 100), (4096, 400))]
    known = Known(rows)
    for length, rate in ((2048, 200), (8192, 800)):
        wanted = case(seqlen_q=length, seqlen_k=length, value=rate)
        assert interpolated_ms(wanted, known) == pytest.approx(wanted.measured_ms)
    assert interpolated_ms(case(causal=True), known) is None
    assert interpolated_ms(rows[0], known) == pytest.approx(rows[0].measured_ms / 4)


def test_a_row_is_judged_by_what_its_prediction_stands_on() -> None:
    rows = [*grid(), timed(TRUE, seqlen_q=2048, seqlen_k=2048), row(gpu="H200"),
            row(algorithm="ThunderKittens"), row(algorithm="FA5"), row(head_dim=512)]  # fmt: skip
    table = fit(cases(grid()), LineModel)
    found = judge(rows, table, grid(), LineModel)
    assert len(found) == len(rows)
    fitted, fresh, other, stand_in, unknown, refused = found[0], *found[-5:]
    assert isinstance(fitted, Verdict)
    assert (fitted.group, fitted.fitted, fitted.constants) == ("modelled", True, "own")
    assert isinstance(fresh, Verdict)
    assert (fresh.group, fresh.fitted) == ("modelled", False)
    assert abs(fresh.error) < 0.01
    assert isinstance(other, Verdict)
    assert other.group == "transferred"
    assert isinstance(stand_in, Verdict)
    assert stand_in.group == "stand-in"
    assert unknown == Skipped(rows[-2], "kernel 'FA5' is not modelled")
    assert refused == Skipped(rows[-1], "not predicted: the head size is above 256")


def test_errors_are_also_given_net_of_the_launch() -> None:
    (found,) = judge([row(batch=1, heads_q=1, seqlen_q=128, seqlen_k=128, metric="ms", value=0.01)],
                     {}, (), LineModel)  # fmt: skip
    assert isinstance(found, Verdict)
    assert found.launch_dominated
    rest = found.predicted_ms - 1e3 * LAUNCH_S
    assert found.net_error == pytest.approx(rest / (0.01 - 1e3 * LAUNCH_S) - 1)


def test_json_has_the_columns_and_the_verdict_or_the_reason() -> None:
    predicted, skipped = to_json(judge([row(), row(gpu="GB200")], {}, (), LineModel))
    assert predicted["algorithm"] == "FA2"
    assert predicted["heads_kv"] is None
    assert {"predicted_ms", "measured_ms", "roofline_ms", "error", "fitted"} <= predicted.keys()
    assert "skipped" not in predicted
    assert predicted["error"] == pytest.approx(
        float(str(predicted["predicted_ms"])) / float(str(predicted["measured_ms"])) - 1
    )
    assert predicted["roofline_ms"] == pytest.approx(4 * 4 * 16 * 4096**2 * 128 / 1e12)
    assert skipped["skipped"] == "GPU 'GB200': Blackwell is not modelled"
    assert "predicted_ms" not in skipped


def test_what_is_left_out_is_predicted_by_constants_that_never_saw_it() -> None:
    """One length is slower than the model can be: it fits badly only where it was left out."""
    rows = [one for one in grid() if one.seqlen_q != 16384]
    slow = [timed({"efficiency": 0.3, "row_ns": 3.0}, seqlen_q=16384, seqlen_k=16384, head_dim=d)
            for d in (64, 128)]  # fmt: skip
    table = leave_one_out(cases([*rows, *slow]), LineModel)
    lengths = table[table["factor"] == "length"]
    errors = lengths[lengths["left_out"] == "16384"]["model"]
    assert (errors < -0.4).all()
    assert set(table["factor"]) == {"head size", "mask", "length", "source", "GPU"}
    assert len(table) == 5 * 10


def test_the_figure_of_what_was_left_out_has_a_point_a_prediction() -> None:
    table = leave_one_out(cases(grid()), LineModel)
    figure = draw_held_out(table)
    points = sum(len(line.get_xdata()) for axis in figure.axes for line in axis.lines)
    assert points == table[["model", "roofline", "interpolation"]].notna().sum().sum()
    assert figure.axes[0].get_title() == "one head size left out"


def test_without_any_rows_left_a_kernel_takes_those_of_its_relative() -> None:
    h100 = grid({"efficiency": 0.62, "row_ns": 0.2})
    h200 = grid({"efficiency": 0.8, "row_ns": 0.2}, gpu="H200")
    table = leave_one_out(cases([*h100, *h200]), LineModel)
    gpus = table[(table["factor"] == "GPU") & (table["left_out"] == "h200")]
    assert gpus["model"].max() == pytest.approx(0.8 / 0.62 - 1, abs=0.03)


def test_summaries_leave_out_what_is_not_there() -> None:
    found = error_summary([0.1, -0.3, None, float("nan")])
    assert (found["rows"], found["mean"], found["max"]) == (2, 0.2, 0.3)


def test_the_page_has_every_part_and_the_figure_every_row(tmp_path: Path) -> None:
    rows = [*grid(), row(gpu="H200"), row(gpu="GB200"), row(source="another lab", value=300)]
    table = fit(cases(grid()), LineModel)
    found = judge(rows, table, grid(), LineModel)
    text = report(found, leave_one_out(cases(grid()), LineModel), table, "a test")
    parts = [
        "modelled, never fitted",
        "Leave one out",
        "flash-attention-2 on h100, fwd",
        "head size 128, causal",
        "Where it fails, and why",
        "Blackwell is not modelled",
    ]
    assert [part for part in parts if part not in text] == []
    verdicts = [one for one in found if isinstance(one, Verdict)]
    figure = draw_scatter(verdicts)
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(points) == len(verdicts)


def test_slices_that_are_off_to_one_side_are_told() -> None:
    """Rows of one length take 1.25 times as long as the model says: 20 % too little."""
    slow = [
        row(seqlen_q=2048, seqlen_k=2048, head_dim=d, source="a lab", metric="ms",
            value=1.25 * float(timed(TRUE, seqlen_q=2048, seqlen_k=2048, head_dim=d).value or 0))
        for d in (64, 128)
    ]  # fmt: skip
    table = fit(cases(grid()), LineModel)
    text = report(judge([*grid(), *slow], table, (), LineModel), None, table, "a test")
    part = text.split("What the model misses")[1].split("##")[0]
    assert re.search(
        r"flash-attention-2 on h100, fwd \| length 2048 \| 2 \| -(19.9|20.[01]) ", part
    )
    assert "length 4096 |" not in part


def test_sources_that_disagree_on_a_call_are_told() -> None:
    rows = [row(metric="ms", value=1.0), row(metric="ms", value=1.1, source="another lab")]
    text = report(judge(rows, {}, (), LineModel), None, {}, "a test")
    assert "1 calls are measured by several sources" in text
    assert "takes 10.0 % longer" in text


def test_rows_that_were_measured_here_are_judged_like_published_ones(tmp_path: Path) -> None:
    """`einfuse measure` writes the published columns first, and a window among its options."""
    own = Measurement(
        "einfuse", "here", "NVIDIA H100 80GB HBM3", "sdpa-flash", "fwd", "float16", 4, 16, 4, 4096,
        4096, 128, True, "ms", 0.6, options="window=1024,sinks=4", torch="2.11",
    )  # fmt: skip
    path = tmp_path / "measured.csv"
    sigmoid = replace(own, options="similarity=sigmoid")
    write_measurements(path, [own, sigmoid, replace(own, algorithm="two-pass", options="")])
    found = judge(read_rows(path), {}, (), LineModel)
    assert isinstance(found[0], Verdict)
    assert found[0].case.owner == FA2
    assert (found[0].case.call.window, found[0].case.call.heads_kv) == (1024, 4)
    assert found[0].measured_ms == 0.6
    assert isinstance(found[1], Skipped)
    assert "similarity=sigmoid is not modelled" in found[1].reason
    assert found[2] == Skipped(found[2].row, "kernel 'two-pass' is not modelled")


def test_predictions_are_in_the_order_of_the_cases() -> None:
    mixed = cases([row(head_dim=64), row(algorithm="FA3"), row(head_dim=128)])
    found = predict(mixed, {}, LineModel)
    assert [one.case for one in found] == mixed

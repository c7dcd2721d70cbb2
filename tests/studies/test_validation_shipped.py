"""The shipped table, constants and designs: the bar on rows that were never fitted."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from einfuse.studies.validation.baselines import published_peaks
from einfuse.studies.validation.cases import Case, find_cases
from einfuse.studies.validation.constants import Owner, read_constants
from einfuse.studies.validation.prediction import fit
from einfuse.studies.validation.rows import AttentionRow, read_rows
from einfuse.studies.validation.verdicts import PUBLISHED, Verdict, error_summary, judge

from .validation_models import row

Rows = tuple[AttentionRow, ...]


@functools.cache
def shipped() -> Rows:
    return read_rows(PUBLISHED)


def cases(rows: Rows) -> list[Case]:
    return [one for one in find_cases(rows) if isinstance(one, Case)]


def split(judged: int, directions: tuple[str, ...]) -> tuple[Rows, Rows]:
    """The rows of all lengths but one, and those of the one."""
    rows = [row for row in shipped() if row.direction in directions]
    return (
        tuple(row for row in rows if row.seqlen_k != judged),
        tuple(row for row in rows if row.seqlen_k == judged),
    )


def errors_without(length: int, *directions: str) -> list[float]:
    """Errors on the modelled rows of a length, under constants fitted on the others."""
    known, fresh = split(length, directions)
    errors = []
    for one in judge(fresh, fit(cases(known))):
        assert isinstance(one, Verdict), one
        assert not one.fitted
        if one.group == "modelled":
            errors.append(one.error)
    return errors


def test_every_shipped_row_is_predicted_and_was_fitted() -> None:
    table = read_constants()
    for one in cases(shipped()):
        assert one.row.key in table[one.owner].fitted_on, one.owner
    assert all(len(own.values) <= 3 for own in table.values())


def test_the_shipped_constants_are_what_the_command_fits() -> None:
    owner = Owner("flash-attention-3", "h100", "fwd")
    own = fit([one for one in cases(shipped()) if one.owner == owner])[owner]
    assert own.values == pytest.approx(read_constants()[owner].values, rel=0.02)


@pytest.mark.parametrize(
    ("group", "cells"),
    [
        ("transferred", {"algorithm": "cuDNN 9.19", "gpu": "H200", "head_dim": "192/128"}),
        ("transferred", {"algorithm": "cuDNN 9.19", "gpu": "H200", "direction": "bwd"}),
        ("transferred", {"algorithm": "Triton tutorial", "direction": "bwd"}),
        ("transferred", {"algorithm": "FA2", "gpu": "RTX 4090"}),
        ("transferred", {"gpu": "H100 PCIe", "heads_kv": 2, "direction": "bwd"}),
        ("modelled", {"algorithm": "FA3 sliding window 1024", "causal": True}),
        (
            "modelled",
            {"algorithm": "FlashMLA", "seqlen_q": 1, "heads_kv": 1, "head_dim": "576/512"},
        ),
        ("transferred", {"algorithm": "FlashDecoding", "seqlen_q": 1, "causal": ""}),
        ("transferred", {"algorithm": "lightning attention", "metric": "ms", "value": 1}),
        ("stand-in", {"algorithm": "ThunderKittens"}),
        ("stand-in", {"algorithm": "xformers", "direction": "fwd+bwd"}),
        ("stand-in", {"algorithm": "FlexAttention", "direction": "bwd"}),
    ],
)
def test_kernels_beyond_the_shipped_rows_are_predicted_apart(
    group: str, cells: dict[str, object]
) -> None:
    """No call is faster than what its operands alone take, nor slow beyond reason."""
    (one,) = judge([row(**cells)], read_constants())
    assert isinstance(one, Verdict), one
    assert one.group == group
    assert not one.fitted
    moved_ms = 1e3 * one.case.call.moved_bytes / published_peaks(one.case.owner.gpu)[1]
    assert 0.8 * moved_ms < one.predicted_ms < 100 * one.roofline_ms


@pytest.mark.slow
def test_all_shipped_constants_are_what_the_command_fits() -> None:
    table = read_constants()
    found = fit(cases(shipped()))
    assert found.keys() == table.keys()
    for owner, own in found.items():
        assert own.values == pytest.approx(table[owner].values, rel=0.02), owner
        assert own.mean_error == pytest.approx(table[owner].mean_error, abs=1e-3), owner


def assert_within_the_bar(errors: list[float]) -> None:
    """7 % on average, 15 at the 90th percentile, 35 at most, at lengths of 1024 and more."""
    found = error_summary(errors)
    assert found["mean"] <= 0.07
    assert found["p90"] <= 0.15
    assert found["max"] <= 0.35


def test_a_length_that_was_never_fitted_keeps_the_bar() -> None:
    errors = errors_without(4096, "fwd")
    assert len(errors) == 26
    assert_within_the_bar(errors)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 4096, 16384])
def test_every_length_that_was_never_fitted_keeps_the_bar(length: int) -> None:
    errors = errors_without(length, "fwd", "fwd+bwd")
    assert len(errors) >= 38
    assert_within_the_bar(errors)


@pytest.mark.slow
def test_the_model_beats_the_roofline_on_every_fused_kernel() -> None:
    verdicts = [one for one in judge(shipped(), read_constants()) if isinstance(one, Verdict)]
    for owner in {one.case.owner for one in verdicts}:
        own = [one for one in verdicts if one.case.owner == owner]
        model = np.mean([abs(one.error) for one in own])
        roofline = np.mean([abs(one.roofline_ms / one.measured_ms - 1) for one in own])
        assert model < roofline, owner

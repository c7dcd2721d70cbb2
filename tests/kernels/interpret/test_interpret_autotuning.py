"""Tuning by measurement around real launches, in Triton's interpreter, with a timer that counts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls import autotuning  # noqa: E402
from einfuse.kernels.calls.dispatch import attention  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402


@pytest.fixture
def timed(monkeypatch):
    """The calls that were timed; each takes less long than the one before."""
    calls = []

    def time_ms(call):
        call()
        calls.append(call)
        return -float(len(calls))

    monkeypatch.setenv(autotuning.VARIABLE, "1")
    monkeypatch.setattr(autotuning, "timer_of", lambda _: time_ms)
    monkeypatch.setattr(autotuning, "_TUNERS", {})
    return calls


def test_both_directions_are_tuned_and_right(timed, monkeypatch):
    torch.manual_seed(0)
    leaves = [torch.randn(1, 1, 8, 16, requires_grad=True) for _ in range(3)]

    def differentiate():
        out = attention(*leaves, causal=True, kernel="one-pass")
        return (out, *torch.autograd.grad(out.sin().sum(), leaves))

    found = differentiate()
    launches = {key[1] for tuner in autotuning._TUNERS.values() for key in tuner.found}
    assert launches == {"forward", "backward_delta", "backward_q", "backward_kv"}
    number = len(timed)
    differentiate()
    assert len(timed) == number > 4
    monkeypatch.setenv(autotuning.VARIABLE, "0")
    for ours, plain in zip(found, differentiate(), strict=True):
        torch.testing.assert_close(ours, plain)


def test_decoding_is_tuned_and_right(timed, monkeypatch):
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 1, 16), torch.randn(1, 1, 40, 16)
    found = decode_attention(q, k, k, splits=2)
    assert timed
    monkeypatch.setenv(autotuning.VARIABLE, "0")
    for ours, plain in zip(found, decode_attention(q, k, k, splits=2), strict=True):
        torch.testing.assert_close(ours, plain)

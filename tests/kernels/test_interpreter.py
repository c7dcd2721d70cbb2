"""The mended rounding of Triton's interpreter, against PyTorch's."""

from __future__ import annotations

import pytest

from einfuse.kernels.calls.interpreter import round_to_bfloat16

torch = pytest.importorskip("torch")


def test_rounding_is_that_of_torch() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (10_000,), generator=torch.Generator().manual_seed(7))
    numbers = bits.to(torch.int32).view(torch.float32)
    numbers = torch.where(torch.isfinite(numbers), numbers, 1.0)
    expected = numbers.to(torch.bfloat16).view(torch.int16).numpy().view("u2")
    assert (round_to_bfloat16(numbers.numpy()) == expected).all()

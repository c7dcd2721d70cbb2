"""What wrong calls of decoding, linear attention and shared prefixes are answered with."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.einsum.language.errors import EinfuseError  # noqa: E402
from einfuse.kernels.attention.shared_prefix_operator import shared_prefix_attention  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402
from einfuse.kernels.linear.operator import linear_attention  # noqa: E402

TENSORS = {name: torch.randn(2, 2, 10, 16) for name in "qkv"}
DECODE_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"q": None}, "q: expected a torch tensor with dimensions, found NoneType"),
    ({"k": torch.tensor(1.0)}, "k: expected a torch tensor with dimensions, found a scalar"),
    ({"lengths": [3, 4]}, "lengths: expected a tensor, found list"),
    ({"scale": "1"}, "scale: expected a number, found '1'"),
    ({"splits": -1}, "splits: expected at least 1, found -1"),
    ({"splits": 1.5}, "splits: expected a whole number of programs, found 1.5"),
    ({"causal": "yes"}, "causal: expected True or False, found 'yes'"),
    ({"kernel": "one-pass"}, "kernel: expected one of split-kv-decode, .*found 'one-pass'"),
]


@pytest.mark.parametrize(("change", "words"), DECODE_WRONG)
def test_a_wrong_decoding_step_is_answered(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        decode_attention(**{**TENSORS, **change})


LINEAR_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"log_decay": None}, "log_decay: expected a torch tensor with dimensions, found NoneType"),
    ({"log_decay": torch.tensor([0.0, float("nan")])}, "log_decay: expected finite numbers"),
    ({"log_decay": torch.tensor([0.0, -float("inf")])}, "log_decay: expected finite numbers"),
    ({"scale": "1"}, "scale: expected a number, found '1'"),
    ({"initial_state": [1.0]}, "initial_state: expected a tensor, found list"),
]


@pytest.mark.parametrize(("change", "words"), LINEAR_WRONG)
def test_a_wrong_linear_attention_is_answered(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        linear_attention(**{**TENSORS, "log_decay": torch.zeros(2), **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": None}, "q: expected a torch tensor with dimensions, found NoneType"),
        ({"lengths": [[1]]}, "lengths: expected a tensor, found list"),
        ({"scale": "1"}, "scale: expected a number, found '1'"),
    ],
)
def test_a_wrong_shared_prefix_is_answered(change: dict[str, Any], words: str) -> None:
    own, prefix = torch.randn(1, 1, 2, 4, 16), torch.randn(1, 1, 7, 16)
    right = {"q": own, "k": own, "v": own, "prefix_k": prefix, "prefix_v": prefix}
    with pytest.raises(EinfuseError, match=words):
        shared_prefix_attention(**{**right, **change})

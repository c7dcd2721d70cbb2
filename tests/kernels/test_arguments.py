"""What a wrong call of attention is answered with."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from einfuse.einsum.language.errors import EinfuseError  # noqa: E402
from einfuse.kernels.calls.dispatch import attention, attention_with_lse  # noqa: E402


def call(**changes: Any) -> torch.Tensor:
    usual = {name: torch.randn(2, 4, 10, 16) for name in "qkv"}
    return attention(**{**usual, **changes})


def mask(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def starts(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


PACKED = {name: torch.randn(10, 4, 16) for name in "qkv"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"q": [1.0]}, r"q: expected a torch tensor .*, found list"),
    (
        {"q": torch.randn(2, 4, 10, 16).to_sparse()},
        "q: expected a dense tensor, found torch.sparse",
    ),
    ({"scale": 10**400}, "scale: expected a finite number, found one beyond 1e308"),
    ({"cu_seqlens_k": starts(0, 10)}, "cu_seqlens_k: expected with cu_seqlens, found it alone"),
    ({"q": torch.randn(10, 16)}, r"q: expected 4 dimensions \[B, H, P, E\], found \[10, 16\]"),
    ({"k": torch.randn(2, 4, 10, 16).half()}, "k: expected float32 as q, found float16"),
    (
        {name: torch.ones(2, 4, 10, 16, dtype=torch.int32) for name in "qkv"},
        "q: expected float16, bfloat16 or float32, found int32",
    ),
    ({"v": torch.empty(2, 4, 10, 16, device="meta")}, "v: expected it on cpu as q, found meta"),
    ({"q": torch.randn(2, 4, 0, 16)}, r"q: expected no empty dimension, found \[2, 4, 0, 16\]"),
    ({"k": torch.randn(2, 4, 0, 16)}, "k: expected no empty dimension"),
    ({"q": torch.randn(3, 4, 10, 16)}, "k, v: expected the batch of q, 3, found 2 and 2"),
    ({"q": torch.randn(2, 4, 10, 8)}, "k: expected the head size of q, 8, found 16"),
    ({"v": torch.randn(2, 4, 9, 16)}, r"v: expected the heads and length of k.*\[2, 4, 9, 16\]"),
    ({"q": torch.randn(2, 6, 10, 16)}, "k: expected a number of heads that divides the 6 of q, "),
    ({"scale": 0.0}, "scale: expected a positive finite number, found 0.0"),
    ({"scale": float("nan")}, "scale: expected a positive finite number, found nan"),
    ({"similarity": "cosine"}, "similarity: expected one of softmax, sigmoid, found 'cosine'"),
    ({"window": 0}, "window: expected at least 1 key, found 0"),
    ({"window": 4, "sinks": -1}, "sinks: expected a number of keys, at least 0, found -1"),
    ({"sinks": 4}, "sinks: expected a window with them, found sinks=4 alone"),
    ({"softcap": -1.0}, "softcap: expected a finite number, at least 0, found -1.0"),
    ({"bias": 1.0}, "bias: expected with similarity='sigmoid' only"),
    ({"kernel": "flash"}, "kernel: there is no 'flash'; there are .*one-pass"),
    (
        {"block_mask": mask(1, 1, 2, 1)},
        r"block_mask: expected bool \[2 or 1, 4 or 1, 1, 1\], found bool \[1, 1, 2, 1\]",
    ),
    ({"block_mask": mask(1, 1, 1, 1).float()}, "block_mask: expected bool .*, found float32"),
    (
        {"block_mask": mask(1, 1, 1, 1), "block_size": 0},
        "block_size: expected at least 1, found 0",
    ),
    ({"full_heads": mask(4)}, "full_heads: expected a window with them, found none"),
    (
        {"full_heads": mask(3), "window": 4},
        r"full_heads: expected bool \[4\], .*found bool \[3\]",
    ),
    ({"cu_seqlens": starts(0, 10)}, r"q: expected 3 dimensions \[P, H, E\] with cu_seqlens"),
    (
        {**PACKED, "cu_seqlens": torch.tensor([0, 10])},
        "cu_seqlens: expected an int32 vector .*int64",
    ),
    (
        {**PACKED, "cu_seqlens": starts(0, 9)},
        "cu_seqlens: expected row numbers from 0 to 10, found 0 to 9",
    ),
    (
        {**PACKED, "cu_seqlens": starts(0, 4, 4, 10)},
        "cu_seqlens: expected sequences of at least one row",
    ),
    (
        {**PACKED, "cu_seqlens": starts(0, 4, 10), "cu_seqlens_k": starts(0, 10)},
        "cu_seqlens_k: expected the 2 sequences of cu_seqlens, found 1",
    ),
    ({**PACKED, "cu_seqlens": [0, 10]}, "cu_seqlens: expected a tensor, found list"),
    ({"causal": 1.5}, "causal: expected True or False, found 1.5"),
    ({"window": 2.5}, "window: expected a whole number of keys, found 2.5"),
    ({"scale": "small"}, "scale: expected a number, found 'small'"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_argument_is_named_with_what_is_accepted(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EinfuseError, match=words):
        call(**changes)


def test_what_is_wrong_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="scale"):
        call(scale=-1.0)


def test_a_kernel_asked_for_by_name_does_not_run_where_it_cannot() -> None:
    with pytest.raises(EinfuseError, match=r"kernel 'one-pass' runs on .*, not on cpu"):
        call(kernel="one-pass")


def test_an_unknown_keyword_is_answered_with_the_closest() -> None:
    q = torch.randn(1, 1, 4, 16)
    with pytest.raises(EinfuseError, match="windows: there is no such keyword; did you mean 'wind"):
        attention_with_lse(q, q, q, windows=3)  # type: ignore[call-arg]

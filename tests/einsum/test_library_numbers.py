"""What the cascades of the library compute, against NumPy written from the algorithms."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.execution.run import run
from einfuse.einsum.library.cascades import load

RNG = np.random.default_rng(17)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return [f] of one query [e] over keys [e, m], values [f, m]; 0 without a key."""
    if k.shape[-1] == 0:
        return np.zeros(v.shape[0])
    weights = np.exp(k.T @ q - (k.T @ q).max())
    return np.asarray(v @ weights / weights.sum())


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def test_sigmoid_attention() -> None:
    q, k, v, bias = normal(4, 5), normal(4, 9), normal(3, 9), np.array(-2.2)
    result = run(load("attention/sigmoid"), {"Q": q, "K": k, "V": v, "BIAS": bias})["AV"]
    np.testing.assert_allclose(result, v @ (1 / (1 + np.exp(-(k.T @ q + bias)))))


@pytest.mark.parametrize(("window", "sinks", "queries"), [(3, 2, 12), (1, 0, 12), (4, 1, 5)])
def test_a_window_with_sinks(window: int, sinks: int, queries: int) -> None:
    q, k, v = normal(4, queries), normal(4, 12), normal(3, 12)
    shape = {"W": window, "S": max(sinks, 1)}
    result = run(load("attention/window"), {"Q": q, "K": k, "V": v}, shape)["AV"]
    for p in range(queries):
        here = p + 12 - queries
        keys = [m for m in range(here + 1) if m < shape["S"] or m + window > here]
        np.testing.assert_allclose(result[:, p], attend(q[:, p], k[:, keys], v[:, keys]))


def test_sequences_of_different_lengths() -> None:
    lengths = np.array([5, 0, 7, 1])
    q, k, v = normal(3, 4, 7), normal(3, 4, 7), normal(2, 4, 7)
    inputs = {"Q": q, "K": k, "V": v, "LEN": lengths}
    result = run(load("attention/varlen"), inputs)["AV"]
    for s, length in enumerate(lengths):
        for p in range(7):
            expected = attend(q[:, s, p], k[:, s, :length], v[:, s, :length])
            np.testing.assert_allclose(result[:, s, p], expected * (p < length), atol=1e-12)


def test_a_shared_prefix() -> None:
    q, k, v = (normal(n, 3, 5) for n in (4, 4, 2))
    kp, vp = normal(4, 6), normal(2, 6)
    inputs = {"Q": q, "K": k, "V": v, "KP": kp, "VP": vp}
    result = run(load("attention/shared-prefix"), inputs)["AV"]
    for g in range(3):
        for p in range(5):
            keys = np.concatenate([kp, k[:, g, : p + 1]], 1)
            values = np.concatenate([vp, v[:, g, : p + 1]], 1)
            np.testing.assert_allclose(result[:, g, p], attend(q[:, g, p], keys, values))


def test_split_decoding() -> None:
    q, k, v = normal(4, 2), 30 * normal(4, 12), normal(3, 12)
    result = run(load("attention/split-decode"), {"Q": q, "K": k, "V": v}, {"M0": 3})["AV"]
    for p in range(2):
        np.testing.assert_allclose(result[:, p], attend(q[:, p], k, v), atol=1e-14)


def test_block_sparse_attention() -> None:
    q, k, v = normal(4, 12), normal(4, 20), normal(3, 20)
    blocks, counts = np.array([[4, 0, 2], [1, 3, 0], [2, 0, 0], [0, 0, 0]]), np.array([3, 2, 1, 0])
    inputs = {"Q": q, "K": k, "V": v, "IDX": blocks, "COUNT": counts}
    result = run(load("attention/block-sparse"), inputs, {"P0": 3, "M0": 4})["AV"]
    for p in range(12):
        kept = blocks[p // 3, : counts[p // 3]]
        keys = (kept[:, None] * 4 + np.arange(4)).ravel()
        expected = attend(q[:, p], k[:, keys], v[:, keys])
        np.testing.assert_allclose(result[:, p // 3, p % 3], expected)


def test_linear_attention_with_decay_is_its_recurrence() -> None:
    q, k, v, log_decay = normal(3, 12), normal(3, 12), normal(2, 12), -RNG.random(12)
    start = normal(3, 2)
    inputs = {"Q": q, "K": k, "V": v, "LD": log_decay, "H0": start}
    result = run(load("attention/linear-decay"), inputs, {"I": 4})
    state = start
    for n in range(12):
        state = np.exp(log_decay[n]) * state + np.outer(k[:, n], v[:, n])
        np.testing.assert_allclose(result["O"][:, n // 4, n % 4], state.T @ q[:, n])
    np.testing.assert_allclose(result["HN"], state)


def test_the_gemms_of_a_layer() -> None:
    cascade = load("layer/gemms")
    sizes = {"T": 6, "D": 8, "N": 4, "S": 5}
    inputs = {t.name: normal(*(sizes[r] for r in t.ranks)) for t in cascade.input_tensors}
    result = run(cascade, inputs, {"B": 2, "H": 2})
    for name in "QKV":
        np.testing.assert_allclose(result[name], inputs["X"] @ inputs[f"W{name}"])
    np.testing.assert_allclose(result["O"], inputs["AV"] @ inputs["WO"])
    np.testing.assert_allclose(result["Z"], inputs["Y"] @ inputs["WF1"] @ inputs["WF2"])

"""``einfuse run`` from the command line."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from einfuse.einsum.library.cascades import load

from .conftest import Command

SHAPE = "E=8,F=4,P=6,M=12"


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    weights = np.exp(k.T @ q)
    return v @ (weights / weights.sum(0))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    arrays = {n: generator.standard_normal(s) for n, s in
              (("Q", (8, 6)), ("K", (8, 12)), ("V", (4, 12)))}  # fmt: skip
    path = tmp_path / "inputs.npz"
    np.savez(path, **arrays)
    return path


def test_outputs_of_a_file_of_inputs_are_attention(
    einfuse: Command, inputs: Path, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    done = einfuse("run", "attention/1-pass", "--shape", "M0=3", "--inputs", str(inputs),
                   "--output", str(result))  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(inputs) as given, np.load(result) as found:
        assert found.files == ["AV"]
        expected = softmax_attention(given["Q"], given["K"], given["V"])
        np.testing.assert_allclose(found["AV"], expected, rtol=1e-12)
    header, row = done.stdout.splitlines()
    assert header.split() == ["output", "shape", "dtype", "min", "max", "mean", "not", "finite"]
    assert row.split()[:3] == ["AV", "4x6", "float64"]
    assert float(row.split()[4]) == pytest.approx(expected.max(), rel=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_drawn_inputs_follow_the_seed(einfuse: Command) -> None:
    runs = [
        einfuse("run", "attention/3-pass", "--shape", SHAPE, "--seed", seed).stdout
        for seed in ("1", "1", "2")
    ]
    assert runs[0] == runs[1] != runs[2]
    assert "float32" in runs[0]


def test_check_compares_with_float64_and_with_the_points(einfuse: Command) -> None:
    done = einfuse("run", "attention/1-pass", "--shape", f"{SHAPE},M0=3", "--check", "--json")
    assert done.returncode == 0, done.stderr
    check = json.loads(done.stdout)["check"]
    assert 0 < check["float64"]["AV"]["relative"] < 1e-5
    assert check["pointwise"]["AV"]["agrees"]
    assert check["pointwise"]["AV"]["error"] < 1e-12
    assert check["shape"]["M"] == check["shape"]["M1"] * check["shape"]["M0"]


@pytest.mark.parametrize("name", ["attention/window", "attention/varlen", "layer/gemms"])
def test_check_passes_on_filters_and_lengths(einfuse: Command, name: str) -> None:
    cascade = load(name)
    wholes = {split.whole for split in cascade.splits}
    shape = ",".join(f"{rank}=6" for rank in cascade.rank_names if rank not in wholes)
    done = einfuse("run", name, "--shape", shape, "--check")
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout
    assert "DIFFERS" not in done.stdout


def test_batch_ranks_that_the_cascade_leaves_out_are_added(einfuse: Command) -> None:
    done = einfuse("run", "attention/3-pass", "--shape", f"B=2,H=3,{SHAPE}")
    assert "2x3x4x6" in done.stdout


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_inputs_are_drawn_in_a_dtype(einfuse: Command, dtype: str) -> None:
    done = einfuse("run", "attention/3-pass", "--shape", SHAPE, "--dtype", dtype)
    assert dtype in done.stdout


def test_torch_runs_in_bfloat16(einfuse: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "out.npz"
    done = einfuse("run", "attention/3-pass", "--shape", SHAPE, "--backend", "torch",
                   "--dtype", "bfloat16", "--check", "--output", str(path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bfloat16" in done.stdout
    with np.load(path) as found:
        assert found["AV"].dtype == np.float32


def test_a_file_of_text_is_a_cascade(einfuse: Command, tmp_path: Path) -> None:
    path = tmp_path / "sum.txt"
    path.write_text("rank M\ninput A[M]\noutput Y\nY[] = A[m]\n")
    done = einfuse("run", str(path), "--shape", "M=5", "--check")
    assert done.returncode == 0, done.stderr
    assert "scalar" in done.stdout


def test_an_input_never_read_is_warned_about_beside_the_result(
    einfuse: Command, tmp_path: Path
) -> None:
    path = tmp_path / "sum.txt"
    path.write_text("rank M\ninput A[M], B[M]\noutput Y\nY[] = A[m]\n")
    done = einfuse("run", str(path), "--shape", "M=5")
    assert done.returncode == 0
    assert "warning" in done.stderr
    assert "B" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "E=8,F=4,P=6"], "rank M without a size"),
        (["--shape", SHAPE, "--backend", "jax"], "unknown backend 'jax'; there is numpy, torch"),
        (["--shape", SHAPE, "--dtype", "int8"], "unknown dtype 'int8'; there is float16"),
        (["--shape", SHAPE, "--dtype", "bfloat16"], "bfloat16 needs --backend torch"),
        (["--shape", "E=8,F=4,P=1024M,M=1024M"], r"would need about \d+ bytes"),
        (["--inputs", "missing.npz"], "missing.npz"),
        (
            ["--shape", SHAPE, "--output", "no/such/y.npz"],
            "no/such/y.npz: cannot be written: there is no",
        ),
        (["--shape", SHAPE, "--output", "."], "it is a folder"),
    ],
)
def test_mistakes_are_told_in_a_line(einfuse: Command, arguments: list[str], words: str) -> None:
    done = einfuse("run", "attention/3-pass", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_inputs_that_are_missing_or_too_many_are_named(
    einfuse: Command, inputs: Path, tmp_path: Path
) -> None:
    with np.load(inputs) as given:
        np.savez(tmp_path / "few.npz", Q=given["Q"], K=given["K"])
        np.savez(tmp_path / "many.npz", **given, X=np.ones(3))
        np.savez(tmp_path / "wrong.npz", Q=given["Q"], K=given["K"], V=np.ones((4, 11)))
    for name, words in (
        ("few.npz", "missing input V[F,M]"),
        ("many.npz", "has no input 'X'"),
        ("wrong.npz", "rank M has two sizes: 12 on axis 1 of K[8, 12] and 11 on axis 1 of V"),
    ):
        done = einfuse("run", "attention/3-pass", "--inputs", str(tmp_path / name))
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_what_is_no_npz_of_numbers_is_refused(einfuse: Command, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("text", "array", "pickle", "objects", "torn")}
    files["text"].write_text("Q,K,V\n")
    with files["array"].open("wb") as file:
        np.save(file, np.ones(3))
    files["pickle"].write_bytes(pickle.dumps({"Q": [1, 2]}))
    with files["objects"].open("wb") as file:
        np.savez(file, Q=np.array([{}], dtype=object))
    with files["torn"].open("wb") as file:
        np.savez(file, Q=np.ones(1000))
    files["torn"].write_bytes(files["torn"].read_bytes()[:500])
    for name, path in files.items():
        done = einfuse("run", "attention/3-pass", "--inputs", str(path))
        assert done.returncode == 2, name
        assert "npz" in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr


def test_an_output_is_replaced_in_one_step_or_not_at_all(
    einfuse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(np, "savez", full)
    done = einfuse("run", "attention/3-pass", "--shape", SHAPE, "--output", str(path))
    assert done.returncode == 2
    assert f"{path}: cannot be written: No space left on device" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.npz"]  # noqa: PTH208

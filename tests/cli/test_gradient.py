"""``einfuse gradient``, run as a user runs it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

import einfuse as ef


def test_a_gradient_is_printed_as_a_cascade_with_its_passes(einfuse: Callable[..., Any]) -> None:
    done = einfuse("gradient", "attention/3-pass", "--with-respect-to", "Q,K,V")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# attention/3-pass gradient: ")
    assert ef.parse(done.stdout).outputs == ("dQ", "dK", "dV")


def test_json_has_text_and_passes(einfuse: Callable[..., Any]) -> None:
    done = einfuse("gradient", "attention/sigmoid", "--with-respect-to", "V", "--json")
    found = json.loads(done.stdout)
    assert found["outputs"] == {"V": "dV"}
    assert found["passes"]["passes"] == 1
    assert ef.parse(found["text"]).outputs == ("dV",)


def test_an_unknown_input_is_refused(einfuse: Callable[..., Any]) -> None:
    done = einfuse("gradient", "attention/3-pass", "--with-respect-to", "X")
    assert done.returncode == 2
    assert "has no input X" in done.stderr


def test_a_loop_is_unrolled_at_a_shape(einfuse: Callable[..., Any]) -> None:
    arguments = ["gradient", "attention/1-pass", "--with-respect-to", "V"]
    done = einfuse(*arguments, "--shape", "M1=2")
    assert done.returncode == 0, done.stderr
    assert "RNV_2[f,p]" in done.stdout
    assert ef.parse(done.stdout).outputs == ("dV",)
    assert "--shape M1=..." in einfuse(*arguments).stderr


def test_what_the_forward_pass_saves_is_an_input(einfuse: Callable[..., Any]) -> None:
    arguments = ["gradient", "attention/3-pass", "--with-respect-to", "Q,K,V", "--save"]
    done = einfuse(*arguments, "AV,GM,SD")
    assert done.stdout.startswith("# attention/3-pass gradient: 1 pass over M")
    assert einfuse(*arguments, "AV,GM,SD", "--rank", "P").stdout.splitlines()[0].endswith("over P")
    assert "found 'Z'" in einfuse(*arguments, "AV", "--rank", "Z").stderr
    assert set(ef.parse(done.stdout).inputs) == {"Q", "K", "V", "dAV", "AV", "GM", "SD"}
    refused = einfuse(*arguments, "L")
    assert refused.returncode == 2 and "has no tensor L" in refused.stderr


def test_a_gradient_goes_through_a_pipe(
    einfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = einfuse("gradient", "attention/sigmoid", "--with-respect-to", "Q").stdout
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    done = einfuse("passes", "-", "--rank", "M")
    assert done.returncode == 0 and "1" in done.stdout.splitlines()[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert einfuse("derive", "-", "--rank", "M").stdout.startswith("# 0: 1 passes")
    monkeypatch.setattr("sys.stdin", io.StringIO("rank M\nY[m] ="))
    assert "<stdin>:2" in einfuse("passes", "-").stderr

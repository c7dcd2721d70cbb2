"""``einfuse gradient``, run as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

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

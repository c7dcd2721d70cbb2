"""Errors point into their text, and survive a trip between processes."""

from __future__ import annotations

import pickle

import pytest

from einfuse.einsum.language.errors import CascadeError, EinfuseError, closest
from einfuse.einsum.language.expression import Span
from einfuse.einsum.language.parser import parse


def test_an_error_knows_its_line_and_column() -> None:
    with pytest.raises(EinfuseError) as caught:
        parse("rank M\ninput A[M]\nY[m] = B[m]", source="a.txt")
    error = caught.value
    assert isinstance(error, CascadeError)
    assert (error.source, error.line, error.column) == ("a.txt", 3, 8)
    assert error.message.startswith("undefined tensor B")


def test_an_error_pickles_whole() -> None:
    error = CascadeError("wrong", Span(1, 3, 1, 5), "a bc d", "a.txt")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.txt:1:3: wrong\n    a bc d\n      ^^"
    assert (again.span, again.text) == (error.span, error.text)


def test_an_error_without_a_place_names_its_source() -> None:
    error = CascadeError("wrong", None, "", "a.txt")
    assert str(error) == "a.txt: wrong"
    assert (error.line, error.column) == (None, None)


def test_a_long_line_is_shown_in_part() -> None:
    text = "x" * 500 + "bad" + "y" * 500
    _, shown, caret = str(CascadeError("wrong", Span(1, 501, 1, 504), text)).splitlines()
    assert len(shown) < 220
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "bad"


def test_a_span_of_several_lines_is_marked_to_the_end_of_the_first() -> None:
    _, shown, caret = str(CascadeError("wrong", Span(1, 3, 2, 2), "ab cd\nef")).splitlines()
    assert (shown, caret) == ("    ab cd", "      ^^^")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("expp", "; did you mean 'exp'?"),
        ("EXP", "; did you mean 'exp'?"),
        ("zzz", "; there is exp, log, log2"),
        ("lgo2", "; did you mean 'log2'?"),
    ],
)
def test_the_closest_names_are_offered(name: str, hint: str) -> None:
    assert closest(name, ["log2", "exp", "log"]) == hint
    assert closest(name, []) == "; there is none"

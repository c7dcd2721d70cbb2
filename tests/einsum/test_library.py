"""The cascades that come along, and files of a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse.einsum.language.errors import CascadeError, EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load, names

from .test_parser import ONE_PASS

EINSUMS = {  # FuseMax, Cascades 4 and 5 and section IV-D; the 2-pass class of its Table I
    "attention/3-pass": "QK GM SN SD A AV",
    "attention/3-pass-deferred": "QK GM SN SD SNV AV",
    "attention/2-pass": "BK BV QK LM SLN SLD GM PLM SD A AV",
    "attention/1-pass": "BK BV RM RD RNV QK LM RM SLN SLD SLNV PRM SPD RD SPNV RNV AV",
    "layer/gemms": "Q K V O FF1 Z",
}


@pytest.mark.parametrize("name", EINSUMS)
def test_the_library_has_the_cascades_of_the_paper(name: str) -> None:
    assert name in names()
    assert [einsum.name for einsum in load(name).einsums] == EINSUMS[name].split()
    assert load(name).name == name


def test_every_cascade_of_the_library_names_its_source() -> None:
    for name in names():
        assert load(name).text.startswith("# "), name
    for name in EINSUMS:
        assert "arXiv 2406.10491" in load(name).text, name


def test_the_one_pass_cascade_is_the_example_of_the_language() -> None:
    assert load("attention/1-pass") == parse(ONE_PASS)


def test_a_cascade_is_read_once() -> None:
    assert load("attention/1-pass") is load("attention/1-pass")


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffrank M\ninput A[M]\nY[] = A[m] # \u00e9\n", encoding="utf-8")
    assert load(path).name == "mine"
    assert load(str(path)).source == str(path)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\nY[] = A[m]\n", encoding="utf-8")
    with pytest.raises(CascadeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2:7: undefined tensor A")


def test_an_unknown_name_lists_the_closest() -> None:
    with pytest.raises(EinfuseError, match="did you mean 'attention/1-pass'"):
        load("attention/1pass")
    with pytest.raises(EinfuseError, match="no cascade and no file is called 'zzz'; there is att"):
        load("zzz")


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"rank M\xff\n")
    with pytest.raises(EinfuseError, match="expected text in UTF-8, found byte 0xff at offset 6"):
        load(path)


def test_an_empty_file_and_a_folder_are_told_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("")
    with pytest.raises(CascadeError, match="no Einsum"):
        load(path)
    with pytest.raises(EinfuseError, match="no cascade and no file"):
        load(tmp_path)

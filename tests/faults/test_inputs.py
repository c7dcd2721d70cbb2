"""Files and arguments that mean something else than they seem to, or far too much."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import einfuse as ef
from einfuse.commands.arguments import parse_shape
from einfuse.einsum.language.yaml_text import parse_yaml
from einfuse.mapper.machine.architecture import DATA
from einfuse.mapper.machine.formula import parse_formula

from .conftest import Command

SHAPE = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
CHIP = (DATA / "architectures" / "fusemax.yaml").read_text(encoding="utf-8")
LAUGHS = "a0: &a0 [1, 2]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a: 1, a: 2}", "here:1:8: the key 'a' is given twice"),
        ("a: {b: 1}\nc: {b: 1,\n    b: 1}", "here:3:5: the key 'b' is given twice"),
        ("a: 1:30:00", "1:30:00 would be read in base 60"),
        ("a: 1:30.5", "1:30.5 would be read in base 60"),
        ("a: 010", "010 would be read in octal"),
        (LAUGHS, "more than 100,000 values, with its aliases written out"),
        ("&a [*a]", "an alias that contains itself"),
        ("[" * 3000, "nested too deeply"),
        ("a: " + "9" * 5000, "not a value"),
        ("a: 2024-13-45", "not a value: month must be in 1..12"),
        ("a: !!python/object/apply:os.system [true]", "not YAML: could not determine"),
        ("a: [1", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_yaml_that_is_not_what_it_seems_is_refused_at_once(text: str, words: str) -> None:
    before = time.process_time()
    with pytest.raises(ef.EinfuseError) as refused:
        parse_yaml(text, "here")
    assert words in str(refused.value)
    assert time.process_time() - before < 10  # not for ever: nothing is built


def test_yaml_with_aliases_merges_and_quotes_is_read_as_ever() -> None:
    text = "base: &b {x: 1, y: 0.5}\nown: {<<: *b, x: 2}\nlist: [*b, '1:30', '010', 0, 0x10, 1e3]"
    assert parse_yaml(text, "here") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("clock_hz: ", "clock_hz: true #", "clock_hz: expected a number or a text, found true"),
        ("clock_hz: ", "clock_hz: 1:30:00 #", "base 60"),
        ("clock_hz: ", "clock_hz: .nan #", "clock_hz: expected a number, found NaN"),
        ("clock_hz: ", "clock_hz: [1] #", "clock_hz: expected"),
        ("clock_hz: ", "clock_hz: 1e9\nclock_hz: ", "the key 'clock_hz' is given twice"),
        ("clock_hz: ", "clok_hz: ", "clok_hz: there is no such key"),
    ],
)
def test_an_architecture_takes_nothing_for_a_number(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in CHIP
    (tmp_path / "chip.yaml").write_text(CHIP.replace(old, new, 1))
    with pytest.raises(ef.EinfuseError) as refused:
        ef.load_architecture(tmp_path / "chip.yaml")
    assert words in str(refused.value)
    assert "Input should" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("M=1e12", {"M": 10**12}),
        ("M=1G,P=1T", {"M": 2**30, "P": 2**40}),
        ("M=1.5K, P=2e0", {"M": 1536, "P": 2}),
        ("M=1g", {"M": 2**30}),
    ],
)
def test_a_shape_is_read_as_other_numbers_are(text: str, sizes: dict[str, int]) -> None:
    assert parse_shape(text) == sizes


@pytest.mark.parametrize(
    "text", ["M=1e99", "M=1e999999999", "M=" + "9" * 5000, "M=1.5", "M=0", "M=1e-3", "M=nan", "M=٣"]
)
def test_a_shape_that_is_no_size_is_a_short_sentence(text: str) -> None:
    with pytest.raises(ef.EinfuseError, match="--shape") as refused:
        parse_shape(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("tile", ["4096", "2.5", "1e30", "0"])
def test_a_tile_by_hand_is_whole_and_at_most_its_rank(tile: str) -> None:
    content = {
        "schema": 1,
        "name": "gemm",
        "cascade": "rank M, N, K\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]",
        "architecture": "fusemax",
        "mapping": [
            f"for M in {tile}", "keep A, B, C at buffer", "for M in array_2d.rows",
            "for N in array_2d.columns", "for K", "parallel M over rows",
            "parallel N over columns", "compute C on array_2d",
        ],
    }  # fmt: skip
    design = ef.parse_design(content, "here")
    with pytest.raises(ef.EinfuseError, match="found"):
        ef.evaluate(design, {"M": 1024, "N": 64, "K": 64})


def test_a_table_that_is_none_shows_nothing_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("name,word\nzebra,hunter2\n")
    content = {
        "extends": "fusemax",
        "name": "x",
        "tables": {"t": {"file": "secret", "match": {"name": {"value": "M"}}}},
    }
    with pytest.raises(ef.EinfuseError) as refused:
        ef.parse_design(content, str(tmp_path / "d.yaml"), tmp_path)
    assert "zebra" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("count", [1000, 9000])
def test_a_formula_of_many_terms_is_a_sum(count: int) -> None:
    assert parse_formula(" + ".join(["M"] * count)).evaluate({"M": 2}) == 2 * count


@pytest.mark.parametrize("text", ["not " * 999 + "M", "-" * 9999 + "M", "M+" * 30000])
def test_a_formula_that_is_too_deep_or_long_is_refused(text: str) -> None:
    with pytest.raises(ef.EinfuseError) as refused:
        parse_formula(text).evaluate({"M": 1})
    assert len(str(refused.value)) < 20_000 or "found" in str(refused.value)


def test_arrays_of_few_bits_do_not_wrap_round() -> None:
    truth = ef.evaluate("fusemax", SHAPE).cycles
    narrow = {"M": np.int16, "P": np.int16, "E": np.int8, "F": np.uint8}
    sizes = SHAPE | {rank: np.array([SHAPE[rank]], kind) for rank, kind in narrow.items()}
    assert ef.evaluate("fusemax", sizes).cycles == pytest.approx([truth])


SUM = "rank M\ninput A[M]\noutput Y\nY[] = A[m]"
PAIR = "rank M\ninput A[M]\noutput Y\nY[m] = A[m] {} A[m]"


@pytest.mark.parametrize("text", [SUM, PAIR.format("+"), PAIR.format("*")])
@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_whole_numbers_that_would_wrap_round_are_refused(text: str, kind: type) -> None:
    large = np.full(4, 2**62, kind)
    with pytest.raises(ef.EinfuseError, match="64 bits"):
        ef.run(ef.parse(text), {"A": large})
    found = ef.run(ef.parse(text), {"A": np.full(4, 3, kind)})["Y"]
    assert found.max() in (12, 6, 9)


def test_a_mask_is_not_lost() -> None:
    masked = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    with pytest.raises(ef.EinfuseError, match="masked array"):
        ef.run(ef.parse(SUM), {"A": masked})
    assert ef.run(ef.parse(SUM), {"A": np.ma.array([1.0, 2.0])})["Y"] == 3


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path: Path, einfuse: Command) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10 * 2**40 // 8,)}
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("A.npy", header.getvalue() + b"\0" * 64)
    (tmp_path / "sum.txt").write_text(SUM)
    done = einfuse("run sum.txt --inputs huge.npz")
    assert done.returncode == 2
    assert "claims 10,995,116,277,760 bytes and holds" in done.stderr


def test_a_device_is_not_ignored(einfuse: Command) -> None:
    done = einfuse("run attention/3-pass --shape E=2,F=2,P=2,M=4 --device cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs --backend torch" in done.stderr


def test_study_help_names_every_study(einfuse: Command) -> None:
    from einfuse.studies.frame.study import STUDIES

    said = einfuse("study --help").stdout
    assert all(name in said for name in STUDIES)


def test_an_empty_choice_of_architectures_is_an_error(einfuse: Command) -> None:
    pytest.importorskip("triton")
    done = einfuse("compile-check --arch ,")
    assert done.returncode == 2
    assert "--arch: expected architectures" in done.stderr


def test_a_table_without_a_usable_row_is_an_error(tmp_path: Path, einfuse: Command) -> None:
    page = Path(__file__).parents[2] / "docs" / "measurements.md"
    table = page.read_text(encoding="utf-8").split("```csv\n")[1].split("```")[0]
    (tmp_path / "mine.csv").write_text(table)
    assert einfuse("validate --data mine.csv --out good --no-leave-one-out").returncode == 0
    (tmp_path / "bad.csv").write_text(table.replace("H100 SXM5", "abacus"))
    done = einfuse("validate --data bad.csv --out bad --no-leave-one-out")
    assert done.returncode == 2
    assert "bad.csv: no row can be predicted: " in done.stderr
    assert not list((tmp_path / "bad").iterdir())

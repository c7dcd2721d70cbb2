"""What the mapper says of wrong architectures, mappings and designs: what, where, what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.design.design import load_design, parse_design
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import DATA, load_architecture, parse_architecture
from einfuse.mapper.nest.counting import count
from einfuse.mapper.nest.nest import parse_nest
from einfuse.mapper.nest.reuse import Problem
from einfuse.mapper.nest.workload import facts

FUSEMAX = yaml.safe_load((DATA / "designs" / "fusemax.yaml").read_text(encoding="utf-8"))
HARDWARE = yaml.safe_load((DATA / "architectures" / "fusemax.yaml").read_text(encoding="utf-8"))
SIZES = {"B": 1, "H": 1, "E": 64, "F": 64, "P": 256, "M": 512, "M1": 2, "M0": 256}
LANES = {"array_2d": {"rows": 256, "columns": 256}, "array_1d": {"lanes": 256}}
QK = ["for E", "parallel M0 over rows", "parallel P over columns", "compute QK on array_2d"]
AV = ["for F", "parallel P over lanes", "compute AV on array_1d"]


def _without(path: str) -> Callable[[Any], None]:
    """Return what deletes a key by its path from a file's content."""

    def change(content: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            content = content[key]
        del content[last]

    return change


def _with(path: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        for key in parents:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with("clock_hz", "fast enough"), "clock_hz: formula 'fast enough': expected a number"),
        (_with("clock_hz", -1), "clock_hz: expected a number above 0, found -1"),
        (_with("memories.buffer.bytes", 0), "buffer.bytes: expected a number above 0, found 0"),
        (_with("memories.dram.read_pj", -1), "dram.read_pj: expected a number of at least 0"),
        (_without("units.array_1d.lanes"), "units.array_1d: .* either rows and columns, or lanes"),
        (_with("units", {}), "units: expected at least 1"),
        (
            _with("units.array_1d.operations.exp", {"slot": 1}),
            "operations.exp.slot: there is no such",
        ),
        (_with("memories.array_1d", HARDWARE["memories"]["buffer"]), "'array_1d' names two things"),
        (_with("schema", 7), "schema: expected 1, found 7"),
    ],
)
def test_a_wrong_architecture_names_the_path(change: Callable[[Any], None], words: str) -> None:
    content = copy.deepcopy(HARDWARE)
    change(content)
    with pytest.raises(ArchitectureError, match=words):
        parse_architecture(content, "my.yaml")


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("buffr.bytes", "buffer.read_pj: .*unknown name 'buffr.bytes'.*buffer.bytes"),
        ("buffer.write_pj", "buffer.read_pj -> buffer.write_pj -> buffer.read_pj go round"),
    ],
)
def test_formulas_of_an_architecture_name_what_they_lack(formula: str, words: str) -> None:
    content = copy.deepcopy(HARDWARE)
    content["memories"]["buffer"] |= {"read_pj": formula, "write_pj": "buffer.read_pj"}
    with pytest.raises(ArchitectureError, match=words):
        parse_architecture(content, "my.yaml").values()


def test_a_parameter_that_does_not_exist_names_the_closest() -> None:
    with pytest.raises(ArchitectureError, match=r"no parameter 'array_1d.lane'; did you mean"):
        load_architecture("fusemax").with_settings({"array_1d.lane": 1})


@pytest.mark.parametrize("text", ["[1,", "a: b: c", "\0"])
def test_a_file_that_is_no_yaml_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    for load in (load_architecture, load_design):
        with pytest.raises(ArchitectureError, match=r"bad\.yaml"):
            load(path)


@pytest.mark.parametrize("name", ["fusemx", "/nowhere/x.yaml"])
def test_a_file_that_does_not_exist_is_named(name: str) -> None:
    for load in (load_architecture, load_design):
        with pytest.raises(EinfuseError, match=name) as caught:
            load(name)
        assert "did you mean" in str(caught.value) or "no such" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("for B", "mapping: expected a list of lines, found 'for B'"),
        ([], r"mapping: expected a list of lines, found \[\]"),
        ([5], r"mapping\[0\]: expected a line or a branch, found 5"),
        (["four B"], r"mapping\[0\]: expected 'for', .* found 'four B' at column 1"),
        (["for B", "for P in"], r"mapping\[1\]: .* found the end in 'for P in'"),
        (["keep Q buffer"], r"mapping\[0\]: .* found 'buffer' at column 8 in 'keep Q buffer'"),
        ([{"brunch": [["for B"]]}], r"mapping\[0\]: .* found the keys brunch"),
        ([{"branch": []}], r"mapping\[0\].branch: expected a list of nests, found \[\]"),
        (["compute QK on array_2d", "for B"], "nothing may follow a compute .* found 'for B'"),
    ],
)
def test_a_line_that_is_none_is_shown_with_its_place(lines: Any, words: str) -> None:
    with pytest.raises(MappingError, match=words):
        parse_nest(lines)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["for Z", *QK], "mapping: 'for Z': loop over an unknown rank 'Z'"),
        (
            ["for P in queries", *QK],
            "'for P in queries': formula 'queries': unknown name 'queries'",
        ),
        (["for P in 0", *QK], "'for P in 0': expected a tile of at least 1 of rank P, found 0"),
        (["for P in 1 - 3", *QK], "expected a tile of at least 1 of rank P, found -2"),
        (["for P in P / 0", *QK], "'for P in P / 0': .*division by zero"),
        (["keep Q at bufer", *QK], "'keep Q at bufer': no level 'bufer'; did you mean 'buffer'"),
        (["keep Qq at buffer", *QK], "keep of an unknown tensor 'Qq'; did you mean 'Q'"),
        (["keep Q at buffer", "keep Q at buffer", *QK], "expected a level further in"),
        (["keep Q at buffer overlaying K", *QK], "overlaying K, which is not kept at buffer above"),
        (["keep Q at registers", *QK], "kept at registers above a loop in space.*move the keep"),
        (["for M1", *QK[1:]], "QK is left with 64 of rank E in one step: add 'for E' or"),
        (
            [*QK[:3], "compute QQ on array_2d"],
            "compute of an unknown Einsum 'QQ'; there is AV, LM, PRM, QK",
        ),
        ([*QK[:3], "compute QK on array_3d"], "a loop in space needs one unit below it"),
        (["for E, M1, M0, P", "compute QK on array_3d"], "no unit 'array_3d'; did you mean"),
        (["parallel M0 over lanes", QK[3]], "array_2d has no dimension 'lanes'; .*columns"),
        (["for M1", *QK[:3], QK[3] + " forwarding V"], "forwarding V, which is no operand"),
        (["for M1", *QK[:3], QK[3] + " accumulating E"], "accumulating E, which is no rank of"),
        (["for M1", *QK], "Einsum LM of attention/1-pass has no place .* 'compute LM on UNIT'"),
        (["for M1", {"branch": [QK, QK]}], "Einsum QK is computed twice"),
        (AV, "tensor RNV has no home where AV reads it: add 'keep RNV at LEVEL' above"),
        (
            ["for M0, M1, P", "compute LM on array_2d forwarding QK"],
            "LM reads QK before QK makes it: compute QK first",
        ),
        (
            ["for M1", {"branch": [QK, ["for M0, P", "compute LM on array_2d"]]}],
            "tensor QK has no home where LM reads it: add 'keep QK at LEVEL' above, or 'forwarding",
        ),
    ],
)
def test_a_wrong_mapping_shows_the_line(lines: list[Any], words: str) -> None:
    from einfuse.einsum.library.cascades import load

    cascade = load("attention/1-pass")
    problem = Problem(
        facts(cascade), SIZES, SIZES, LANES, ("dram", "buffer", "staging"), "trailing", "whole"
    )
    with pytest.raises(MappingError, match=words):
        count(parse_nest(lines), problem)


def test_a_tensor_that_is_kept_twice_apart_is_not_read_where_it_was_not_put() -> None:
    from einfuse.einsum.language.parser import parse

    cascade = parse("rank M\ninput A[M]\noutput C\nT[m] = exp(A[m])\nC[m] = T[m] * 2\n", "two")
    lines = [
        {
            "branch": [
                ["keep T at buffer", "for M", "compute T on array_1d"],
                ["keep T at buffer", "for M", "compute C on array_1d"],
            ]
        }
    ]
    problem = Problem(facts(cascade), {"M": 4}, {}, LANES, ("dram", "buffer"))
    with pytest.raises(MappingError, match="C reads T from buffer, where T does not put it: add"):
        count(parse_nest(lines), problem)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with("schema", 2), "my.yaml: schema: expected 1, found 2"),
        (_with("mappings", []), "my.yaml: mappings: there is no such key"),
        (_without("mapping"), "my.yaml: mapping: is missing"),
        (_with("cascade", "attention/1-pas"), "my.yaml: no cascade .*'attention/1-pas'; did you"),
        (_with("architecture", "fusemx"), "my.yaml: no architecture 'fusemx'; did you mean"),
        (_with("retention", "lazy"), "my.yaml: retention: .*'trailing' or 'explicit'.*'lazy'"),
        (_with("edges", "round"), "my.yaml: edges: .*'whole' or 'exact'"),
        (_with("composition", "x"), "my.yaml: composition: .*.*'sequential'"),
        (_with("let.queries", "ceil(P /"), r"my.yaml: .*'ceil\(P /'.* found the end"),
        (_with("let.queries", "foo(3)"), "unknown function 'foo'; did you mean 'floor'"),
        (_with("let.queries", "ceil(3, 4)"), "ceil takes 1 arguments?, found 2"),
        (_with("set", {"buffer.byte": 1}), "my.yaml: set: .*no parameter 'buffer.byte'; did you"),
        (_with("stages.0.phases", []), "my.yaml: stages.0.phases: expected at least 1"),
        (_with("stages.0.phases.1", {"array_1d": 5}), r"phases\[1\].array_1d: expected a list of"),
        (_with("stages.0.offsets.ZZ", 3), "my.yaml: stages.*ZZ stands in no phase of the stage"),
        (
            _with("tables", {"t": {"file": "nowhere.csv", "match": {"E": {"value": "E"}}}}),
            "my.yaml: tables.t: nowhere.csv: No such file",
        ),
    ],
)
def test_a_wrong_design_names_the_path(change: Callable[[Any], None], words: str) -> None:
    content = copy.deepcopy(FUSEMAX)
    change(content)
    with pytest.raises(MappingError, match=words):
        parse_design(content, "my.yaml")


def test_a_design_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "schema: 1\nname: mine\nextends: fusemax\nset: {array_1d.lanes: 512}\n"
    )
    mine = load_design(tmp_path / "mine.yaml")
    assert mine.nest == load_design("fusemax").nest
    assert dict(mine.settings).keys() == {"array_1d.lanes"}
    (tmp_path / "flat.yaml").write_text("schema: 1\nname: wide\nextends: flat\nedges: exact\n")
    assert load_design(tmp_path / "flat.yaml").tables[0].columns.keys() >= {"rows", "output"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nothing", "no design 'nothing'"),
        ("extends: circle.yaml", "in a circle"),
        ("extends: list.yaml", "which is no design"),
    ],
)
def test_a_design_extends_a_design(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "circle.yaml").write_text(f"schema: 1\nname: a\n{text}\n")
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    with pytest.raises(EinfuseError, match=words):
        load_design(tmp_path / "circle.yaml")

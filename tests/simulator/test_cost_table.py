"""Tables of costs: cited figures, power laws between them, refusals outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.simulator.components.cost_model import DATA, find_cost_model
from einfuse.simulator.components.cost_table import TableModel, load_table

HEAD = "component,type,quantity,at,per,node,value,status,source,version\n"


def _value(technology: str, component: str, type: str, quantity: str, **sizes: Any) -> Any:
    return find_cost_model(technology).price(component, type, quantity, sizes).value


def _table(tmp_path: Path, *rows: str) -> TableModel:
    path = tmp_path / "own.csv"
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return load_table(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        # Horowitz (ISSCC 2014): sums of multiply and add
        (("45nm", "mac", "int8", "energy_pj"), 0.2 + 0.1),
        (("45nm", "mac", "fp16", "energy_pj"), 1.1 + 0.4),
        (("45nm", "mac", "fp32", "area_um2"), 7700 + 4184),
        # FuseMax: the exp unit is five multiply-accumulates and one multiply
        (("45nm", "exp", "fusemax", "energy_pj"), 5 * 17.1645 + 8.825),
        # Jouppi et al. (ISCA 2021), table 2
        (("7nm", "mac", "bf16", "energy_pj"), 0.21 + 0.11),
        (("7nm", "multiply", "fp32", "energy_pj"), 1.31),
    ],
)
def test_figures_are_those_of_their_sources(where: tuple[str, ...], value: float) -> None:
    technology, component, type_, quantity = where
    assert _value(technology, component, type_, quantity) == pytest.approx(value, rel=1e-12)


def test_the_published_buffers_are_one_port_runs_of_cacti() -> None:
    """FuseMax's fitted lines and its published areas, to all digits that CACTI prints."""
    for size, width, read, write in (
        (16 << 20, 4096, 12512.7, 15751.4),
        (32 << 20, 4096, 23854.6, 27097.5),
    ):
        line = {"bytes": size, "width_bits": width, "ports": 1}
        assert _value("45nm", "sram", "lstp", "read_pj", **line) == read
        assert _value("45nm", "sram", "lstp", "write_pj", **line) == write
    for size, width, area in ((16 << 10, 256, 53741.5), (256 << 10, 4096, 2140930)):
        line = {"bytes": size, "width_bits": width, "ports": 1}
        assert _value("45nm", "sram", "lstp", "area_um2", **line) == area


@pytest.mark.parametrize(
    ("size", "width", "read", "area"),
    [  # CACTI 7.0 run at these very sizes
        (5 << 20, 1024, 2068.48, 21688900.0),
        (98304, 512, 87.2404, 306567.0),
        (12288, 64, 10.368, 39623.9),
        (49152, 192, 34.5698, 146830),
        (393216, 768, 310.504, 1.6892e06),
        (3145728, 1536, 2019.62, 1.45012e07),
        (25165824, 4096, 19244.1, 1.43816e08),
        (12582912, 3072, 8497.45, 5.98147e07),
        (20971520, 4096, 14404.4, 1.00609e08),
        (1572864, 320, 373.182, 5.49158e06),
    ],
)
def test_between_the_rows_the_table_is_near_to_what_cacti_gives_there(
    size: int, width: int, read: float, area: float
) -> None:
    line = {"bytes": size, "width_bits": width, "ports": 1}
    assert _value("45nm", "sram", "lstp", "read_pj", **line) == pytest.approx(read, rel=0.15)
    assert _value("45nm", "sram", "lstp", "area_um2", **line) == pytest.approx(area, rel=0.15)


def test_between_rows_a_figure_follows_a_power_law(tmp_path: Path) -> None:
    """x**1.5 * y**-0.5 is hit everywhere, whatever the rows."""
    rows = [
        f"ram,,read_pj,bytes={x} width_bits={y},,9,{x**1.5 * y**-0.5!r},quoted,me,1"
        for x in (2, 16, 1024)
        for y in (1, 8, 64)
    ]
    table = _table(tmp_path, *rows)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(2, 1024, 50), rng.uniform(1, 64, 50)
    found = table.price("ram", "", "read_pj", {"bytes": x, "width_bits": y}).value
    assert found == pytest.approx(x**1.5 * y**-0.5, rel=1e-12)
    one = table.price("ram", "", "read_pj", {"bytes": float(x[7]), "width_bits": float(y[7])})
    assert one.value == pytest.approx(found[7], rel=1e-15)
    assert "power law" in one.how
    corner = table.price("ram", "", "read_pj", {"bytes": 16, "width_bits": 8})
    assert corner.value == 16**1.5 * 8**-0.5 and "row bytes 16" in corner.how


def test_proportional_sizes_multiply() -> None:
    assert _value("7nm", "dram", "hbm2", "read_pj", width_bits=64) == 3.9 * 64
    # Keckler et al.: 310 pJ for 256 bits over 10 mm at 40 nm
    moved = _value("45nm", "wire", "", "energy_pj", width_bits=256, length_mm=np.array([10, 20.0]))
    assert moved == pytest.approx([310, 620], rel=1e-5)


@pytest.mark.parametrize(
    ("where", "sizes", "words"),
    [
        (("45nm", "srm", "", "read_pj"), {}, "45nm: no component 'srm'; did you mean 'sram'"),
        (("45nm", "mac", "bf16", "energy_pj"), {}, "no mac of type 'bf16'"),
        (("7nm", "dram", "hbm2e", "read_pj"), {}, "no dram of type 'hbm2e'; did you mean 'hbm2'"),
        (("7nm", "mac", "bf16", "leakage_mw"), {}, "mac bf16 has no 'leakage_mw'"),
        (("7nm", "sram", "", "read_pj"), {"bytes": 9999}, "needs a size 'width_bits'"),
        (("7nm", "mac", "bf16", "energy_pj"), {"bits": 3}, "has no size 'bits'"),
        (
            ("7nm", "sram", "", "read_pj"),
            {"bytes": 4096, "width_bits": 64},
            "at bytes 4096, width_bits 64 is outside the table: bytes 8192 to 1.04858e[+]06",
        ),
        (("7nm", "sram", "", "read_pj"), {"bytes": 8192, "width_bits": 65}, "outside the table"),
        (
            ("45nm", "sram", "lstp", "read_pj"),
            {"bytes": 8192, "width_bits": 64, "ports": 3},
            "ports: expected one of 1, 4, the same at all points, found 3",
        ),
        (("9nm", "mac", "", "energy_pj"), {}, "no technology '9nm'"),
        (("no/such.csv", "mac", "", "energy_pj"), {}, "no/such.csv: No such file"),
    ],
)
def test_what_a_table_does_not_know_is_refused_in_words(
    where: tuple[str, ...], sizes: dict[str, float], words: str
) -> None:
    technology, component, type_, quantity = where
    with pytest.raises(EinfuseError, match=words):
        find_cost_model(technology).price(component, type_, quantity, sizes)


def test_points_of_an_array_outside_the_table_are_unknown_and_others_stay() -> None:
    sizes = np.array([4096, 8192, 1 << 20, 1 << 21])
    found = _value("7nm", "sram", "", "read_pj", bytes=sizes, width_bits=64)
    assert np.isnan(found[[0, 3]]).all()
    assert list(found[1:3]) == [7.5, 14]


def test_missing_corners_of_a_grid_are_outside(tmp_path: Path) -> None:
    rows = [
        f"ram,,read_pj,bytes={x} width_bits={y},,9,1,quoted,me,1"
        for x, y in ((1, 1), (1, 2), (2, 1))
    ]
    table = _table(tmp_path, *rows)
    assert table.price("ram", "", "read_pj", {"bytes": 1.5, "width_bits": 1}).value == 1
    with pytest.raises(EinfuseError, match="outside the table"):
        table.price("ram", "", "read_pj", {"bytes": 1.5, "width_bits": 1.5})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("mac,,energy_pj,,,9,-1,quoted,me,1", "own.csv:2: value: expected a number above 0"),
        ("mac,,energy_pj,,,9,nan,quoted,me,1", "own.csv:2: value: expected a number above 0"),
        ("mac,,energy_pj,,,9,much,quoted,me,1", "own.csv:2: could not convert"),
        ("mac,,energy_pj,,,9,1,guessed,me,1", "own.csv:2: status: expected one of quoted"),
        ("mac,,energy_pj,,,9,1,quoted,,1", "own.csv:2: source is empty"),
        ("mac,,energy_pj,bytes,,9,1,quoted,me,1", "own.csv:2: at: expected NAME=SIZE"),
        ("mac,,energy_pj", "own.csv:2: .* is empty"),
        (
            "mac,,energy_pj,,,9,1,quoted,me,1\nmac,,energy_pj,,,9,2,quoted,me,1",
            "own.csv:3: .*stands twice",
        ),
        (
            "mac,,energy_pj,a=1,,9,1,quoted,me,1\nmac,,energy_pj,b=1,,9,2,quoted,me,1",
            "own.csv:3: expected the sizes",
        ),
    ],
)
def test_a_wrong_table_names_file_and_line(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        _table(tmp_path, row)


def test_a_table_without_its_columns_or_rows_says_so(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    for text, words in (
        ("component,value\nmac,1\n", "no column 'type'"),
        (HEAD, "no rows"),
        ("", "no column 'component'"),
    ):
        path.write_text(text)
        with pytest.raises(EinfuseError, match=words):
            load_table(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EinfuseError, match="not a text file"):
        load_table(path)


@pytest.mark.parametrize("name", ["45nm", "7nm"])
def test_every_shipped_row_is_cited_and_its_quantity_names_a_unit(name: str) -> None:
    table = find_cost_model(name)
    assert isinstance(table, TableModel)
    keys = (DATA / "sources.csv").read_text(encoding="utf-8")
    used = set()
    for row in table.rows:
        assert " " in row.source, row  # a citation, not a key that stands nowhere
        assert row.source in keys.replace('""', '"') or row.source.split(",")[0] in keys
        assert row.quantity.rsplit("_", 1)[-1] in ("pj", "um2", "mw", "ns")
        used.add((row.component, row.type))
    assert {("sram", t) for t in ("lstp", "hp")} <= used or name == "7nm"


@pytest.mark.parametrize("name", ["lstp", "hp"])
def test_wider_lines_of_a_memory_cost_more(name: str) -> None:
    widths = np.array([64, 256, 1024, 4096])
    for size in (1 << 18, 1 << 24):
        energy = _value("45nm", "sram", name, "read_pj", bytes=size, width_bits=widths, ports=1)
        assert (np.diff(energy) > 0).all()

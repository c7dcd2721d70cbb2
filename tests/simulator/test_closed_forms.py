"""Closed forms of the shipped designs, derived by hand from what each mapping is said to do.

G = B*H heads; T = ceil(P/columns) query tiles in blocks of t of them; n = ceil(M/rows) key tiles.
Words count whole tiles. "One lane" figures are register words of one lane; what all of them cost
together is that times the lanes at work.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.simulator.cost.model import DesignWarning, evaluate
from einfuse.simulator.result.evaluation import Evaluation

CLOCK, GIB = 940e6, 2**30
MAC, ADD, MAX, DIVIDE = 17.1645, 8.3395, 0.028036, 36.251153
FLAT_EXP = 5 * MAC + 8.825
DRAM_WORD = 249.6 / 4
LINE_16, LINE_32 = (12512.760572, 15751.460572), (23854.664592, 27097.564592)
DEPTH_4, DEPTH_12_16, DEPTH_32 = (2.182395, 1.894395), (2.190435, 1.902435), (2.194455, 1.906455)


@dataclass
class Tally:
    """Words read and written at each place, and energy of the operations of all lanes."""

    dram: float = 0
    buffer: list[float] = field(default_factory=lambda: [0.0, 0.0])
    staging: list[float] = field(default_factory=lambda: [0.0, 0.0])
    lane_2d: list[float] = field(default_factory=lambda: [0.0, 0.0])  # words x active lanes
    lane_1d: list[float] = field(default_factory=lambda: [0.0, 0.0])
    all_2d: list[float] = field(default_factory=lambda: [0.0, 0.0])
    all_1d: list[float] = field(default_factory=lambda: [0.0, 0.0])
    operations_pj: float = 0

    def registers(self, unit: str, lanes: float, reads: float, writes: float) -> None:
        one, every = (self.lane_2d, self.all_2d) if unit == "2d" else (self.lane_1d, self.all_1d)
        for place, count in enumerate((reads, writes)):
            one[place] += count
            every[place] += count * lanes

    def energy(self, line: Any, two: Any, vector: Any, staged: bool, every: bool) -> float:
        pairs = [(self.buffer, (line[0] / 256, line[1] / 256))]
        pairs += [(self.all_2d if every else self.lane_2d, two)]
        pairs += [(self.all_1d if every else self.lane_1d, vector)]
        pairs += [(self.staging, vector)] if staged else []
        moved = sum(words[k] * price[k] for words, price in pairs for k in (0, 1))
        return moved + self.dram * DRAM_WORD + self.operations_pj


@dataclass
class Machine:
    """What a test sets: an array, a vector unit, slots of exp, bandwidth."""

    rows: int = 256
    columns: int = 256
    lanes: int = 256
    exp_2d: int | None = None
    exp_1d: int | None = None
    bandwidth: float = 400 * GIB

    def settings(self) -> dict[str, float]:
        found: dict[str, float] = {
            "array_2d.rows": self.rows,
            "array_2d.columns": self.columns,
            "array_1d.lanes": self.lanes,
            "dram.bandwidth_bytes_per_s": self.bandwidth,
        }
        if self.exp_2d is not None:
            found["array_2d.operations.exp.slots"] = self.exp_2d
        if self.exp_1d is not None:
            found["array_1d.operations.exp.slots"] = self.exp_1d
        return found


Shape = dict[str, int]


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass
class Tiles:
    """The tiling of the 1-pass cascade: query tiles in blocks of `block` that stay, key tiles."""

    heads: int
    blocks: int
    block: int
    keys: int
    waves: int
    lanes: int

    @property
    def passes(self) -> int:
        """(key tile, query tile) pairs: passes of the 2D array."""
        return self.heads * self.blocks * self.block * self.keys

    @property
    def vectors(self) -> int:
        """Passes of the vector unit."""
        return self.heads * self.blocks * self.keys * self.waves

    @property
    def ends(self) -> int:
        """Passes of the vector unit over the queries, once the keys are through."""
        return self.heads * self.blocks * self.waves


def _tiles(s: Shape, m: Machine, buffer: int, score_rows: int) -> Tiles:
    words = s["E"] + s["F"] + 2 + score_rows
    room = (buffer - 2 * m.rows * (s["E"] + s["F"])) / (2 * m.columns * words)
    total = ceil(s["P"] / m.columns)
    block = max(d for d in _divisors(total) if d <= room)
    lanes = min(m.lanes, block * m.columns)
    return Tiles(
        s["B"] * s["H"],
        total // block,
        block,
        ceil(s["M"] / m.rows),
        ceil(block * m.columns / lanes),
        lanes,
    )


def _one_pass_dram(t: Tiles, s: Shape, m: Machine, tally: Tally) -> None:
    """Q once, K and V once for each block of queries (once, if one tile is all), AV once."""
    queries = t.heads * t.blocks * t.block * m.columns
    again = t.blocks if t.keys > 1 else 1
    keys = t.heads * again * t.keys * m.rows
    fills = queries * s["E"] + keys * (s["E"] + s["F"])
    tally.dram += fills + t.ends * t.lanes * s["F"]
    tally.buffer[1] += fills


def _running(t: Tiles, s: Shape, tally: Tally) -> None:
    """RM, PRM, SPD, RD, SPNV, RNV and AV on the vector unit, their state in the buffer."""
    v, e, f = t.vectors, t.ends, s["F"]

    def one(reads: float, writes: float) -> None:
        tally.registers("1d", t.lanes, reads, writes)

    one(2 * v, 2 * v)  # RM: old from the buffer (a fill), tile's; new
    one(2 * v, v)  # PRM: both maxima are at hand
    one(2 * v, 2 * v)  # SPD: RD from the buffer, PRM
    one(2 * v, v)  # RD
    one(2 * v * f, 2 * v * f)  # SPNV: RNV from the buffer, PRM
    one(2 * v * f, v * f)  # RNV
    one(2 * e * f, e * f + e + e * f)  # AV: RNV word by word, RD held over f
    tally.buffer[0] += t.lanes * (2 * v + v * f + e * f + e)
    tally.buffer[1] += t.lanes * (2 * v + v * f)
    tally.operations_pj += t.lanes * (v * (MAX + 2 * ADD + MAC) + v * f * (MAC + ADD))
    tally.operations_pj += t.lanes * e * f * DIVIDE


def _products(t: Tiles, s: Shape, m: Machine, tally: Tally) -> None:
    """QK and SLNV on the 2D array: operands from the buffer, each multicast across the other."""
    y, all_lanes = t.passes, m.rows * m.columns
    qk, pv = y * s["E"], y * s["F"]
    first = pv // t.keys  # the tile's numerator accumulates over key tiles
    tally.registers("2d", all_lanes, 2 * qk + qk - y, 2 * qk + qk)
    tally.registers("2d", all_lanes, 2 * pv + pv - first, pv + pv + pv - first)
    tally.buffer[0] += qk * (m.columns + m.rows) + pv * m.rows
    tally.staging[0] += (pv - first) * m.columns
    tally.staging[1] += pv * m.columns
    tally.operations_pj += all_lanes * (qk + pv) * MAC


def fusemax(s: Shape, m: Machine) -> tuple[Tiles, Tally, dict[str, float]]:
    t, tally = _tiles(s, m, 2**24, 0), Tally()
    y, v, e, f = t.passes, t.vectors, t.ends, s["F"]
    all_lanes = m.rows * m.columns
    _one_pass_dram(t, s, m, tally)
    _running(t, s, tally)
    _products(t, s, m, tally)
    tally.registers("2d", all_lanes, y, y)  # LM
    tally.registers("2d", all_lanes, 2 * y, 2 * y)  # SLN: the maximum comes from staging
    tally.registers("2d", all_lanes, y, y)  # SLD
    tally.staging[0] += y * m.columns
    tally.staging[1] += 2 * y * m.columns
    tally.operations_pj += all_lanes * y * (MAX + 6 * MAC + ADD + ADD) + t.lanes * v * 6 * MAC
    x2 = 1 + (6 if m.exp_2d is None else m.exp_2d)
    x1 = 1 + (6 if m.exp_1d is None else m.exp_1d)
    return t, tally, {
        "QK": y * s["E"], "LM": y, "SLN": y * x2, "SLD": y, "SLNV": y * f,
        "RM": v, "PRM": v * x1, "SPD": v, "RD": v, "SPNV": v * f, "RNV": v * f, "AV": e * f,
    }  # fmt: skip


def cascade(s: Shape, m: Machine) -> tuple[Tiles, Tally, dict[str, float]]:
    t, tally = _tiles(s, m, 2**24, 2 * m.rows), Tally()
    y, v, e, f = t.passes, t.vectors, t.ends, s["F"]
    r = v * m.rows  # scores of a lane
    _one_pass_dram(t, s, m, tally)
    _running(t, s, tally)
    _products(t, s, m, tally)
    tally.buffer[1] += y * m.rows * m.columns  # QK goes to the buffer
    tally.buffer[0] += r * t.lanes  # SLN reads it there,
    tally.buffer[1] += r * t.lanes  # and goes there;
    tally.buffer[0] += y * m.rows * m.columns  # SLNV reads it, held over f
    tally.registers("2d", m.rows * m.columns, 0, y)
    tally.registers("1d", t.lanes, 2 * r - v, r)  # LM
    tally.registers("1d", t.lanes, 2 * r, 2 * r)  # SLN
    tally.registers("1d", t.lanes, 2 * r - v, r)  # SLD
    tally.operations_pj += t.lanes * r * (MAX + ADD + ADD)  # exp is not charged
    x1 = 1 + (1 if m.exp_1d is None else m.exp_1d)
    return t, tally, {
        "QK": y * s["E"], "SLNV": y * f, "LM": r, "RM": v, "PRM": v * x1, "SLN": r * x1, "SLD": r,
        "SPD": v, "RD": v, "SPNV": v * f, "RNV": v * f, "AV": e * f,
    }  # fmt: skip


def _run(name: str, shape: Shape, m: Machine, accounting: str = "published") -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        return evaluate(load_design(name), shape, accounting=accounting, set=m.settings())


SHAPES = {
    "square": {"B": 1, "H": 1, "M": 2048, "P": 2048, "E": 64, "F": 64},
    "narrow values": {"B": 2, "H": 3, "M": 1536, "P": 4096, "E": 64, "F": 32},
    "wide values": {"B": 1, "H": 5, "M": 4096, "P": 768, "E": 32, "F": 128},
    "ragged": {"B": 1, "H": 2, "M": 1000, "P": 777, "E": 48, "F": 80},
    "one query": {"B": 1, "H": 4, "M": 3000, "P": 1, "E": 64, "F": 64},
    "few keys": {"B": 1, "H": 2, "M": 100, "P": 70_000, "E": 64, "F": 64},
    "long": {"B": 1, "H": 1, "M": 5000, "P": 131_072, "E": 128, "F": 128},
}
MACHINES = {
    "published": Machine(),
    "96 wide": Machine(96, 96, 96),
    "384 wide": Machine(384, 384, 384),
    "oblong": Machine(128, 320, 256),
    "512 lanes": Machine(lanes=512),
    "96 lanes": Machine(lanes=96),
    "fast exp": Machine(exp_2d=1, exp_1d=1),
    "exp of 4": Machine(exp_2d=4, exp_1d=4),
    "slow dram": Machine(bandwidth=40 * GIB),
}
GRID = [
    pytest.param(SHAPES[shape], machine, id=f"{shape}, {name}")
    for shape in SHAPES
    for name, machine in MACHINES.items()
]


def _check_common(
    r: Evaluation, t: Tiles, tally: Tally, cycles: dict[str, float], compute: float, m: Machine
) -> None:
    traffic = 2 * tally.dram
    seconds = max(compute / CLOCK, traffic / m.bandwidth)
    assert {k: v.cycles for k, v in r.per_einsum.items()} == pytest.approx(cycles, rel=1e-12)
    assert r.dram_bytes == pytest.approx(traffic, rel=1e-12)
    assert r.seconds == pytest.approx(seconds, rel=1e-12)
    two = sum(v for k, v in cycles.items() if r.per_einsum[k].unit == "array_2d")
    one = sum(v for k, v in cycles.items() if r.per_einsum[k].unit == "array_1d")
    assert r.utilization["array_2d"] == pytest.approx(two / CLOCK / seconds, rel=1e-12)
    used = one * t.lanes / m.lanes / CLOCK / seconds
    assert r.utilization["array_1d"] == pytest.approx(used, rel=1e-12)


@pytest.mark.parametrize(("shape", "m"), GRID)
def test_fusemax_is_its_closed_form(shape: Shape, m: Machine) -> None:
    t, tally, c = fusemax(shape, m)
    compute = (
        max(c["QK"] + c["LM"], c["RD"] + c["RNV"] + c["AV"])
        + c["RM"]
        + max(c["SLN"] + c["SLD"], c["PRM"] + c["SPD"])
        + max(c["SLNV"], c["SPNV"])
    )
    r = _run("fusemax", shape, m)
    _check_common(r, t, tally, c, compute, m)
    energy = [tally.energy(LINE_16, DEPTH_12_16, DEPTH_32, True, every) for every in (False, True)]
    assert r.energy_pj == pytest.approx(energy[0], rel=1e-12)
    every = _run("fusemax", shape, m, "published-all-registers")
    assert every.energy_pj == pytest.approx(energy[1], rel=1e-12)


@pytest.mark.parametrize(("shape", "m"), GRID)
def test_architecture_is_its_closed_form(shape: Shape, m: Machine) -> None:
    t, tally, c = fusemax(shape, m)
    compute = (
        max(c["QK"] + c["LM"], c["RD"] + c["AV"])
        + m.rows * c["LM"]
        + c["RM"]
        + max(c["SLN"] + c["SLD"], c["PRM"] + c["SPD"])
        + max(c["SLNV"], c["SPNV"] + c["RNV"])
    )
    r = _run("fusemax-architecture", shape, m)
    _check_common(r, t, tally, c, compute, m)
    energy = tally.energy(LINE_16, DEPTH_12_16, DEPTH_32, True, False)
    assert r.energy_pj == pytest.approx(energy, rel=1e-12)


FLAT_MACHINES = {
    **{name: m for name, m in MACHINES.items() if m.exp_2d is None},
    "exp of 4": Machine(exp_1d=4),
    "2048 lanes": Machine(lanes=2048),
}
FLAT_GRID = [
    pytest.param(SHAPES[shape], machine, id=f"{shape}, {name}")
    for shape in SHAPES
    for name, machine in FLAT_MACHINES.items()
]


@pytest.mark.parametrize(("shape", "m"), FLAT_GRID)
def test_cascade_is_its_closed_form(shape: Shape, m: Machine) -> None:
    t, tally, c = cascade(shape, m)
    two = c["QK"] + c["SLNV"]
    r = _run("fusemax-cascade", shape, m)
    _check_common(r, t, tally, c, max(two, sum(c.values()) - two), m)
    energy = [tally.energy(LINE_32, DEPTH_4, DEPTH_12_16, False, every) for every in (False, True)]
    assert r.energy_pj == pytest.approx(energy[0], rel=1e-12)
    every = _run("fusemax-cascade", shape, m, "published-all-registers")
    assert every.energy_pj == pytest.approx(energy[1], rel=1e-12)


@dataclass
class Softmax:
    """The stable softmax on the vector unit, a row at a time: its cycles, and what it tallies."""

    rows: int
    passes: int
    lanes: int
    exp: int

    @property
    def cycles(self) -> dict[str, float]:
        u = self.passes
        return {"GM": u, "SN": u * max(1, self.exp), "SD": u, "A": u}

    def tally(self, tally: Tally, probabilities_at_home: bool) -> None:
        u, rows, words = self.passes, self.rows, self.passes * self.lanes
        one = self.lanes
        tally.registers("1d", one, 2 * u - rows, 2 * u)  # GM folds scores, a row's at a time
        tally.registers("1d", one, 2 * u, 2 * u + rows)  # SN: a score, the row's maximum held
        tally.registers("1d", one, 2 * u - rows, u)  # SD takes SN as it is made
        tally.registers("1d", one, 2 * u, 2 * u + rows)  # A: SN, the row's sum held
        tally.buffer[0] += 3 * words + 2 * rows  # scores twice, SN once, maximum, sum
        tally.buffer[1] += words + 2 * rows  # SN, maximum, sum
        tally.buffer[1] += words if probabilities_at_home else 0
        tally.operations_pj += words * (MAX + ADD + FLAT_EXP + ADD + DIVIDE)


def _softmax(rows: int, s: Shape, m: Machine) -> Softmax:
    return Softmax(rows, rows * ceil(s["M"] / m.lanes), m.lanes, m.exp_1d or 1)


@pytest.mark.parametrize(("shape", "m"), FLAT_GRID)
def test_unfused_is_its_closed_form(shape: Shape, m: Machine) -> None:
    heads, tiles, keys = (
        shape["B"] * shape["H"],
        ceil(shape["P"] / m.columns),
        ceil(shape["M"] / m.rows),
    )
    small = shape["E"] * shape["P"] <= 2**23
    panels = 1 if small else min(d for d in _divisors(tiles) if d >= shape["E"] / 8)
    again = panels if keys > 1 else 1  # one key tile stays
    y, e, f = heads * tiles * keys, shape["E"], shape["F"]
    qk, pv, every_lane = y * e, y * f, m.rows * m.columns
    scores = y * every_lane
    queries, rows = heads * tiles * m.columns, heads * again * keys * m.rows
    softmax = _softmax(heads * shape["P"], shape, m)
    tally = Tally()
    softmax.tally(tally, probabilities_at_home=False)
    tally.buffer[1] += heads * shape["P"] * shape["M"]  # scores come in, a row at a time
    dram = [
        queries * e + rows * e + scores,
        heads * shape["P"] * shape["M"] + softmax.passes * m.lanes,
        scores + rows * f + queries * f,
    ]
    tally.dram = sum(dram)
    tally.registers("2d", every_lane, 2 * qk + qk - y, 2 * qk + qk)
    ends = heads * tiles * f
    tally.registers("2d", every_lane, 2 * pv + pv - ends, y + pv + pv + pv - ends)
    tally.buffer[0] += qk * (m.rows + m.columns) + pv * m.rows + (pv - ends) * m.columns
    tally.buffer[1] += (queries + rows) * e + rows * f + pv * m.columns
    tally.operations_pj += every_lane * (qk + pv) * MAC
    cycles = {"QK": qk, **softmax.cycles, "AV": pv}
    kernels = [qk, sum(softmax.cycles.values()), pv]
    r = _run("unfused", shape, m)
    assert {k: v.cycles for k, v in r.per_einsum.items()} == cycles
    assert r.dram_bytes == pytest.approx(2 * tally.dram, rel=1e-12)
    seconds = sum(
        max(c / CLOCK, 2 * words / m.bandwidth) for c, words in zip(kernels, dram, strict=True)
    )
    assert r.seconds == pytest.approx(seconds, rel=1e-12)
    assert r.utilization["array_2d"] == pytest.approx((qk + pv) / CLOCK / seconds, rel=1e-12)
    assert r.utilization["array_1d"] == pytest.approx(kernels[1] / CLOCK / seconds, rel=1e-12)
    price = (LINE_32, DEPTH_4, DEPTH_12_16, False)
    assert r.energy_pj == pytest.approx(tally.energy(*price, False), rel=1e-12)
    every = _run("unfused", shape, m, "published-all-registers")
    assert every.energy_pj == pytest.approx(tally.energy(*price, True), rel=1e-12)


FLAT_SHAPES = {  # (shape, operands and scores on chip, output stationary, queries of a block)
    "head": ({"B": 2, "H": 3, "M": 1024, "P": 700, "E": 64, "F": 32}, "", True, None),
    "head, ragged": ({"B": 1, "H": 1, "M": 900, "P": 1000, "E": 60, "F": 72}, "", True, None),
    "head, spilling": ({"B": 1, "H": 2, "M": 4096, "P": 4096, "E": 64, "F": 64}, "", True, None),
    "rows": ({"B": 1, "H": 2, "M": 16384, "P": 5120, "E": 64, "F": 64}, "", True, 1024),
    "values stay": ({"B": 1, "H": 2, "M": 2048, "P": 2048, "E": 128, "F": 96}, "V", True, None),
    "queries stay": ({"B": 1, "H": 1, "M": 9000, "P": 4096, "E": 128, "F": 128}, "Q", True, 1024),
}
FLAT_HARDWARE = {
    "256": Machine(),
    "256, 1024 lanes": Machine(lanes=1024),
    "256, slow": Machine(lanes=512, bandwidth=40 * GIB, exp_1d=4),
    "384": Machine(384, 384, 384),
    "96": Machine(96, 96, 96),
}
FLAT_CASES = [
    pytest.param(*case, machine, id=f"{name}, {hardware}")
    for name, case in FLAT_SHAPES.items()
    for hardware, machine in FLAT_HARDWARE.items()
]


@pytest.mark.parametrize(("shape", "stays", "output", "block", "m"), FLAT_CASES)
def test_flat_with_scores_on_chip_is_its_closed_form(
    shape: Shape, stays: str, output: bool, block: int | None, m: Machine
) -> None:
    heads = shape["B"] * shape["H"]
    e, f, keys = shape["E"], shape["F"], ceil(shape["M"] / m.rows)
    padded = ceil(shape["P"] / m.columns) * m.columns
    block = padded if block is None else min(block, padded)
    blocks = ceil(shape["P"] / block)
    tiles = ceil(block / m.columns)
    # Operands that stay take their panel, others a tile, twice each; scores once.
    panel = {"Q": e * block, "V": f * shape["M"]}
    tile = {"Q": e * m.columns, "K": e * m.rows, "V": f * m.rows, "AV": f * m.columns}
    words = block * shape["M"]
    words += 2 * sum(panel[x] if x in stays else one for x, one in tile.items())
    spilled = 1 - min(1, 2**25 / (2 * words))
    y = heads * blocks * tiles * keys
    qk = y * e
    scores = y * m.rows * m.columns
    softmax = _softmax(heads * blocks * block, shape, m)
    probabilities = softmax.passes * m.lanes
    width = min(f, m.columns)
    pv = heads * blocks * ceil(block / m.rows) * ceil(f / width) * keys * m.rows
    queries = heads * blocks * block * e
    dram = qk * m.rows  # K streams, once for each tile of queries
    dram += (1 - spilled) * queries + spilled * qk * m.columns if "Q" in stays else qk * m.columns
    values = heads * (blocks if blocks > 1 else 1) * shape["M"] * f
    dram += (1 - spilled) * values + spilled * pv * width if "V" in stays else pv * width
    dram += pv / (keys * m.rows) * m.rows * width  # AV, once for each of its tiles
    dram += spilled * (scores + 3 * probabilities + 2 * probabilities + pv * m.rows)
    r = _run("flat", shape, m)
    assert r.dram_bytes == pytest.approx(2 * dram, rel=1e-12)
    cycles = {"QK": qk, **softmax.cycles, "AV": pv}
    assert {k: v.cycles for k, v in r.per_einsum.items()} == cycles
    compute = max(qk + pv, sum(softmax.cycles.values())) / CLOCK
    seconds = max(compute, 2 * dram / m.bandwidth)
    assert r.seconds == pytest.approx(seconds, rel=1e-12)
    used = (qk + pv * width / m.columns) / CLOCK / seconds
    assert r.utilization["array_2d"] == pytest.approx(used, rel=1e-12)
    tally = Tally(dram=dram)
    softmax.tally(tally, probabilities_at_home=True)
    tally.buffer[1] += scores + (queries if "Q" in stays else 0) + (values if "V" in stays else 0)
    tally.buffer[0] += qk * m.columns if "Q" in stays else 0
    tally.buffer[0] += pv * m.rows + (pv * width if "V" in stays else 0)
    tally.registers("2d", m.rows * m.columns, 2 * qk + qk - y, 2 * qk + qk)
    ends = pv / (keys * m.rows)
    tally.registers("2d", m.rows * width, 2 * pv + pv - ends, 2 * pv + pv)
    tally.operations_pj += MAC * (qk * m.rows * m.columns + pv * m.rows * width)
    price = (LINE_32, DEPTH_4, DEPTH_12_16, False)
    assert r.energy_pj == pytest.approx(tally.energy(*price, False), rel=1e-12)
    every = _run("flat", shape, m, "published-all-registers")
    assert every.energy_pj == pytest.approx(tally.energy(*price, True), rel=1e-12)


@pytest.mark.parametrize("lanes", [256, 4096])
def test_flat_with_scores_off_chip_is_its_closed_form(lanes: int) -> None:
    """Beyond 64K keys: blocks of 1024 queries, weights stationary, E of the columns at work."""
    s, m = {"B": 1, "H": 1, "M": 100_000, "P": 3000, "E": 48, "F": 64}, Machine(lanes=lanes)
    blocks, keys = 3, ceil(100_000 / 256)
    qk = blocks * keys * 1 * 1024  # E side by side on columns, queries in time
    pv = blocks * keys * 1 * 1024
    softmax = _softmax(blocks * 1024, s, m)
    r = _run("flat", s, m)
    assert r.per_einsum["QK"].cycles == qk
    assert r.per_einsum["AV"].cycles == pv
    queries = blocks * 1024
    dram = queries * 48 + blocks * keys * 256 * 48  # Q stays, K once for each block
    dram += qk * 256  # scores, summed over E in the array
    dram += queries * 100_000 + softmax.passes * lanes  # softmax reads rows, writes A
    dram += pv * 256 + blocks * keys * 256 * 64 + queries * 64
    assert r.dram_bytes == pytest.approx(2 * dram, rel=1e-12)
    compute = max(qk + pv, 4 * softmax.passes) / CLOCK
    assert r.seconds == pytest.approx(max(compute, 2 * dram / m.bandwidth), rel=1e-12)


LAYERS = {
    "small": {"B": 2, "P": 700, "D": 384, "H": 6, "E": 96, "S": 1000},
    "oblong": {"B": 1, "P": 2048, "D": 512, "H": 4, "E": 64, "S": 2048},
    "weights stream": {"B": 4, "P": 4096, "D": 2048, "H": 16, "E": 128, "S": 8192},
}


@pytest.mark.parametrize("design", ["layer-flat", "layer-fusemax"])
@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("bandwidth", [400 * GIB, 20 * GIB])
def test_layer_is_its_closed_form(design: str, shape: str, bandwidth: float) -> None:
    s = LAYERS[shape]
    room = 2**24 if design == "layer-flat" else 2**23
    tokens, width = s["B"] * s["P"], s["H"] * s["E"]
    gemms = [(s["D"], width)] * 3 + [(width, s["D"]), (s["D"], s["S"]), (s["S"], s["D"])]
    tally, seconds, cycles = Tally(), 0.0, 0.0
    for inner, outer in gemms:
        rows, columns = ceil(outer / 256), ceil(tokens / 256)
        if inner * (outer + 256) <= room:
            weights = inner * outer
        else:
            block = 2 ** ((room // inner - 256).bit_length() - 1)
            columns = ceil(tokens / block) * block // 256
            weights = ceil(tokens / block) * inner * rows * 256
        steps = rows * columns * inner
        inputs, outputs = columns * 256 * inner, columns * 256 * rows * 256
        moved = inputs + weights + outputs
        tally.dram += moved
        tally.buffer[0] += steps * 512
        tally.buffer[1] += inputs + weights
        tally.registers("2d", 2**16, 3 * steps - rows * columns, 3 * steps)
        tally.operations_pj += steps * 2**16 * MAC
        seconds += max(steps / CLOCK, 2 * moved / bandwidth)
        cycles += steps
    r = evaluate(
        load_design(design),
        s,
        accounting="published",
        set={"dram.bandwidth_bytes_per_s": bandwidth},
    )
    assert r.dram_bytes == pytest.approx(2 * tally.dram, rel=1e-12)
    assert r.seconds == pytest.approx(seconds, rel=1e-12)
    assert r.utilization["array_2d"] == pytest.approx(cycles / CLOCK / seconds, rel=1e-12)
    price = (LINE_32, DEPTH_4) if design == "layer-flat" else (LINE_16, DEPTH_12_16)
    assert r.energy_pj == pytest.approx(tally.energy(*price, (0, 0), False, False), rel=1e-12)


@pytest.mark.parametrize(("size", "width"), [(64, 64), (128, 64), (256, 128)])
def test_design_space_points_follow_the_array(size: int, width: int) -> None:
    """The same cascade with the buffer at 16*size*E bytes, times by the slots of the 1D unit."""
    shape = {"B": 1, "H": 1, "M": 2**15, "P": 2**15, "E": width, "F": width}
    r = evaluate(load_design("fusemax-design-space"), shape, set={"array_2d.rows": size})
    assert r.peak_bytes["buffer"] <= r.parameters["buffer.bytes"]
    y = (2**15 / size) ** 2  # 2 F + 3 + exp and subtraction, in passes; F a query at the end
    one = y * (2 * width + 3 + 7) + 2**15 / size * width
    assert r.resource_seconds["array_1d"] == pytest.approx(one / CLOCK, rel=1e-12)
    assert r.parameters["array_1d.lanes"] == r.parameters["array_2d.columns"] == size

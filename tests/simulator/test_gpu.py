"""Kernel designs on GPUs: closed forms by hand, published times, monotony, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import einfuse as ef
from einfuse.einsum.analysis.operations import count_operations
from einfuse.mapper.design.design import KernelDesign
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import DATA, load_architecture

GPUS = ("a100", "h100", "h100-pcie", "h200", "rtx-4090", "mi300x")
KERNELS = sorted(path.stem for path in (DATA / "designs" / "gpu").glob("*.yaml"))
ONE = {"B": 1, "H": 1, "P": 128, "M": 64, "E": 128, "F": 128}
SHAPE = {"B": 4, "H": 16, "P": 4096, "M": 4096, "E": 128, "F": 128}


def load(name: str, architecture: str | None = None) -> KernelDesign:
    design = ef.load_design(name, architecture)
    assert isinstance(design, KernelDesign)
    return design


def sizes(design: KernelDesign) -> dict[str, int]:
    if "N" in design.schedule.ranks:
        return {"B": 2, "H": 8, "N": 2048, "E": 128, "F": 128}
    if design.name == "mla-decode":
        return {"B": 16, "H": 16, "HK": 1, "P": 1, "M": 4096, "E": 576, "F": 512}
    return {"B": 2, "H": 8, "P": 2048, "M": 2048, "E": 128, "F": 128}


def test_one_tile_of_flash_attention_2_by_hand() -> None:
    """One block, one tile of 128 x 64 at head size 128 on an H100: everything in sequence."""
    result = ef.evaluate(
        load("flash-attention-2", "h100"), ONE, set={"calibration.block_cycles": 1000}
    )
    tensor = 2 * 128 * 64 * 128 / 2048 / (0.97 * 0.62)
    scores, rows, rescaled = 128 * 64, 128, 128 * 128
    # A score: a maximum, a difference, a sum and a conversion; an exponential. A row: a maximum, a
    # difference, a product and a sum; an exponential. The rescaled output: a product a word.
    cuda = (4 * scores + 4 * rows + rescaled) / 128
    special = (scores + rows) / 16
    shared = 2 * (4 * 64 * 256 + 128 * 128) / 128
    block = 1000 + 128 * 128 / 128  # and the division, once
    cycles = tensor + cuda + special + shared + block
    assert result.seconds == pytest.approx(cycles / 1.7e9 + 4e-6, rel=1e-12)
    assert result.dram_bytes == 2 * (2 * 128 * 128 + 2 * 64 * 128)
    assert result.peak_bytes["shared"] == 2 * (128 * 128 + 2 * 64 * 128)


def test_exposed_work_hides_behind_a_second_block() -> None:
    """Two resident blocks: what is exposed of the softmax falls from all of it to the share."""
    design = load("flash-attention-2", "h100")
    free = {"calibration.block_cycles": 0, "processors.launch_seconds": 0}
    free |= {"dram.bandwidth_bytes_per_s": 1e18, "l2.bandwidth_bytes_per_s": 1e18}
    full = {**ONE, "H": 132 * 2}
    half = ef.evaluate(design, {**ONE, "H": 132}, set=free).seconds
    hidden = ef.evaluate(design, full, set={**free, "calibration.exposed": 0}).seconds
    exposed = ef.evaluate(design, full, set={**free, "calibration.exposed": 1}).seconds
    assert hidden < exposed
    assert exposed == pytest.approx(2 * half, rel=1e-9)


def test_operations_are_those_of_the_cascade() -> None:
    design = load("flash-attention-2", "h100")
    result = ef.evaluate(design, SHAPE)
    whole = {rank: SHAPE[rank] for rank in ("E", "F", "P", "M")} | {"M0": 64}
    counts = count_operations(design.cascade, whole)
    for einsum, operation, lanes in (
        ("QK", "mac", 2048), ("SLNV", "mac", 2048), ("SLN", "exp", 16), ("LM", "max", 128),
        ("SLD", "add", 128), ("SPNV", "multiply", 128), ("AV", "divide", 128),
    ):  # fmt: skip
        done = result.per_einsum[einsum].cycles * lanes * 132
        assert done == float(counts[einsum][operation] * SHAPE["B"] * SHAPE["H"])


@pytest.mark.parametrize(
    ("name", "gpu", "head", "resident"),
    [
        ("flash-attention-2", "a100", 64, 2),  # 255 registers of 128 threads: two blocks
        ("flash-attention-2", "a100", 256, 1),  # 128 KB of shared memory
        ("flash-attention-2", "h100", 256, 2),  # 64 x 64 tiles: 97 KB
        ("flash-attention-3", "h100", 128, 1),
    ],
)
def test_occupancy_by_hand(name: str, gpu: str, head: int, resident: int) -> None:
    """A grid of as many blocks as fit at once takes as long as one less, and one more is a wave."""
    design = load(name, gpu)
    count = int(load_architecture(gpu).parameters["processors.count"])
    tile = 64 if (gpu, head) == ("h100", 256) else 128
    shape = {"B": 1, "P": tile, "M": 4096, "E": head, "F": head}
    free = {"dram.bandwidth_bytes_per_s": 1e18, "l2.bandwidth_bytes_per_s": 1e18}
    heads = np.arange(count - 1, 3 * count + 2)
    fits = ef.evaluate(design, {**shape, "H": heads}, set=free).seconds
    steps = np.flatnonzero(np.diff(fits) > 1e-12) + count - 1  # heads after which it takes longer
    assert steps[0] == count
    assert (2 * count in steps) and (resident * count in steps)


def test_keys_of_grouped_heads_are_read_once() -> None:
    design = load("flash-attention-2", "h100")
    result = ef.evaluate(design, {**SHAPE, "HK": 2})
    queries, keys = 2 * 4 * 16 * 4096 * 128, 2 * 4 * 2 * 4096 * 128
    assert result.dram_bytes == 2 * queries + 2 * keys


def test_keys_beyond_l2_are_read_once_a_wave() -> None:
    design = load("flash-attention-2", "h100")
    shape = {**SHAPE, "B": 1, "H": 1, "P": 128 * 264 * 3, "M": 2**20}
    result = ef.evaluate(design, shape)
    assert result.traffic["dram"].read_bytes == 2 * 128 * (shape["P"] + 3 * 2 * 2**20)


def test_published_times_of_flash_attention_3_without_a_fit() -> None:
    """FlashAttention-3's chart, H100 SXM5, 16K, no mask: 497, 648 and 756 TFLOP/s."""
    for head, published in ((64, 497), (128, 648), (256, 756)):
        shape = {"B": 1, "H": 2048 // head, "P": 16384, "M": 16384, "E": head, "F": head}
        seconds = ef.evaluate(load("flash-attention-3"), shape).seconds
        assert 4 * 2048 * 16384**2 / seconds / 1e12 == pytest.approx(published, rel=0.07)


def test_causal_halves_the_work_of_long_sequences_and_windows_cut_it() -> None:
    design = load("flash-attention-2", "h100")
    long = {**SHAPE, "B": 1, "P": 32768, "M": 32768}
    full, causal = (ef.evaluate(design, long, set={"causal": c}).seconds for c in (0, 1))
    assert 0.5 < causal / full < 0.56
    window = ef.evaluate(design, long, set={"causal": 1, "window": 1024}).seconds
    assert 1024 / 32768 < window / full < 1.4 * 1024 / 32768
    again = ef.evaluate(design, long, set={"causal": 1, "window": 32768}).seconds
    assert again == pytest.approx(causal, rel=1e-12)


def test_decoding_splits_the_keys_of_few_sequences() -> None:
    shape = {"B": 1, "H": 32, "HK": 8, "P": 1, "M": 2**17, "E": 128, "F": 128}
    split = ef.evaluate(load("split-kv-decode"), shape)
    whole = ef.evaluate(load("flash-attention-2", "h100"), shape)
    cache = 2 * 2 * 8 * 2**17 * 128
    assert split.bound == "dram"
    assert split.seconds > cache / 3.35e12
    assert split.seconds < 1.3 * cache / 3.35e12
    assert whole.seconds > 3 * split.seconds


@pytest.mark.parametrize("name", KERNELS)
def test_arrays_equal_scalars_and_more_machine_is_never_slower(name: str) -> None:
    design = load(name, "h100")
    shape, draw = sizes(design), np.random.default_rng(1)
    lengths = [rank for rank in ("P", "M", "N") if rank in shape and shape[rank] > 1]
    points = {r: draw.integers(100, 9000, 12) if r in lengths else shape[r] for r in shape}
    causal = {"causal": draw.integers(0, 2, 12)} if "causal" in design.schedule.options else {}
    base = ef.evaluate(design, points, set=causal)
    for n in (0, 7):
        one = {r: int(v[n]) if np.ndim(v) else v for r, v in points.items()}
        settings = {key: int(value[n]) for key, value in causal.items()}
        alone = ef.evaluate(design, one, set=settings)
        assert alone.seconds == base.seconds[n]
        assert alone.dram_bytes == base.dram_bytes[n]
    parameters = design.architecture.values()
    for path in (
        "processors.count", "processors.sustained_clock_hz", "dram.bandwidth_bytes_per_s",
        "l2.bandwidth_bytes_per_s", "special.lanes", "tensor.columns",
    ):  # fmt: skip
        if path == "processors.count" and name.endswith("-decode"):
            continue  # their rule cuts keys into more pieces, which must be merged
        more: dict[str, Any] = {**causal, path: 2 * float(parameters[path])}  # type: ignore[arg-type]
        assert np.all(ef.evaluate(design, points, set=more).seconds <= base.seconds * (1 + 1e-12))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "gpu", [*GPUS[:2], *(pytest.param(gpu, marks=pytest.mark.slow) for gpu in GPUS[2:])]
)
def test_every_kernel_runs_on_every_card_or_is_refused_in_words(name: str, gpu: str) -> None:
    design = load(name, gpu)
    try:
        result = ef.evaluate(design, sizes(design))
    except MappingError as error:
        assert any(word in str(error) for word in ("warp groups", "do not fit"))
        return
    assert 0 < result.seconds < 1
    assert all(0 <= used <= 1 for used in result.utilization.values())
    assert result.energy_pj is None
    assert "not modelled" in result.unknown["energy_pj"]


@pytest.mark.parametrize(
    ("name", "on", "said"),
    [
        ("flash-attention-2", "fusemax", "fusemax has no processors"),
        ("fusemax", "h100", "unknown name 'array_2d.rows'"),
        ("fusemax", "nowhere", "no architecture 'nowhere'"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused_by_name(
    name: str, on: str, said: str
) -> None:
    with pytest.raises((MappingError, ArchitectureError), match=said):
        ef.load_design(name, architecture=on)


def test_a_kernel_needs_tensor_cores() -> None:
    from einfuse.mapper.design.design import parse_design
    from einfuse.mapper.machine.architecture import read_yaml

    card = read_yaml(DATA / "architectures" / "a100.yaml")
    del card["units"]["tensor"]
    content = read_yaml(DATA / "designs" / "gpu" / "flash-attention-2.yaml")
    with pytest.raises(MappingError, match="QK, SLNV, RNV of launch attention need tensor cores"):
        parse_design({**content, "architecture": card}, "here")


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ({"E": 320}, {}, "head sizes up to 256"),
        ({"HK": 3}, {}, "H must be a multiple of HK"),
        ({"Z": 3}, {}, "no rank 'Z'"),
        ({"P": 0}, {}, "rank P needs a whole size"),
        ({}, {"causal": 2}, "causal is 0 or 1"),
        ({}, {"causal": float("nan")}, "expected a number"),
        ({}, {"window": -1}, "at least 0"),
        ({}, {"calibration.expose": 1}, "calibration.exposed"),
        ({}, {"dram.bandwidth_bytes_per_s": 0}, "dram.bandwidth_bytes_per_s: expected a number"),
        ({}, {"processors.count": 1.5}, "processors.count: expected a whole number"),
        ({"E": 32, "F": 32}, {"tile.key": 512}, "do not fit register_file.* QK "),
        ({}, {"tile.key": 1024, "tile.query": 16}, "do not fit shared.* K "),
        ({}, {"tile.key": 0}, "expected a whole number of at least 1"),
        ({}, {"calibration.efficiency": 0}, "calibration.efficiency"),
        ({}, {"word_bytes": 1}, "16-bit words"),
        ({"B": 64, "P": 2**20}, {}, "do not fit dram.*Q"),
    ],
)
def test_bad_input_is_refused_in_words(
    shape: dict[str, int], settings: dict[str, float], said: str
) -> None:
    with pytest.raises((MappingError, ArchitectureError), match=said):
        ef.evaluate(load("flash-attention-2", "h100"), {**SHAPE, **shape}, set=settings)


def test_a_missing_rank_is_named_and_points_that_do_not_fit_are_marked() -> None:
    design = load("flash-attention-2", "h100")
    with pytest.raises(MappingError, match="rank M has no size"):
        ef.evaluate(design, {k: v for k, v in SHAPE.items() if k != "M"})
    result = ef.evaluate(design, {**SHAPE, "E": np.array([128, 512])})
    assert result.feasible.tolist() == [True, False]
    assert np.isinf(result.seconds[1])


@pytest.mark.parametrize(
    ("name", "shape", "bound"),
    [
        ("flash-attention-3", SHAPE, "tensor"),
        ("triton-attention", {**SHAPE, "E": 16, "F": 16}, "special"),
        ("flash-attention-1", SHAPE, "shared"),
        ("unfused-gpu", SHAPE, "dram"),
        ("flash-attention-2", {**SHAPE, "B": 1, "H": 1, "P": 16, "M": 16}, "launch"),
    ],
)
def test_the_bound_is_what_sets_the_time(name: str, shape: dict[str, int], bound: str) -> None:
    assert ef.evaluate(load(name, "h100"), shape).bound == bound


def test_head_sizes_between_those_of_a_kernel_are_padded() -> None:
    design = load("flash-attention-2", "h100")
    odd, even = (ef.evaluate(design, {**SHAPE, "E": e, "F": e}) for e in (72, 96))
    assert odd.seconds == even.seconds
    assert odd.dram_bytes < even.dram_bytes


def test_a_kernel_is_not_simulated_tile_by_tile() -> None:
    from einfuse.simulator.events.simulation import simulate

    with pytest.raises(MappingError, match="schedule of thread blocks"):
        simulate(load("flash-attention-2", "h100"), SHAPE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"causal": 0, "density": 1}}, "needs the options causal and window"),
        ({"launches": 3}, "launches: expected a list"),
        ({"tiles": {"tile": [{"query": 64}, {"key": 64}]}}, "rows of the same columns"),
        ({"tiles": {"tile": [{"query": "64 +", "key": 64, "warps": 4}]}}, "found the end"),
        ({"runs": "flash-attention-2"}, "expected a list of designs"),
        ({"runs": ["flash-attention-2", "flash-attention-9"]}, "no design 'flash-attention-9'"),
        ({"let": {"head": "hed"}}, "let.head: unknown name 'hed'"),
        (
            {"calibration": {"exposed": {"default": 2, "low": 3, "high": 4, "meaning": ""}}},
            "low <= default <= high",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_words(change: dict[str, Any], said: str) -> None:
    from einfuse.mapper.design.design import parse_design
    from einfuse.mapper.machine.architecture import read_yaml

    content = read_yaml(DATA / "designs" / "gpu" / "flash-attention-2.yaml")
    with pytest.raises(MappingError, match=said):
        parse_design({**content, **change}, "here", DATA / "designs" / "gpu")


def test_a_design_of_ones_own_says_only_what_differs(tmp_path: Any) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "schema: 1\nname: own\nextends: flash-attention-2\n"
        "tiles: {tile: [{query: 64, key: 64, warps: 4}]}\n"
    )
    card = tmp_path / "half.yaml"
    card.write_text("schema: 1\nname: half\nextends: h100\nprocessors: {count: 66}\n")
    whole = ef.evaluate(load(str(own), "h100"), SHAPE)
    half = ef.evaluate(load(str(own), str(card)), SHAPE)
    assert whole.peak_bytes["shared"] == 2 * 3 * 64 * 128
    assert half.seconds > 1.9 * whole.seconds
    card.write_text("schema: 1\nname: half\nextends: h100\nprocessors: {count: 33}\n")
    quarter = ef.evaluate(load("flash-attention-2", str(card)), SHAPE)
    card.write_text("schema: 1\nname: half\nextends: h100\nprocessors: {count: 66}\n")
    assert ef.evaluate(load("flash-attention-2", str(card)), SHAPE).seconds < quarter.seconds / 1.9

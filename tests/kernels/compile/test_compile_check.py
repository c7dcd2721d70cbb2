"""Kernels compiled without a GPU: resources, instructions, and the model of their loops."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="a launch is described with torch")
pytest.importorskip("triton", reason="Triton has no build here: nothing can be compiled")

from einfuse.kernels.compiled import check as compile_check
from einfuse.kernels.compiled.check import Check, check, check_all, list_tasks
from einfuse.kernels.compiled.compilation import compile_launch
from einfuse.kernels.compiled.loops import loop_models
from einfuse.kernels.errors import KernelError

pytestmark = pytest.mark.compiled  # minutes: `make kernels`
CORES = os.cpu_count() or 1


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this run alone, of Triton's and of ours."""
    folder = tmp_path_factory.mktemp("compiled")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    return folder


@pytest.fixture(scope="session")
def every_check(cache: Path) -> tuple[Check, ...]:
    """Every shipped configuration on both architectures."""
    return tuple(check_all(list_tasks(), CORES, cache))


def failures(checks: tuple[Check, ...]) -> list[str]:
    return [f"{c.kernel}: {c.label} on {c.arch}: {p}" for c in checks for p in c.problems]


def test_every_shipped_configuration_passes(every_check: tuple[Check, ...]) -> None:
    assert failures(every_check) == []


def test_the_model_equals_the_machine_code(every_check: tuple[Check, ...]) -> None:
    assert [c.label for c in every_check if c.model != c.compiled] == []


def test_every_kernel_with_configurations_is_checked(every_check: tuple[Check, ...]) -> None:
    shipped = {k.name for k in compile_check.kernels() if set(k.tuned) - {"interpreter"}}
    assert {c.kernel for c in every_check} == shipped


def test_products_of_half_precision_run_on_tensor_cores(every_check: tuple[Check, ...]) -> None:
    for found in every_check:
        if found.model and "float16" in found.label and not found.label.startswith("softmax"):
            assert {"HMMA", "HGMMA"} & set(found.compiled), found.label


def test_specialised_warps_load_by_the_tensor_memory_accelerator(
    every_check: tuple[Check, ...],
) -> None:
    hopper = [c for c in every_check if c.function == "one_pass_hopper.forward_kernel"]
    assert any(c.threads == 384 for c in hopper)  # a producer and two consumer groups


def test_the_sigmoid_has_one_special_function_a_score_by_every_method(
    every_check: tuple[Check, ...],
) -> None:
    sigmoid = [c for c in every_check if c.kernel == "flash-sigmoid" and "float16" in c.label]
    assert {"bias" in c.label for c in sigmoid} == {True, False}
    for found in sigmoid:
        used = {name for name in ("TANH", "EX2", "RCP") if found.compiled.get(name)}
        assert used == ({"EX2"} if "bias" in found.label else {"TANH"}), found.label


def test_a_spill_without_a_loop_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 columns of a head of 256 do not fit into the registers of 8 warps."""
    task = next(
        t
        for t in list_tasks(("sm_80",), "linear-decay")
        if "output_kernel head_size=256" in t.label
    )
    example = compile_check._examples(task.kernel, task.architecture)[task.place]
    wide = replace(example.launch, arguments={**example.launch.arguments, "block_f": 64})
    monkeypatch.setattr(compile_check, "_examples", lambda *_: (replace(example, launch=wide),))
    (problem,) = check(replace(task, place=0), cache).problems
    assert problem.startswith("spills registers: ")


def test_registers_and_shared_memory_are_within_the_hardware(
    every_check: tuple[Check, ...],
) -> None:
    most = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
    for found in every_check:
        assert 0 < found.registers <= 255
        assert 0 <= found.shared_bytes <= most[found.arch]


def first(kernel: str, architecture: str = "sm_90") -> compile_check.Task:
    return list_tasks((architecture,), kernel)[0]


def test_a_second_check_reads_what_the_first_has_found(cache: Path) -> None:
    task = first("one-pass")
    found = check(task, cache)
    stored = {path: path.stat().st_mtime_ns for path in cache.glob("*.json")}
    assert check(task, cache) == found
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.json")} == stored


def test_a_model_that_is_wrong_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tuple(replace(loop, einsums=("QK", "SLN")) for loop in loop_models()[:1])
    monkeypatch.setattr(compile_check, "loop_models", lambda: wrong)
    found = check(first("one-pass"), cache)
    assert not found.passed
    assert any("FMNMX: the model has 0, the machine code" in p for p in found.problems)


def test_a_function_without_a_model_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_check, "loop_models", lambda: ())
    (problem,) = check(first("one-pass"), cache).problems
    assert problem == "no model: add one_pass.forward_kernel to kernels/data/loops.yaml"


def test_what_cannot_be_launched_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    task = first("one-pass")
    example = compile_check._examples(task.kernel, task.architecture)[task.place]
    broken = replace(example.launch, options={**example.launch.options, "num_warps": 3})
    monkeypatch.setattr(compile_check, "_examples", lambda *_: (replace(example, launch=broken),))
    (problem,) = check(replace(task, place=0)).problems
    assert problem == (
        "forward_kernel: cannot be launched on sm_90: num_warps must be a power of 2"
    )


def test_an_interpreting_process_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (problem,) = check(first("one-pass")).problems
    assert "TRITON_INTERPRET is set" in problem


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architectures": ("sm_9",)}, "did you mean 'sm_90'"),
        ({"architectures": ("hopper",)}, "there is sm_80, sm_86, sm_89, sm_90"),
        ({"kernel": "onepass"}, "one-pass"),
    ],
)
def test_unknown_names_are_answered_with_known_ones(
    arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(KernelError, match=words):
        list_tasks(**arguments)  # type: ignore[arg-type]


def test_a_compiler_error_is_told_in_one_line() -> None:
    """A tile product needs at least 16 on each side."""
    task = first("one-pass")
    example = compile_check._examples(task.kernel, task.architecture)[task.place]
    small = replace(example.launch, arguments={**example.launch.arguments, "block_m": 4})
    with pytest.raises(KernelError, match=r"^forward_kernel: does not compile for sm_90: [^\n]+$"):
        compile_launch(small, "sm_90")

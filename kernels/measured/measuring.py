"""Measuring a suite: every case checked, then timed against all contenders, row by row."""

from __future__ import annotations

import datetime
import functools
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from einfuse.kernels.calls.operators import empty_gradients, empty_outputs
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.timing import Call, Timing, stopwatch_of, time_interleaved
from einfuse.kernels.errors import KernelError

from .contenders import Contender, list_contenders
from .device import Device, read_sm_clock_mhz
from .gate import error_ratio, find_truth
from .measurement import Measurement, read_measurements, write_measurements
from .suites import Case

if TYPE_CHECKING:
    from einfuse.kernels.calls.launch import Launch

_INPUT_SETS = 3
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: its new rows, what was already there, what went wrong."""

    case: Case
    measured: tuple[Measurement, ...] = ()
    known: int = 0
    failures: tuple[str, ...] = ()
    out_of_time: bool = False


def measure_suite(
    cases: tuple[Case, ...],
    device: Device,
    path: Path,
    origin: str,
    seconds: float = 540.0,
    seed: int = 0,
) -> Iterator[Outcome]:
    """Yield what became of each case; rows are in the file before their outcome is yielded.

    A contender is timed only after it passed the check. Rows that the file already has are kept
    and not measured again. Once ``seconds`` are over the cases left are not begun.
    """
    start = time.monotonic()
    for number, case in enumerate(cases):
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            yield Outcome(case, out_of_time=True)
            continue
        share = left / (len(cases) - number) / 2  # checking and compiling take the other half
        timed_s = min(_MOST_SECONDS, max(_LEAST_SECONDS, share))
        rows = read_measurements(path)
        outcome = measure_case(case, device, rows, origin, timed_s, seed)
        if outcome.measured:
            write_measurements(path, (*rows, *outcome.measured))
        yield outcome


def measure_case(
    case: Case,
    device: Device,
    known: tuple[Measurement, ...],
    origin: str,
    seconds: float,
    seed: int,
) -> Outcome:
    """Return the measurements of a case, but for those whose key is known already."""
    training = case.direction == "bwd"
    generator = torch.Generator(device.kind).manual_seed(seed)
    problems = _problems(case, device, generator)
    contenders = list_contenders(problems[0], device.kind, training, device.memory_bytes)
    keys = {measurement.key for measurement in known}
    rows = {c.name: _row(case, device, origin, seed, c, problems[0]) for c in contenders}
    todo = [c for c in contenders if rows[c.name].key not in keys]
    if not todo:
        return Outcome(case, known=len(contenders))
    grad_out = _random_like(problems[0].q, generator) if training else None
    checked, failures = _checked(todo, problems, grad_out)
    stopwatch = stopwatch_of(device.kind)
    timings = time_interleaved({n: call for n, (call, _) in checked.items()}, stopwatch, seconds)
    clock = read_sm_clock_mhz(device)
    measured = tuple(
        _timed(rows[name], case, timing, checked[name][1], clock)
        for name, timing in timings.items()
    )
    return Outcome(case, measured, len(contenders) - len(todo), failures)


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(tensor, requires_grad=False).normal_(generator=generator)


def _problems(case: Case, device: Device, generator: torch.Generator) -> tuple[Problem, ...]:
    """Return random inputs, several sets so that repeats do not find theirs in a cache."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    options = Options(
        scale=case.head_dim**-0.5,
        causal=case.causal,
        window=case.window,
        sinks=case.sinks,
        similarity=case.similarity,
    )

    def tensor(heads: int, length: int) -> Tensor:
        shape = (case.batch, heads, length, case.head_dim)
        values = torch.randn(shape, generator=generator, device=device.kind, dtype=dtype)
        return values.requires_grad_(case.direction == "bwd")

    return tuple(
        Problem(
            tensor(case.heads_q, case.seqlen_q),
            tensor(case.heads_kv, case.seqlen_k),
            tensor(case.heads_kv, case.seqlen_k),
            options,
        )
        for _ in range(_INPUT_SETS)
    )


def _checked(
    contenders: list[Contender], problems: tuple[Problem, ...], grad_out: Tensor | None
) -> tuple[dict[str, tuple[Call, float]], tuple[str, ...]]:
    """Return the call and the error ratio of each contender that passed; what the others did."""
    truth = find_truth(problems[0], grad_out)
    checked: dict[str, tuple[Call, float]] = {}
    failures: list[str] = []
    for contender in contenders:
        try:
            call = _call(contender, problems, grad_out)
            verdict = truth.judge(call(0))
        except (RuntimeError, KernelError) as error:
            if contender.kernel is not None:  # PyTorch's backends may refuse a call
                failures.append(f"{contender.name}: {' '.join(str(error).split())[:300]}")
            continue
        if verdict.passed:
            checked[contender.name] = (call, error_ratio(verdict))
        else:
            failures.append(f"{contender.name}: not timed, {verdict}")
    return checked, tuple(failures)


def _call(
    contender: Contender, problems: tuple[Problem, ...], grad_out: Tensor | None
) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what is timed: the forward call, or the backward of results made beforehand."""
    if grad_out is None:

        @torch.no_grad()
        def forward(repeat: int) -> tuple[Tensor, ...]:
            return (contender.attend(problems[repeat % len(problems)]),)

        return forward
    results = [contender.attend(problem) for problem in problems]

    def backward(repeat: int) -> tuple[Tensor, ...]:
        place = repeat % len(problems)
        leaves = (problems[place].q, problems[place].k, problems[place].v)
        return torch.autograd.grad(results[place], leaves, grad_out, retain_graph=True)

    return backward


def _row(
    case: Case, device: Device, origin: str, seed: int, contender: Contender, problem: Problem
) -> Measurement:
    """Return the row of a case and a contender, its times still to come."""
    config, regs, smem = ("", None, None)
    if contender.kernel is not None:
        launches = _launches(contender, problem, case.direction == "bwd", device.capability)
        config = "; ".join(map(_describe, launches))
        regs, smem = _resources(launches, device.capability)
    return Measurement(
        source=f"einfuse {_version()}",
        source_location=origin,
        gpu=device.name,
        algorithm=contender.name,
        direction=case.direction,
        dtype=case.dtype,
        batch=case.batch,
        heads_q=case.heads_q,
        heads_kv=case.heads_kv,
        seqlen_q=case.seqlen_q,
        seqlen_k=case.seqlen_k,
        head_dim=case.head_dim,
        causal=case.causal,
        metric="ms",
        value=1.0,
        config=config,
        regs=regs,
        smem=smem,
        torch=device.torch,
        triton=device.triton,
        driver=device.driver,
        git_sha=_commit(),
        seed=seed,
        options=case.options,
        threads=device.threads,
    )


def _timed(
    row: Measurement, case: Case, timing: Timing, ratio: float, clock: int | None
) -> Measurement:
    return replace(
        row,
        value=timing.median_ms,
        sm_clock=clock,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        min_ms=timing.min_ms,
        median_ms=timing.median_ms,
        p20_ms=timing.quantile_ms(0.2),
        p80_ms=timing.quantile_ms(0.8),
        repeats=len(timing.samples_ms),
        tflops=case.flops / timing.median_ms / 1e9,
        error_ratio=ratio,
    )


def _launches(
    contender: Contender, problem: Problem, training: bool, architecture: str
) -> tuple[Launch, ...]:
    from einfuse.kernels.calls.launch import Launch

    kernel = contender.kernel
    assert kernel is not None
    out, lse = empty_outputs(problem)
    if not training:
        plan = kernel.function("plan_forward")(kernel, problem, out, lse, architecture)
    else:
        gradients = empty_gradients(problem)
        plan = kernel.function("plan_backward")(
            kernel, problem, out, lse, out, lse, *gradients, architecture
        )
    return tuple(launch for launch in plan if isinstance(launch, Launch))


def _describe(launch: Launch) -> str:
    """Return ``forward_kernel block_p=128 block_m=64 num_warps=8 num_stages=2``."""
    tiles = {n: v for n, v in launch.arguments.items() if n.startswith("block_") and v}
    settings = " ".join(f"{name}={value}" for name, value in {**tiles, **launch.options}.items())
    return f"{launch.function.__name__} {settings}"


def _resources(launches: tuple[Launch, ...], architecture: str) -> tuple[int | None, int | None]:
    """Return the registers and shared bytes of the launch that needs most; None if unknown."""
    from einfuse.kernels.compiled.compilation import compile_launch, default_cache

    try:
        compiled = [compile_launch(x, architecture, default_cache()) for x in launches]
    except KernelError:
        return None, None
    if not compiled:
        return None, None
    return max(c.resources.registers for c in compiled), max(c.shared_bytes for c in compiled)


def _version() -> str:
    try:
        return metadata.version("einfuse")
    except metadata.PackageNotFoundError:
        return "0"


@functools.cache
def _commit() -> str:
    """Return the commit of the source, marked where files differ from it; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

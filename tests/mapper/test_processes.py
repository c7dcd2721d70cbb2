"""Searches in several processes: the same optimum, however it ends, and nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from einfuse.einsum.library.cascades import load
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.processes import worker_processes
from einfuse.mapper.search.search import SearchResult, find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

SMALL = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 8, "P": 4}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


def make_space(cascade: str, architecture: str, shape: dict[str, int] | None = None) -> MapSpace:
    return MapSpace(load(cascade), load_architecture(architecture), shape or SMALL)


def search(space: MapSpace, objective: str, **given: Any) -> SearchResult:
    return find_best(space, find_objective(objective.split("+"), space.architecture), **given)


def same_optimum(space: MapSpace, objective: str, executor: Executor, at_once: int) -> None:
    alone = search(space, objective)
    found = search(space, objective, executor=executor, at_once=at_once)
    assert alone.optimal and found.optimal and found.gap == 0
    if not found.is_front:
        assert found.score == pytest.approx(alone.score, rel=1e-12)
        written = evaluate(to_design(space, found.best.plan), dict(space.shape))
        assert objective != "latency" or written.seconds == pytest.approx(found.score, rel=1e-12)
        return
    assert len(found.solutions) == len(alone.solutions)
    for one, other in zip(found.solutions, alone.solutions, strict=True):
        assert one.figures == pytest.approx(other.figures, rel=1e-12)


@pytest.mark.parametrize(
    ("cascade", "architecture", "objective"),
    [("attention/3-pass", "fusemax", "energy"), ("attention/3-pass", "flat", "latency+buffer")],
)
def test_two_processes_find_the_same_optimum(
    cascade: str, architecture: str, objective: str, pool: ProcessPoolExecutor
) -> None:
    same_optimum(make_space(cascade, architecture), objective, pool, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_searches_find_the_same_optimum_in_processes(
    seed: int, pool: ProcessPoolExecutor
) -> None:
    draw = random.Random(seed)
    shape = {rank: draw.choice((1, 2, 4, 6, 8)) for rank in "BHEF"}
    shape |= {rank: draw.choice((4, 8, 12, 16)) for rank in "MP"}
    space = make_space(
        draw.choice(("attention/1-pass", "attention/2-pass", "attention/3-pass")),
        draw.choice(("flat", "fusemax")),
        shape,
    )
    objective = draw.choice(("latency", "energy", "edp", "traffic", "latency+buffer"))
    same_optimum(space, objective, pool, draw.randint(1, 12))


def test_what_is_found_depends_on_the_steps_at_once_alone(pool: ProcessPoolExecutor) -> None:
    space = make_space("attention/3-pass", "flat")
    with ThreadPoolExecutor(1) as thread:
        one = search(space, "energy", executor=thread, at_once=6)
    two = search(space, "energy", executor=pool, at_once=6)
    again = search(space, "energy", executor=pool, at_once=6)
    counts = {(r.candidates, r.structures, *r.infeasible.items()) for r in (one, two, again)}
    assert one.best == two.best == again.best and len(counts) == 1


def test_an_interrupt_leaves_the_best_so_far_and_the_executor_usable(
    pool: ProcessPoolExecutor,
) -> None:
    met: list[str] = []

    def interrupt(line: str) -> None:
        met.extend([line] if line.startswith("best so far") else [])
        if len(met) == 2:
            raise KeyboardInterrupt

    space = make_space("attention/1-pass", "fusemax")
    result = search(space, "energy", executor=pool, at_once=4, report=interrupt)
    assert not result.optimal and 0 <= result.gap < 1
    written = evaluate(to_design(space, result.best.plan), dict(space.shape))
    assert written.energy_pj == pytest.approx(result.score)
    assert pool.submit(os.getpid).result() != os.getpid()


@pytest.mark.slow
def test_the_time_ends_steps_in_processes_too(pool: ProcessPoolExecutor) -> None:
    shape = {**SMALL, "M": 4096, "P": 4096, "E": 64, "F": 64}
    started = time.monotonic()
    result = search(
        make_space("attention/1-pass", "fusemax", shape), "energy", executor=pool, seconds=20
    )
    assert not result.optimal and 0 < result.gap < 1
    assert time.monotonic() - started < 40


class _Failing(Executor):
    """Every step fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, fn: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self.error)
        return future


def test_lost_processes_are_one_message_and_other_errors_come_as_they_are() -> None:
    space = make_space("attention/3-pass", "flat")
    with pytest.raises(MappingError, match=r"worker process ended .* use fewer processes"):
        search(space, "latency", executor=_Failing(BrokenProcessPool("gone")))
    with pytest.raises(MappingError, match=r"^what is wrong$"):
        search(space, "latency", executor=_Failing(MappingError("what is wrong")))


def test_what_does_not_go_to_other_processes_says_so(pool: ProcessPoolExecutor) -> None:
    space = make_space("attention/3-pass", "flat")
    asked = find_objective("latency", space.architecture)

    class Local(type(asked)):  # type: ignore[misc]
        pass

    local = Local(**{name: getattr(asked, name) for name in asked.__dataclass_fields__})
    with pytest.raises(MappingError, match=r"latency have to go .* do not pickle"):
        find_best(space, local, executor=pool)
    with pytest.raises(MappingError, match="at least 1 step at once, found 0"):
        find_best(space, asked, executor=pool, at_once=0)
    with (
        pytest.raises(MappingError, match="at least 1 process, found 0"),
        worker_processes(0),
    ):
        pass


def children(parent: int) -> list[Path]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in found]


def test_processes_that_are_busy_end_with_the_block() -> None:
    started = time.monotonic()
    with worker_processes(1) as executor:
        process = executor.submit(os.getpid).result()
        executor.submit(time.sleep, 600)
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_however_a_command_ends(how: signal.Signals) -> None:
    arguments = ["-m", "einfuse", "map", "--cascade", "attention/1-pass", "--processes", "2"]
    arguments += ["--architecture", "fusemax", "--objective", "energy", "--json"]
    arguments += ["--shape", "B=64,H=12,M=4K,P=4K,E=64,F=64"]
    command = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(15)
    workers = children(command.pid)
    assert len(workers) >= 2
    command.send_signal(how)
    out, error = command.communicate(timeout=60)
    assert "Traceback" not in error
    if how == signal.SIGINT:
        assert command.returncode == 0 and '"optimal": false' in out
    ends = time.monotonic() + 20
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < ends
        time.sleep(0.1)

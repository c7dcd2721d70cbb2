"""Every shipped configuration compiled without a GPU and held against what it should be."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from einfuse.einsum.functions import closest

from .compilation import Compiled, compile_launch
from .errors import KernelError
from .examples import Example, list_examples
from .launch import Launch
from .loops import LoopModel, loop_models
from .lowering import lowering_table
from .model import differences
from .registry import Kernel, find_kernel, kernels
from .sass import MATRIX, SPILLS, spill_bytes

ARCHITECTURES = ("sm_80", "sm_90")
"""What is checked unless other architectures are asked for."""


@dataclass(frozen=True, slots=True)
class Check:
    """One configuration on one architecture: what it needs, its loops, what is wrong with it.

    ``model`` and ``compiled`` count the instructions of a thread in one turn of the main loop (of
    all its loops, where a kernel has several); they hold the same instructions.
    ``problems`` is empty if every check passed.
    """

    kernel: str
    label: str
    function: str
    arch: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    threads: int
    model: Mapping[str, int]
    compiled: Mapping[str, int]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.problems

    def to_row(self) -> dict[str, Any]:
        """Return the fields as plain data, in order."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Task:
    """The example of a kernel to check, by its place among those of an architecture."""

    kernel: str
    architecture: str
    place: int
    label: str


def list_tasks(
    architectures: Iterable[str] = ARCHITECTURES, kernel: str | None = None, every: bool = False
) -> tuple[Task, ...]:
    """Return what there is to check: each shipped configuration once, in 16 bits without a mask.

    With ``every``, all data types and masks. Raises KernelError for an unknown architecture or
    kernel, with the closest names.
    """
    known = tuple(lowering_table().shared_bytes)
    for name in architectures:
        if name not in known:
            raise KernelError(f"--arch: there is no '{name}'{closest(name, known)}")
    chosen = kernels() if kernel is None else (find_kernel(kernel),)
    return tuple(
        Task(found.name, name, place, example.label)
        for found, name in itertools.product(chosen, architectures)
        for place, example in _selected(_examples(found.name, name), every)
    )


def check_all(
    tasks: Iterable[Task], workers: int | None = None, cache: Path | None = None
) -> Iterator[Check]:
    """Yield the check of each task, in order, by processes in which Triton can compile."""
    todo = tuple(tasks)
    count = min(len(todo), workers or os.cpu_count() or 1)
    if count < 1:
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, initializer=_prepare_worker) as pool:
            yield from pool.map(functools.partial(check, cache=cache), todo)
    except BrokenProcessPool:
        raise KernelError("compiling: a process died, killed or out of memory") from None


def check(task: Task, cache: Path | None = None) -> Check:
    """Compile the example of a task and return what it is and what is wrong with it."""
    kernel = find_kernel(task.kernel)
    example = _examples(task.kernel, task.architecture)[task.place]
    function = _function_name(example.launch)
    try:
        compiled = compile_launch(example.launch, task.architecture, cache)
    except KernelError as error:
        return Check(
            kernel=task.kernel,
            label=task.label,
            function=function,
            arch=task.architecture,
            registers=0,
            shared_bytes=0,
            spill_bytes=0,
            threads=0,
            model={},
            compiled={},
            problems=(str(error),),
        )
    loops = _loops_of(function, example.launch)
    pairs = [_compare(kernel, loop, example.launch, compiled) for loop in loops]
    return Check(
        kernel=task.kernel,
        label=task.label,
        function=function,
        arch=task.architecture,
        registers=compiled.resources.registers,
        shared_bytes=compiled.shared_bytes,
        spill_bytes=spill_bytes(compiled.resources),
        threads=compiled.threads,
        model=_total(pair.model for pair in pairs),
        compiled=_total(pair.compiled for pair in pairs),
        notes=tuple(extra.note for loop in loops for extra in loop.extras),
        problems=(
            *_resource_problems(compiled),
            *_loop_problems(function, compiled, loops, example.launch),
            *(problem for pair in pairs for problem in pair.problems),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Comparison:
    model: Mapping[str, int]
    compiled: Mapping[str, int]
    problems: tuple[str, ...]


def _compare(kernel: Kernel, loop: LoopModel, launch: Launch, compiled: Compiled) -> _Comparison:
    """Hold a loop's model against the compiled loop that is nearest to it.

    A kernel has each loop twice or more, with and without masks; the model is of the latter.
    """
    element_bytes = _element_bytes(launch)
    counted = loop.count(
        kernel.cascade, launch.tile, compiled.distributions, compiled.architecture, element_bytes
    )
    model = {name: n for name, n in counted.items() if name in _compared(element_bytes)}
    exact = {*MATRIX, *lowering_table().exact}

    def distance(found: Mapping[str, int]) -> tuple[int, int]:
        wrong = differences(model, _compared_part(found, element_bytes))
        decisive = sum(abs(n) for name, n in wrong.items() if name in exact)
        return decisive, sum(abs(n) for n in wrong.values())

    if not compiled.loops:
        return _Comparison(model, {}, (f"{loop.name} loop: the machine code has no loop",))
    nearest = min(compiled.loops, key=distance)
    found = _compared_part(nearest, element_bytes)
    problems = [
        f"{loop.name} loop: {name}: the model has {model.get(name, 0)}, the machine code "
        f"{found.get(name, 0)}"
        for name in differences(model, found)
    ]
    spills = {name: nearest[name] for name in SPILLS if nearest.get(name)}
    if spills:
        listed = ", ".join(f"{count} {name}" for name, count in spills.items())
        problems.append(f"{loop.name} loop: spills registers: {listed}")
    return _Comparison(model, found, tuple(problems))


def _compared_part(loop: Mapping[str, int], element_bytes: int) -> dict[str, int]:
    names = _compared(element_bytes)
    return {name: count for name, count in sorted(loop.items()) if name in names}


def _compared(element_bytes: int) -> frozenset[str]:
    """Return the instructions that models speak of.

    In 32 bits the products of a loop are spread differently, and shuffles move rows between
    them; these are no part of a cascade, and such kernels are for checks alone.
    """
    table = lowering_table()
    names = {*MATRIX, *table.instructions.values()}
    return frozenset(names - {table.instructions["shuffle"]} if element_bytes > 2 else names)


def _resource_problems(compiled: Compiled) -> Iterator[str]:
    most = lowering_table().shared_bytes[compiled.architecture]
    if compiled.shared_bytes > most:
        yield f"shared memory: needs {compiled.shared_bytes} bytes, {most} at most"


def _loop_problems(
    function: str, compiled: Compiled, loops: tuple[LoopModel, ...], launch: Launch
) -> Iterator[str]:
    if not loops and any(_has_matrix(loop) for loop in compiled.loops):
        yield f"no model: add {function} to kernels/data/loops.yaml"
    expected = {name for loop in loops for name in loop.expects(compiled.architecture)}
    for name in sorted(expected):
        if not compiled.operations.get(name):
            yield f"expected the instruction {name}, found none"
    if _element_bytes(launch) == 2:
        wanted = lowering_table().matrix_instruction(compiled.architecture).name
        others = [n for n in MATRIX if n != wanted and compiled.operations.get(n)]
        if others:
            yield f"matrix instructions: expected {wanted} alone, found {', '.join(others)}"


def _has_matrix(loop: Mapping[str, int]) -> bool:
    return any(loop.get(name) for name in MATRIX)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _loops_of(function: str, launch: Launch) -> tuple[LoopModel, ...]:
    return tuple(loop for loop in loop_models() if loop.serves(function, launch.arguments))


def _function_name(launch: Launch) -> str:
    python = getattr(launch.function, "fn", launch.function)
    return f"{python.__module__.rpartition('.')[2]}.{python.__name__}"


def _element_bytes(launch: Launch) -> int:
    """Return the bytes of an element of the first tensor, which is an operand of the products."""
    sizes = (getattr(value, "element_size", None) for value in launch.arguments.values())
    return next((int(size()) for size in sizes if size is not None), 2)


@functools.cache
def _examples(kernel: str, architecture: str) -> tuple[Example, ...]:
    """Return the examples of the newest architecture with configurations, up to the asked one."""
    found = find_kernel(kernel)
    older = [n for n in found.tuned if n.startswith("sm_") and _number(n) <= _number(architecture)]
    return tuple(list_examples(found, max(older, key=_number))) if older else ()


def _selected(examples: tuple[Example, ...], every: bool) -> Iterator[tuple[int, Example]]:
    seen: set[object] = set()
    for place, example in enumerate(examples):
        key = _configuration_key(example.launch)
        if every or key not in seen:
            seen.add(key)
            yield place, example


def _configuration_key(launch: Launch) -> object:
    """What tells configurations apart: function, constants but the mask, options, element size."""
    constants = tuple(
        (name, str(value))
        for name, value in launch.arguments.items()
        if name not in ("causal", "accumulator") and isinstance(value, int | str | bool)
    )
    return (
        _function_name(launch),
        constants,
        tuple(launch.options.items()),
        _element_bytes(launch),
    )


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


def _prepare_worker() -> None:
    os.environ.pop("TRITON_INTERPRET", None)

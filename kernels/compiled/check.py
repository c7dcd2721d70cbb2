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

from einfuse.einsum import closest
from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.registry import Kernel, find_kernel, kernels
from einfuse.kernels.errors import KernelError

from .compilation import Compiled, compile_launch
from .examples import Example, list_examples
from .instructions import differences
from .loops import LoopModel, loop_models, unmodelled_functions
from .lowering import lowering_table
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
            *_loop_problems(function, compiled, loops),
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
    compared = _compared(element_bytes, loop.is_program) - set(loop.ignored)
    bodies = compiled.loops
    tile = _tile(launch)
    if loop.is_program:
        bodies = (compiled.operations,)
        products = (*MATRIX, lowering_table().instructions["multiply_add"])
        if not any(body.get(name) for body in compiled.loops for name in products):
            tile = {**tile, **{rank: launch.arguments[name] for rank, name in loop.slices}}
    counted = loop.count(kernel.cascade, tile, compiled, element_bytes)
    model = {name: count for name, count in counted.items() if name in compared}
    if not bodies:
        return _Comparison(model, {}, (f"{loop.name} loop: the machine code has no loop",))
    exact = {*MATRIX, *lowering_table().exact}

    def distance(body: Mapping[str, int]) -> tuple[int, int]:
        wrong = differences(model, _only(compared, body))
        decisive = sum(abs(n) for name, n in wrong.items() if name in exact)
        return decisive, sum(abs(n) for n in wrong.values())

    nearest = min(bodies, key=distance)
    found = _only(compared, nearest)
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


def _only(names: frozenset[str], body: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(body.items()) if name in names}


def _compared(element_bytes: int, is_program: bool) -> frozenset[str]:
    """Return the instructions that a model speaks of.

    In 32 bits the products of a loop are spread differently, and shuffles move rows between them;
    such kernels are for checks alone. A whole program also loads, stores, divides integers: its
    conversions, shuffles and reciprocals are no part of a cascade.
    """
    table = lowering_table()
    names = {*MATRIX, *table.exact, *table.instructions.values()}
    if element_bytes > 2 or is_program:
        names.discard(table.instructions["shuffle"])
    if is_program:
        names -= {table.instructions[name] for name in ("convert", "reciprocal")}
    return frozenset(names)


def _resource_problems(compiled: Compiled) -> Iterator[str]:
    most = lowering_table().shared_bytes[compiled.architecture]
    if compiled.shared_bytes > most:
        yield f"shared memory: needs {compiled.shared_bytes} bytes, {most} at most"


def _loop_problems(
    function: str, compiled: Compiled, loops: tuple[LoopModel, ...]
) -> Iterator[str]:
    if not loops and function not in unmodelled_functions():
        yield f"no model: add {function} to kernels/data/loops.yaml"
    if not loops and any(compiled.operations.get(name) for name in SPILLS):
        yield f"spills registers: {spill_bytes(compiled.resources)} bytes a thread"
    expected = {name for loop in loops for name in loop.expects(compiled.architecture)}
    for name in sorted(expected):
        if not compiled.operations.get(name):
            yield f"expected the instruction {name}, found none"


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _loops_of(function: str, launch: Launch) -> tuple[LoopModel, ...]:
    constants = {**launch.arguments, "dtype": _dtype(launch)}
    return tuple(loop for loop in loop_models() if loop.serves(function, constants))


def _function_name(launch: Launch) -> str:
    python = getattr(launch.function, "fn", launch.function)
    return f"{python.__module__.rpartition('.')[2]}.{python.__name__}"


def _tile(launch: Launch) -> dict[str, int]:
    """Return rank -> size of the tiles of a launch: its constants ``block_p`` and so on."""
    blocks = {
        name.removeprefix("block_").upper(): value
        for name, value in launch.arguments.items()
        if name.startswith("block_") and isinstance(value, int)
    }
    return {**blocks, **launch.tile}


def _element_bytes(launch: Launch) -> int:
    """Return the bytes of an element of the first tensor, which is an operand of the products."""
    return next((int(t.element_size()) for t in launch.tensors()), 2)


def _dtype(launch: Launch) -> str:
    """Return the name of the data type of that tensor."""
    return next((str(t.dtype).removeprefix("torch.") for t in launch.tensors()), "")


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

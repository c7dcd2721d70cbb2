"""Launches compiled for a GPU that need not be there: resources, loops and instructions.

The arguments of a launch are specialised by Triton's own launcher code, so what is compiled here
is what the launch would run on such a GPU; only the driver is never asked for anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from einfuse.einsum import EinfuseError
from einfuse.files import require_folder, write_text
from einfuse.kernels.calls.architecture import is_interpreting
from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.errors import KernelError, MissingPackageError

from .distribution import Distribution, read_distributions
from .sass import Program, Resources, read_cubin

_FORMAT = 1
"""Raise when `Compiled` or the reading of machine code changes: cached results are then dropped."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a launch became on an architecture.

    ``shared_bytes`` is what a block asks for, static and dynamic. ``threads`` counts those of
    warps that the compiler added. ``loops`` has operation -> count for each innermost loop in the
    order of the addresses, ``operations`` for the whole program. ``distributions`` says how the
    matrices that are products or are reduced lie over the threads.
    """

    name: str
    architecture: str
    resources: Resources
    shared_bytes: int
    threads: int
    operations: Mapping[str, int]
    loops: tuple[Mapping[str, int], ...]
    distributions: tuple[Distribution, ...] = ()


def compile_launch(launch: Launch, architecture: str, cache: Path | None = None) -> Compiled:
    """Return a launch compiled for ``sm_90`` and the like; no GPU and no driver is used.

    With ``cache`` (a folder) the result is kept under a hash of everything it depends on: source
    with all functions it calls, argument types, constants, options, target and Triton's version.
    """
    source, target, options = _specialise(launch, architecture)
    if cache is None:
        return _compile(source, target, options, architecture)
    path = cache / f"{_digest(source, architecture, options)}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        return _from_data(json.loads(path.read_text(encoding="utf-8")))
    compiled = _compile(source, target, options, architecture)
    _store(path, asdict(compiled))
    return compiled


def default_cache() -> Path:
    """Return the folder that keeps compiled results: ``EINFUSE_CACHE_DIR`` or the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EINFUSE_CACHE_DIR") or Path(home) / "einfuse") / "compiled"


def _specialise(launch: Launch, architecture: str) -> tuple[Any, Any, Any]:
    """Return Triton's source, target and options for a launch."""
    if is_interpreting():
        raise KernelError(
            "compiling: TRITON_INTERPRET is set, under which Triton cannot compile; unset it"
        )
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.jit import create_function_from_signature
    except ModuleNotFoundError:
        raise MissingPackageError("compiling needs triton: pip install 'einfuse[gpu]'") from None
    function: Any = launch.function
    if not hasattr(function, "params"):  # an autotuned function
        function = function.fn
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    backend = make_backend(target)
    binder = create_function_from_signature(function.signature, function.params, backend)
    try:
        bound, specialisation, _ = binder(**launch.arguments, **launch.options)
        options, signature, constants, attributes = function._pack_args(
            backend, dict(launch.options), bound, specialisation, None
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise KernelError(
            f"{function.__name__}: cannot be launched on {architecture}: {error}"
        ) from None
    return ASTSource(function, signature, constants, attributes), target, options


def _compile(source: Any, target: Any, options: Any, architecture: str) -> Compiled:
    import triton

    with _captured_stderr() as said:
        try:
            kernel = triton.compile(source, target=target, options=dict(options.__dict__))
        except Exception as error:  # whatever the compiler throws is about this kernel
            reason = _reason(said(), str(error))
            raise KernelError(
                f"{source.name}: does not compile for {architecture}: {reason}"
            ) from None
    resources, program = read_cubin(kernel.asm["cubin"])
    return Compiled(
        name=source.name,
        architecture=architecture,
        resources=resources,
        shared_bytes=kernel.metadata.shared + _static_shared(resources, architecture),
        threads=_threads(kernel.asm["ptx"], 32 * kernel.metadata.num_warps),
        operations=dict(program.count()),
        loops=_loops(program),
        distributions=read_distributions(kernel.asm["ttgir"]),
    )


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what the compiler, which is no Python, prints; yields what reads it."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            os.dup2(file.fileno(), 2)
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(printed: str, error: str) -> str:
    """Return the first line that tells what went wrong, else the exception's text."""
    telling = (line for line in printed.splitlines() if "error:" in line or "Assertion" in line)
    return " ".join(next(telling, error).split())[:300]


def _loops(program: Program) -> tuple[dict[str, int], ...]:
    return tuple(dict(program.count(loop)) for loop in program.innermost_loops)


def _static_shared(resources: Resources, architecture: str) -> int:
    """Return the static bytes, less the KiB that the system reserves per block from sm_90 on.

    The hardware's limit (227 KiB of 228) already leaves that KiB out.
    """
    reserved = 1024 if int(architecture.removeprefix("sm_")) >= 90 else 0
    return max(0, resources.static_shared_bytes - reserved)


def _threads(ptx: str, asked: int) -> int:
    found = re.search(r"\.reqntid (\d+)", ptx)
    return int(found[1]) if found else asked


def _digest(source: Any, architecture: str, options: Any) -> str:
    import triton

    parts = (source.hash(), architecture, options.hash(), triton.__version__, str(_FORMAT))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _from_data(data: Mapping[str, Any]) -> Compiled:
    return Compiled(
        name=data["name"],
        architecture=data["architecture"],
        resources=Resources(**data["resources"]),
        shared_bytes=data["shared_bytes"],
        threads=data["threads"],
        operations=data["operations"],
        loops=tuple(data["loops"]),
        distributions=tuple(_distribution(entry) for entry in data["distributions"]),
    )


def _distribution(data: Mapping[str, Any]) -> Distribution:
    pairs = {name: tuple(data[name]) for name in ("block", "lanes", "warps")}
    return Distribution(rows=data["rows"], columns=data["columns"], **pairs)


def _store(path: Path, data: Mapping[str, Any]) -> None:
    """Keep a result; where the cache cannot be written, it is compiled again next time."""
    with suppress(EinfuseError):
        require_folder(path.parent)
        write_text(path, json.dumps(data))

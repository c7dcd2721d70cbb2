"""Every kernel with the cascade it implements and what it takes; read from data, without torch."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from einfuse.kernels.errors import KernelError, MissingPackageError

_SUFFIX = ".kernel.yaml"

_SMALL_SHARED = {"sm_86", "sm_89", "sm_120"}
"""Architectures with 99 KiB of shared memory for a block: rows for sm_80 fit, later ones do not.

Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""


@dataclass(frozen=True, slots=True)
class Configuration:
    """How one launch of a kernel is tiled on an architecture.

    ``tiles`` are the kernel's compile-time sizes by the ranks of its cascade, ``block_p`` queries
    by ``block_m`` keys say. ``when`` bounds the sizes a row is for, from above (``head_size: 64``
    is for head sizes up to 64); rows are tried in the order of the file.
    """

    launch: str
    architecture: str
    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    when: tuple[tuple[str, int], ...] = ()
    source: str = ""

    def serves(self, architecture: str, sizes: Mapping[str, int]) -> bool:
        """Whether the row is for this architecture and these sizes."""
        return architecture == self.architecture and all(
            name in sizes and sizes[name] <= most for name, most in self.when
        )

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told besides the tiles."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @staticmethod
    def from_data(row: Mapping[str, Any], source: str = "") -> Configuration:
        """Return the configuration of one row of a data file."""
        return Configuration(
            launch=row["launch"],
            architecture=row["architecture"],
            tiles=tuple(row["tiles"].items()),
            warps=row["warps"],
            stages=row["stages"],
            when=tuple(row.get("when", {}).items()),
            source=row.get("source", source),
        )


@dataclass(frozen=True, slots=True)
class Traits:
    """What a kernel must know of a call to say whether it takes it; no tensors.

    ``alignment`` is the largest power of two, at most 16, of bytes that divides the address and
    every stride of q, k, v and the (contiguous) output. ``block_size_alignment`` is the largest,
    at most 16, that divides the block size of a block mask; 16 without one.
    """

    architecture: str
    dtype: str
    heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int
    alignment: int = 16
    block_size_alignment: int = 16
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of a cascade.

    A call may ask for ``features`` and must ask for those in ``requires``. ``limits`` bound
    numbers of :class:`Traits`, both ends included. Among the kernels that take a
    call, the one with the smallest ``order`` is chosen. ``module`` has the functions of
    docs/decisions/0005-kernels.md.
    """

    name: str
    cascade: str
    summary: str
    module: str
    architectures: tuple[str, ...]
    dtypes: tuple[str, ...]
    features: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int, int], ...] = ()
    order: int = 100
    configurations: tuple[Configuration, ...] = field(default=(), repr=False)

    @property
    def tuned(self) -> tuple[str, ...]:
        """The architectures with shipped configurations."""
        return tuple(dict.fromkeys(c.architecture for c in self.configurations))

    def refusal(self, traits: Traits) -> str | None:
        """Return why this kernel does not take such a call, or None if it does."""
        if traits.architecture not in self.architectures:
            return f"runs on {_listed(self.architectures)}, not on {traits.architecture}"
        if traits.dtype not in self.dtypes and not _is_check(traits):
            return f"takes {_listed(self.dtypes)}, not {traits.dtype}"
        missing = sorted(traits.features - self.features)
        if missing:
            return f"does not know {_listed(missing)}"
        unused = sorted(self.requires - traits.features)
        if unused:
            return f"is for calls with {_listed(unused)}"
        for name, least, most in self.limits:
            value = getattr(traits, name)
            if not least <= value <= most:
                return f"takes {name} from {least} to {most}, not {value}"
        return None

    def configuration(self, launch: str, architecture: str, **sizes: int) -> Configuration:
        """Return the first shipped configuration that fits a launch on an architecture.

        An architecture without rows of its own takes those of the newest one before it (of
        sm_80, if its shared memory is small).
        ``sizes`` are the numbers that rows are conditional on; see :class:`Configuration`.
        """
        for shipped in _from_newest(self.tuned, architecture):
            for row in self.configurations:
                if row.launch == launch and row.serves(shipped, sizes):
                    return row
        raise KernelError(
            f"kernel {self.name}: no configuration of '{launch}' for {architecture} with "
            f"{', '.join(f'{k}={v}' for k, v in sizes.items())}; see kernels/data"
        )

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function of the kernel's module; says what to install if it cannot load."""
        try:
            module = importlib.import_module(f"einfuse.kernels.{self.module}")
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "triton"}:
                raise
            raise MissingPackageError(
                f"kernel {self.name} needs {error.name}: pip install 'einfuse[gpu]'"
            ) from None
        return getattr(module, name)  # type: ignore[no-any-return]


@functools.cache
def kernels() -> tuple[Kernel, ...]:
    """Return every kernel, preferred ones first.

    >>> "one-pass" in [kernel.name for kernel in kernels()]
    True
    """
    files = resources.files("einfuse.kernels").joinpath("data").iterdir()
    texts = (file.read_text(encoding="utf-8") for file in files if file.name.endswith(_SUFFIX))
    found = (_from_data(yaml.safe_load(text)) for text in texts)
    return tuple(sorted(found, key=lambda kernel: (kernel.order, kernel.name)))


def find_kernel(name: str) -> Kernel:
    """Return a kernel by its name.

    >>> find_kernel("one-pass").cascade
    'attention/1-pass'
    """
    for kernel in kernels():
        if kernel.name == name:
            return kernel
    raise KernelError(
        f"kernel: there is no '{name}'; there are {_listed(kernel.name for kernel in kernels())}"
    )


@functools.lru_cache(maxsize=1024)
def choose_kernel(traits: Traits, name: str | None = None) -> Kernel:
    """Return the preferred kernel for a call, or the named one if it takes it."""
    if name is not None:
        kernel = find_kernel(name)
        refusal = kernel.refusal(traits)
        if refusal is not None:
            raise KernelError(f"kernel '{name}' {refusal}")
        return kernel
    refusals: list[str] = []
    for kernel in kernels():
        refusal = kernel.refusal(traits)
        if refusal is None:
            return kernel
        refusals.append(f"  {kernel.name} {refusal}")
    raise KernelError("no kernel takes this call:\n" + "\n".join(refusals))


def find_or_fall_back(name: str, traits: Traits, *, asked: bool = False) -> Kernel | None:
    """Return a kernel, or None where it refuses the call and the plain formula has to do.

    The refusal is a warning, except on a CPU, for which no kernel is meant; it is a KernelError
    if the caller ``asked`` for this kernel.

    >>> usual = dict(heads=8, key_heads=8, queries=1, keys=64, head_size=64, value_size=64)
    >>> traits = Traits(architecture="sm_90", dtype="float16", **usual)
    >>> find_or_fall_back("split-kv-decode", traits).module
    'decoding.split_kv'
    """
    kernel = find_kernel(name)
    refusal = kernel.refusal(traits)
    if refusal is None:
        return kernel
    if asked:
        raise KernelError(f"kernel '{name}' {refusal}")
    if traits.architecture != "cpu":
        warn_once(f"kernel '{name}' {refusal}: using the plain formula")
    return None


@functools.cache
def warn_once(text: str) -> None:
    """Warn with a text the first time that it comes up."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _is_check(traits: Traits) -> bool:
    """Every interpreted kernel takes the wide types, for checks."""
    return traits.architecture == "interpreter" and traits.dtype in ("float32", "float64")


def _from_data(data: Mapping[str, Any]) -> Kernel:
    return Kernel(
        name=data["name"],
        cascade=data["cascade"],
        summary=data["summary"],
        module=data["module"],
        architectures=tuple(data["architectures"]),
        dtypes=tuple(data["dtypes"]),
        features=frozenset((*data.get("features", ()), *data.get("requires", ()))),
        requires=frozenset(data.get("requires", ())),
        limits=tuple((name, *ends) for name, ends in data.get("limits", {}).items()),
        order=data.get("order", 100),
        configurations=tuple(
            Configuration.from_data(row, source=data.get("source", ""))
            for row in data.get("configurations", ())
        ),
    )


def _from_newest(shipped: tuple[str, ...], architecture: str) -> list[str]:
    """The architectures whose rows may serve one: itself, then older ones with as much memory."""
    if not architecture.startswith("sm_"):
        return [architecture]
    newest = 80 if architecture in _SMALL_SHARED else int(architecture[3:]) - 1
    older = [int(name[3:]) for name in shipped if name.startswith("sm_")]
    fitting = sorted({number for number in older if number <= newest}, reverse=True)
    return [architecture, *(f"sm_{number}" for number in fitting)]


def _listed(names: Any) -> str:
    return ", ".join(names)

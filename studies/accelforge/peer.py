"""Running AccelForge: its evaluation of a mapping, and its search; imported only when they run.

It needs Python 3.12 or newer and ``pip install accelforge``; its mapper also graphviz's ``dot``,
and it writes `mapping.svg` into the current folder, so it runs in a folder of its own here. On a
glibc older than 2.38 ``pip install --force-reinstall --no-deps --no-binary hwcomponents-cacti
hwcomponents-cacti`` (it needs g++ and make).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cases import Case

VERSIONED = (
    "accelforge",
    "hwcomponents",
    "islpy-barvinok",
    "numpy",
    "pandas",
    "sympy",
    "symengine",
)


def is_installed() -> bool:
    """Whether AccelForge can be imported."""
    return importlib.util.find_spec("accelforge") is not None


def versions() -> dict[str, str]:
    """Return the versions of AccelForge and of what its results stand on."""
    import platform

    found = {"python": platform.python_version()}
    for package in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def evaluate_there(case: Case, mapping: str) -> dict[str, Any]:
    """Return what AccelForge says of a mapping file: energy, time, and bits moved."""
    with _quietly():
        spec = _spec(case, mapping)
        started = time.process_time()
        result = spec.evaluate_mapping()
        seconds = time.process_time() - started
    return {**_record(result.data.iloc[0].to_dict()), "cpu_seconds": seconds}


def search_there(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the mapping of least energy that AccelForge finds, and what it says of it."""
    import accelforge

    with _quietly():
        spec = _spec(case)
        spec.mapper.metrics = accelforge.Metrics.ENERGY
        if case.fused_loops is not None:
            spec.mapper.max_fused_loops = case.fused_loops
        started = time.process_time()
        result = spec.map_workload_to_arch(print_progress=False)
        seconds = time.process_time() - started
    row = result.data.iloc[0].to_dict()
    return _written(row["Total<SEP>mapping"]()), {**_record(row), "cpu_seconds": seconds}


def _spec(case: Case, mapping: str | None = None) -> Any:
    import accelforge
    from accelforge.util.parallel import set_n_parallel_jobs

    set_n_parallel_jobs(1)  # so that this process's CPU seconds are all
    examples = Path(accelforge.__file__).parent.parent / "examples" / "arches"
    Path("workload.yaml").write_text(case.workload, encoding="utf-8")
    files = [str(examples / f"{case.architecture}.yaml"), "workload.yaml"]
    if mapping is not None:
        Path("mapping.yaml").write_text(mapping, encoding="utf-8")
        files.append("mapping.yaml")
    spec = accelforge.Spec.from_yaml(*files)
    every = accelforge.Metrics
    spec.model.metrics = every.ENERGY | every.LATENCY | every.ACTIONS
    return spec


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """In a folder of its own, without its lines and warnings."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.chdir(before)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """Return energy, time, and the actions of each Einsum: [component, tensor, action] -> count."""
    actions: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for key, value in row.items():
        parts = str(key).split("<SEP>")
        if len(parts) == 5 and parts[1] == "action" and float(value):
            actions["/".join((parts[0], *parts[2:]))] = float(value)
        if len(parts) == 3 and parts[1] == "latency":
            seconds[parts[0]] = max(seconds.get(parts[0], 0.0), float(value))
    return {
        "energy_j": float(row["Total<SEP>energy"]),
        "seconds": float(row["Total<SEP>latency"]),
        "seconds_by_einsum": seconds,
        "actions": actions,
    }


def _written(mapping: Any) -> str:
    """Return a mapping object as the file that says the same."""
    return "mapping:\n  nodes:\n" + "".join(_lines(mapping.nodes, "  "))


def _lines(nodes: Any, indent: str) -> Iterator[str]:
    for node in nodes:
        kind = type(node).__name__
        if kind == "Reservation":
            continue
        if kind in ("Sequential", "Split", "Nested"):
            kind = "Nested" if kind == "Nested" else "Sequential"
            yield f"{indent}- !{kind}\n{indent}  nodes:\n"
            yield from _lines(node.nodes, f"{indent}  ")
            continue
        fields = {
            "Storage": ("tensors", "component"),
            "Temporal": ("rank_variable", "tile_shape"),
            "Spatial": ("rank_variable", "tile_shape", "name", "component"),
            "Compute": ("einsum", "component"),
        }[kind]
        written = ", ".join(f"{name}: {_value(getattr(node, name))}" for name in fields)
        yield f"{indent}- !{kind} {{{written}}}\n"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, set | frozenset):
        (value,) = value
    return str(value)

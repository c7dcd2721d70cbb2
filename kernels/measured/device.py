"""The machine a measurement runs on: what it is, how fast it is clocked, which software it has."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from einfuse.kernels.errors import KernelError, MissingPackageError

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its software; None for what the machine does not tell.

    ``units`` are the streaming multiprocessors of a GPU or the cores that this process may use.
    ``sm_clock_mhz`` is the clock when it was asked for, ``max_clock_mhz`` the highest it may have.
    """

    kind: DeviceKind
    name: str
    units: int
    memory_bytes: int | None = None
    l2_bytes: int | None = None
    sm_clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    capability: str = ""
    driver: str = ""
    torch: str = ""
    triton: str = ""
    threads: int | None = None


def find_device(kind: str) -> Device:
    """Return this machine's device of a kind, ``cpu`` or ``cuda``; KernelError if it has none.

    >>> find_device("cpu").kind
    'cpu'
    """
    if kind not in get_args(DeviceKind):
        raise KernelError(f"device: expected cpu or cuda, found '{kind}'")
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingPackageError("measuring needs torch: pip install 'einfuse[gpu]'") from None
    if kind == "cpu":
        return _cpu(torch.__version__, torch.get_num_threads())
    if not torch.cuda.is_available():
        built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise KernelError(
            f"device cuda: PyTorch sees no GPU on this machine (torch {torch.__version__}, built "
            f"{built}); use --device cpu"
        )
    return _cuda()


def read_sm_clock_mhz(device: Device) -> int | None:
    """Return the clock of a device now, None if the machine does not tell."""
    return _number(_nvidia_smi("clocks.sm")) if device.kind == "cuda" else _cpu_clock_mhz()


def _cpu(torch_version: str, threads: int) -> Device:
    return Device(
        kind="cpu",
        name=_cpu_name(),
        units=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        sm_clock_mhz=_cpu_clock_mhz(),
        torch=torch_version,
        triton=_version("triton"),
        threads=threads,
    )


def _cuda() -> Device:
    import torch

    properties = torch.cuda.get_device_properties()
    return Device(
        kind="cuda",
        name=properties.name,
        units=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=properties.L2_cache_size,
        sm_clock_mhz=_number(_nvidia_smi("clocks.sm")),
        max_clock_mhz=_number(_nvidia_smi("clocks.max.sm")),
        capability=f"sm_{properties.major}{properties.minor}",
        driver=_nvidia_smi("driver_version"),
        torch=torch.__version__,
        triton=_version("triton"),
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _cpu_clock_mhz() -> int | None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo.read_text(), re.MULTILINE)
    return round(float(found[1])) if found else None


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _nvidia_smi(field: str) -> str:
    """Return one field of the current GPU, empty if the tool cannot tell."""
    import torch

    # By its UUID: the tool's numbers are not those of CUDA_VISIBLE_DEVICES.
    device = f"GPU-{torch.cuda.get_device_properties().uuid}"
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "-i", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

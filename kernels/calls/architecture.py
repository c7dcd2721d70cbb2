"""Which machine a tensor's kernels would run on."""

from __future__ import annotations

import functools
import os

import torch


def is_interpreting() -> bool:
    """Whether this process runs Triton functions in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "yes", "on", "y"}


def find_architecture(device: torch.device) -> str:
    """Return ``sm_90`` and the like for a CUDA device, else ``interpreter`` or ``cpu``.

    >>> find_architecture(torch.device("cpu")) in {"cpu", "interpreter"}
    True
    """
    if device.type == "cuda":
        return _capability(device.index)
    if device.type == "cpu" and is_interpreting():
        return "interpreter"
    return device.type


@functools.cache
def _capability(index: int | None) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"

"""The backends by name; PyTorch is loaded where it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from einfuse.einsum.language.errors import EinfuseError

from .backend import Backend
from .numpy_backend import NumpyBackend

NAMES = ("numpy", "torch")
"""The backends there are."""


def backend_of(name: str, inputs: Mapping[str, object]) -> Backend:
    """Return a backend by its name, for the device of the inputs.

    Raises:
        EinfuseError: the name is unknown, torch is not installed, or the inputs stand on
            several devices.
    """
    if name == "numpy":
        return NumpyBackend()
    if name == "torch":
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError:
            raise EinfuseError(
                "backend torch: PyTorch is not installed; pip install 'einfuse[gpu]' or torch"
            ) from None
        from .torch_backend import TorchBackend

        return TorchBackend(torch, inputs)
    raise EinfuseError(f"unknown backend '{name}'; there is {', '.join(NAMES)}")

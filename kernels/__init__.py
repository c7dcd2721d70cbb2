"""The same algorithms on a real GPU; names are loaded on first use so that torch stays optional."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decode import decode_attention as decode_attention
    from .dispatch import attention as attention
    from .dispatch import attention_with_lse as attention_with_lse
    from .errors import KernelError as KernelError
    from .linear import linear_attention as linear_attention
    from .registry import Kernel as Kernel
    from .registry import find_kernel as find_kernel
    from .registry import kernels as kernels
    from .shared_prefix import shared_prefix_attention as shared_prefix_attention

_MODULES = {
    "attention": "dispatch",
    "attention_with_lse": "dispatch",
    "decode_attention": "decode",
    "find_kernel": "registry",
    "Kernel": "registry",
    "KernelError": "errors",
    "kernels": "registry",
    "linear_attention": "linear",
    "shared_prefix_attention": "shared_prefix",
}

__all__ = [
    "Kernel",
    "KernelError",
    "attention",
    "attention_with_lse",
    "decode_attention",
    "find_kernel",
    "kernels",
    "linear_attention",
    "shared_prefix_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "triton"}:
            raise
        missing = importlib.import_module(".errors", __name__).MissingPackageError
        raise missing(
            f"einfuse.kernels.{name} needs {error.name}: pip install 'einfuse[gpu]'"
        ) from None
    return getattr(module, name)

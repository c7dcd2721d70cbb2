"""A kernel by its name if it takes a call, else the plain formula, which says so once."""

from __future__ import annotations

import functools
import warnings

from einfuse.kernels.errors import KernelError

from .registry import Kernel, Traits, find_kernel


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
        _warn_once(f"kernel '{name}' {refusal}: using the plain formula")
    return None


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)

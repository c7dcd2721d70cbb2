"""What is wrong with a call of a kernel, in words the caller can act on."""

from __future__ import annotations

from einfuse.einsum import EinfuseError


class KernelError(EinfuseError):
    """An argument a kernel cannot take: its name, what was given, what is accepted."""


class MissingPackageError(KernelError, ImportError):
    """torch or triton is not installed."""

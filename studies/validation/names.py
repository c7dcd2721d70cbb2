"""Which kernel version, GPU and data type a published table means: aliases kept as data."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class KernelVersion:
    """A kernel as published: its version's name, and the design that stands for it.

    ``decode`` is the design for a few queries; ``stand_in`` says whose schedule it is where the
    design is another kernel's; ``skip`` says why there is none.
    """

    version: str
    pattern: str
    design: str = ""
    decode: str = ""
    stand_in: str = ""
    latent: bool = False
    linear: bool = False
    skip: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as published: its architecture, what was assumed of it, or why it is not modelled."""

    architecture: str | None
    pattern: str
    assumed: str = ""
    skip: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """All aliases, in the order in which they are tried."""

    kernels: tuple[KernelVersion, ...]
    gpus: tuple[Gpu, ...]
    dtypes: tuple[tuple[str, int | None], ...]
    relatives: Mapping[str, Sequence[str]]
    nearest: Mapping[str, Sequence[str]]
    decode_queries: int


@functools.cache
def load_names() -> Names:
    """Return the shipped aliases."""
    path = resources.files("einfuse.studies.data") / "published-names.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Names(
        kernels=tuple(KernelVersion(**entry) for entry in content["kernels"]),
        gpus=tuple(Gpu(**entry) for entry in content["gpus"]),
        dtypes=tuple((entry["pattern"], entry["word_bytes"]) for entry in content["dtypes"]),
        relatives=content["relatives"],
        nearest=content["nearest"],
        decode_queries=content["decode_queries"],
    )


def find_kernel(algorithm: str) -> KernelVersion | str:
    """Return the kernel version that a published name means, or why none is known.

    >>> [find_kernel(name).version for name in ("FA2", "FlashAttention-2 (2.7)", "triton fa2")]
    ['flash-attention-2', 'flash-attention-2', 'triton']
    >>> find_kernel("cuDNN 9.19").version, find_kernel("SDPA cuDNN backend").version
    ('cudnn-9', 'cudnn')
    >>> find_kernel("MyAttention")
    "kernel 'MyAttention' is not modelled"
    """
    words = normalised(algorithm)
    if not words:
        return "the kernel is not named"
    for kernel in load_names().kernels:
        if re.search(kernel.pattern, words):
            return f"kernel '{algorithm}': {kernel.skip}" if kernel.skip else kernel
    return f"kernel '{algorithm}' is not modelled"


def find_gpu(name: str) -> Gpu | str:
    """Return the GPU that a published name means, or why none is known.

    >>> find_gpu("NVIDIA H100 PCIe").architecture, find_gpu("H100").assumed
    ('h100-pcie', 'SXM5')
    >>> find_gpu("RTX 5000")
    "GPU 'RTX 5000' is not modelled"
    """
    words = normalised(name)
    if not words or words in ("unspecified", "unknown", "not named", "unnamed", "nan", "gpu"):
        return "the GPU is not named"
    for gpu in load_names().gpus:
        if re.search(gpu.pattern, words):
            return f"GPU '{name}': {gpu.skip}" if gpu.skip else gpu
    return f"GPU '{name}' is not modelled"


def find_word_bytes(dtype: str) -> int | str:
    """Return the bytes of a data type's word, or why it is not modelled.

    >>> find_word_bytes("fp16/bf16"), find_word_bytes("fp8 (e4m3)")
    (2, "data type 'fp8 (e4m3)' is not modelled")
    """
    words = normalised(dtype)
    if not words:
        return "the data type is not given"
    for pattern, word_bytes in load_names().dtypes:
        if re.search(pattern, words):
            return word_bytes or f"data type '{dtype}' is not modelled"
    return f"data type '{dtype}' is not modelled"


def normalised(name: str) -> str:
    """Return a name in lower case, all but letters, digits and dots as single blanks.

    >>> normalised("FlashAttention-2 (2.7)")
    'flashattention 2 2.7'
    """
    return " ".join(re.findall(r"[a-z0-9.]+", name.casefold()))

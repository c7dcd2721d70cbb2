"""What Einfuse and AccelForge are compared on: cases, and fixed mappings of them.

A case is a workload of AccelForge's wheel at a size, as its YAML and as a cascade of the library,
on one of the architectures of its wheel. Mappings are AccelForge's files; those of `DATA` were
found by its mapper or drawn, see `einfuse.studies.accelforge.peer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from einfuse.mapper import Constraints, load_constraints

DATA = Path(__file__).parents[1] / "data" / "accelforge"

_RENAMES = """
renames:
  einsums:
  - name: default
    tensor_accesses:
    - {name: input, source: Inputs & Intermediates if len(All) == 3 else Inputs, expected_count: 1}
    - {name: output, source: Outputs, expected_count: 1}
    - {name: weight, source: ~(input | output), expected_count: 1 if len(All) == 3 else 0}
"""

_MATMULS = """workload:
  rank_sizes: {{M: {M}, N0: {N0}, N1: {N1}, N2: {N2}}}
  bits_per_value: {{All: {bits}}}
  einsums:
  - {{einsum: "T1[m, n1] = T0[m, n0] * W0[n0, n1]", renames: {{input: T0}}}}
  - {{einsum: "T2[m, n2] = T1[m, n1] * W1[n1, n2]", renames: {{input: T1}}}}
"""

_ATTENTION = """workload:
  rank_sizes: {{B: {B}, H: {H}, M: {M}, P: {P}, E: {E}, F: {F}}}
  bits_per_value: {{All: {bits}}}
  einsums:
  - {{einsum: "QK[b, m, p, h] = Q[b, m, h, e] * K[b, p, h, e]", renames: {{input: Q}}}}
  - "QK_softmax[b, m, p, h] = QK[b, m, p, h]"
  - {{einsum: "AV[b, m, h, f] = QK_softmax[b, m, p, h] * V[b, p, h, f]",
     renames: {{input: QK_softmax}}}}
"""

_LAYER = """workload:
  rank_sizes: {{B: {B}, H: {H}, M: {M}, P: {M}, E: {E}, F: {E}, D: {D}, C: {C}, J: {J}, G: {G}}}
  bits_per_value: {{All: {bits}}}
  persistent_tensors: weight - Intermediates
  einsums:
  - {{einsum: "I[b, m, d] = I_in[b, m, d]", is_copy_operation: True}}
  - "V[b, m, h, e] = I[b, m, d] * WV[h, e, d]"
  - "K[b, m, h, e] = I[b, m, d] * WK[h, e, d]"
  - "Q[b, m, h, e] = I[b, m, d] * WQ[h, e, d]"
  - {{einsum: "QK[b, m, p, h] = Q[b, m, h, e] * K[b, M: p, h, e]", renames: {{input: Q}}}}
  - "QK_softmax[b, m, p, h] = QK[b, m, p, h]"
  - {{einsum: "AV[b, m, h, f] = QK_softmax[b, m, p, h] * V[b, M: p, h, E: f]",
     renames: {{input: QK_softmax}}}}
  - "Z[b, m, g] = AV[b, m, h, f] * WZ[h, f, g]"
  - "FFA[b, m, c] = Z[b, m, g] * WFFA[g, c]"
  - "FFB[b, m, j] = FFA[b, m, c] * WFFB[c, j]"
"""

_TEMPLATES = {
    "peer/matmuls": _MATMULS,
    "peer/attention": _ATTENTION,
    "peer/gpt3-6.7b": _LAYER,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A cascade at a shape on an architecture, and how far AccelForge's mapper may fuse.

    ``fused_loops`` is the most loops that Einsums share; None: any number.
    """

    name: str
    cascade: str
    architecture: str
    shape: Mapping[str, int] = field(hash=False)
    bits: int = 16
    fused_loops: int | None = None

    @property
    def workload(self) -> str:
        """AccelForge's YAML of the workload."""
        sizes = {**self.shape, "bits": self.bits}
        return _TEMPLATES[self.cascade].format(**sizes) + _RENAMES

    @property
    def settings(self) -> dict[str, float]:
        """Einfuse's settings: the words that AccelForge writes beside the workload."""
        return {"word_bytes": self.bits / 8}

    @property
    def constraints(self) -> Constraints:
        """How AccelForge counts, what lives where on its architecture, and how far it may fuse.

        >>> find_case("attention-nvdla").constraints.fused_loops
        1
        """
        known = load_constraints(f"accelforge-{self.architecture}")
        return known.model_copy(update={"fused_loops": self.fused_loops})


_SMALL = MappingProxyType({"M": 64, "N0": 32, "N1": 32, "N2": 32})
_SQUARE = MappingProxyType({"M": 128, "N0": 128, "N1": 128, "N2": 128})
_HEADS = MappingProxyType({"B": 1, "H": 16, "M": 4096, "P": 4096, "E": 64, "F": 64})
_GPT3 = MappingProxyType(
    {"B": 1, "H": 32, "M": 2048, "E": 128, "D": 4096, "C": 16384, "J": 4096, "G": 4096}
)

CASES = tuple(
    Case(f"{what}-{architecture}", cascade, architecture, shape, bits, fused_loops)
    for architecture, what, cascade, shape, bits, fused_loops in (
        ("simple", "matmuls", "peer/matmuls", _SMALL, 8, None),
        ("nvdla", "matmuls", "peer/matmuls", _SQUARE, 8, None),
        ("tpu_v4i", "matmuls", "peer/matmuls", _SQUARE, 8, None),
        ("nvdla", "attention", "peer/attention", _HEADS, 16, 1),
        ("tpu_v4i", "attention", "peer/attention", _HEADS, 16, 1),
        ("nvdla", "gpt3", "peer/gpt3-6.7b", _GPT3, 16, 1),
        ("tpu_v4i", "gpt3", "peer/gpt3-6.7b", _GPT3, 16, 1),
    )
)
"""The cases; attention and the layer are those of published figures of its mapper, at 16 bits."""


def find_case(name: str) -> Case:
    """Return a case by its name.

    >>> find_case("attention-nvdla").shape["H"]
    16
    """
    return next(case for case in CASES if case.name == name)

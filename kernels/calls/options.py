"""What attention computes besides the product of its three tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Similarity = Literal["softmax", "sigmoid"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one attention call, as plain values.

    Queries are aligned to the end of the keys, as in a decoding step: query ``p`` of ``P`` stands
    at position ``p + M - P`` among ``M`` keys. ``causal`` hides later keys; ``window`` (of ``w``
    keys) hides keys ``w`` or more positions away; the first ``sinks`` keys escape the window.
    ``bias`` is added to a score before the sigmoid; ``softcap`` (0 = none) bounds scores to
    ``softcap * tanh(score / softcap)``.

    >>> sorted(Options(causal=True, window=128, scale=0.125).features)
    ['causal', 'window']
    """

    scale: float
    causal: bool = False
    window: int | None = None
    sinks: int = 0
    similarity: Similarity = "softmax"
    bias: float = 0.0
    softcap: float = 0.0

    @property
    def features(self) -> frozenset[str]:
        """The options that a kernel must know of to take this call."""
        asked = {
            "causal": self.causal,
            "window": self.window is not None,
            "sinks": self.sinks > 0,
            "sigmoid": self.similarity == "sigmoid",
            "bias": self.bias != 0.0,
            "softcap": self.softcap != 0.0,
        }
        return frozenset(name for name, wanted in asked.items() if wanted)

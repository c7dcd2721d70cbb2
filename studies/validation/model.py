"""The model behind the predictions: a design on a GPU evaluated on many calls at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import EinfuseError
from einfuse.mapper import KernelDesign, load_design
from einfuse.simulator import evaluate

from .fit import Range
from .work import Call, Direction

Seconds = NDArray[np.float64]
Settings = Mapping[str, float | Seconds]

_SUFFIX: dict[Direction, str] = {"fwd": "", "bwd": "-backward", "fwd+bwd": "-training"}

_LAUNCH = "processors.launch_seconds"


class Model(Protocol):
    """What predicts: a design, an architecture, and a direction that all calls share.

    Constants are one value for all calls or one a call.
    """

    def seconds(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return seconds per call; NaN where the design does not take a call."""

    def ranges(self) -> Mapping[str, Range]:
        """Return the constants that may be fitted."""

    def launch_seconds(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return the part of `seconds` that launching takes."""

    def refusal(self, call: Call, constants: Settings) -> str:
        """Return why the design does not take a call."""


class DesignModel:
    """A shipped design on a shipped architecture; EinfuseError if there is none."""

    def __init__(self, name: str, architecture: str, direction: Direction) -> None:
        try:
            self.design = _load(f"{name}{_SUFFIX[direction]}", architecture)
        except EinfuseError as error:
            if not str(error).startswith("no design"):
                raise
            raise EinfuseError(f"{name} has no design for {direction}") from None

    def seconds(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return seconds per call; NaN where the design does not take a call."""
        found = np.full(len(calls), np.nan)
        taken = np.array([not self._lacks(call) for call in calls], bool)
        if taken.any():
            own = [call for call, takes in zip(calls, taken, strict=True) if takes]
            found[taken] = self._evaluated(own, {n: _of(v, taken) for n, v in constants.items()})
        return np.where(np.isfinite(found), found, np.nan)

    def launch_seconds(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return the part of `seconds` that launching takes."""
        whole = self.seconds(calls, constants)
        return whole - self.seconds(calls, {**constants, _LAUNCH: 0.0})

    def ranges(self) -> Mapping[str, Range]:
        """Return the constants that may be fitted."""
        return {
            name: Range(one.default, one.low, one.high)
            for name, one in self.design.calibration.items()
        }

    def refusal(self, call: Call, constants: Settings) -> str:
        """Return why the design does not take a call."""
        lacks = self._lacks(call)
        if lacks:
            return lacks
        try:
            self._evaluate([call], constants)
        except EinfuseError as error:
            return str(error)
        return f"{self.design.name} does not take this call"

    def _lacks(self, call: Call) -> str:
        """Return what a call asks for that the design does not know; nothing if it knows all."""
        schedule = self.design.schedule
        asked = {
            "causal masks": ("causal" in schedule.options, call.causal and call.seqlen_q > 1),
            "windows": ("window" in schedule.options, 0 < call.window < call.seqlen_k),
            "shared keys": ("HK" in schedule.ranks, call.heads_kv != call.heads_q),
        }
        lacks = [what for what, (known, needed) in asked.items() if needed and not known]
        return f"{self.design.name} knows no {' and no '.join(lacks)}" if lacks else ""

    def _evaluated(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return seconds per call; where all at once are refused, one by one."""
        try:
            return self._evaluate(calls, constants)
        except EinfuseError:
            if len(calls) == 1:
                return np.full(1, np.nan)
        places = np.eye(len(calls), dtype=bool)
        return np.concatenate(
            [
                self._evaluated([call], {n: _of(v, place) for n, v in constants.items()})
                for call, place in zip(calls, places, strict=True)
            ]
        )

    def _evaluate(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        """Return seconds per call; a single call that is refused is an error."""
        shapes = [_shape(call) for call in calls]
        asked = [{"causal": int(call.causal), "window": call.window} for call in calls]
        schedule, single = self.design.schedule, len(calls) == 1
        shape = {
            rank: shapes[0][rank] if single else np.array([one[rank] for one in shapes])
            for rank in shapes[0]
            if rank in schedule.ranks
        }
        settings: dict[str, Any] = {
            name: asked[0][name] if single else np.array([one[name] for one in asked])
            for name in asked[0]
            if name in schedule.options
        }
        settings |= {
            name if "." in name else f"calibration.{name}": value.item() if single else value
            for name, value in ((name, np.asarray(value)) for name, value in constants.items())
        }
        found = evaluate(self.design, shape, set=settings).seconds
        return np.broadcast_to(np.asarray(found, float), (len(calls),))


def _shape(call: Call) -> dict[str, int]:
    return {
        "B": call.batch,
        "H": call.heads_q,
        "HK": call.heads_kv,
        "P": call.seqlen_q,
        "M": call.seqlen_k,
        "N": call.seqlen_k,  # tokens, where queries and keys are one sequence
        "E": call.head_dim_qk,
        "F": call.head_dim_v,
    }


def _of(value: float | Seconds, places: NDArray[np.bool_]) -> float | Seconds:
    """Return the values of some calls; one for all stays one for all."""
    return value[places] if isinstance(value, np.ndarray) and value.ndim else value


@functools.cache
def _load(name: str, architecture: str) -> KernelDesign:
    design = load_design(name, architecture=architecture)
    if not isinstance(design, KernelDesign):
        raise EinfuseError(f"{name}: expected the design of a kernel on a GPU, found another")
    return design

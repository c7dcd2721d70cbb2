"""The model behind the predictions: a design on a GPU evaluated on many calls at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum.errors import EinfuseError
from einfuse.mapper.design import KernelDesign, load_design
from einfuse.simulator.model import evaluate

from .validation_fit import Range
from .validation_work import Call, Direction

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
        try:
            found = self._evaluate(calls, constants)
        except EinfuseError:
            if len(calls) == 1:
                return np.full(1, np.nan)
            rows = [
                self.seconds([call], {n: _at(value, k) for n, value in constants.items()})
                for k, call in enumerate(calls)
            ]
            return np.concatenate(rows)
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
        try:
            self._evaluate_one(call, constants)
        except EinfuseError as error:
            return str(error)
        return f"{self.design.name} does not take this call"

    def _evaluate(self, calls: Sequence[Call], constants: Settings) -> Seconds:
        shape = {
            rank: np.array([_shape(call)[rank] for call in calls]) for rank in _shape(calls[0])
        }
        settings: dict[str, Any] = {
            "causal": np.array([int(call.causal) for call in calls]),
            "window": np.array([call.window for call in calls]),
            **{_path(name): value for name, value in constants.items()},
        }
        found = evaluate(self.design, shape, set=settings).seconds
        return np.broadcast_to(np.asarray(found, float), (len(calls),))

    def _evaluate_one(self, call: Call, constants: Settings) -> None:
        settings: dict[str, Any] = {"causal": int(call.causal), "window": call.window}
        settings |= {_path(name): float(_at(value, 0)) for name, value in constants.items()}
        evaluate(self.design, _shape(call), set=settings)


def _path(name: str) -> str:
    return name if "." in name else f"calibration.{name}"


def _shape(call: Call) -> dict[str, int]:
    return {
        "B": call.batch,
        "H": call.heads_q,
        "HK": call.heads_kv,
        "P": call.seqlen_q,
        "M": call.seqlen_k,
        "E": call.head_dim_qk,
        "F": call.head_dim_v,
    }


def _at(value: float | Seconds, place: int) -> float:
    array = np.atleast_1d(np.asarray(value, float))
    return float(array[min(place, len(array) - 1)])


@functools.cache
def _load(name: str, architecture: str) -> KernelDesign:
    design = load_design(name, architecture=architecture)
    if not isinstance(design, KernelDesign):
        raise EinfuseError(f"{name}: expected the design of a kernel on a GPU, found another")
    return design

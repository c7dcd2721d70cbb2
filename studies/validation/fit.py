"""Fitting a few constants: robust least squares on the logarithm of time, held by priors.

A constant is looked for within its range; what is fitted is the logit of its place there, and
the default is the mean of a prior on it, so that constants that the rows do not tell stay where
physics puts them. Residuals beyond two standard deviations count linearly (Huber), so that one
odd row does not carry the fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import EinfuseError

Array = NDArray[np.float64]

MOST_CONSTANTS = 3
_NOISE = 0.04  # standard deviation of the logarithm of a published time
_PRIOR = 0.7  # standard deviation of a constant's logit
_LINEAR_FROM = 2.0  # standard deviations
_ROUNDS = 25
_STEP = 1e-4
_STARTS = (-2.0, 0.0, 2.0)  # standard deviations of the prior around the default
_EDGE = 0.02  # values at an end of their range are moved inside by this part of it


@dataclass(frozen=True, slots=True)
class Range:
    """A constant's default and the range it may take."""

    default: float
    low: float
    high: float


def fit_constants(
    seconds: Callable[[Mapping[str, Array]], Array],
    measured_s: Array,
    ranges: Mapping[str, Range],
    start: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the constants that explain measured times best, given their priors.

    Args:
        seconds: predicts the rows for arrays of the constants' values: ``n`` candidates in,
            ``[candidates, rows]`` seconds out.
        measured_s: seconds as measured, per row.
        ranges: the constants, at most three.
        start: where to begin, such as the constants of most of the rows; tried out by default.

    Raises:
        EinfuseError: no rows, too many constants, or no prediction at any start.

    >>> times = np.array([1.0, 2.0, 4.0])
    >>> reached = {"efficiency": Range(0.8, 0, 1)}
    >>> found = fit_constants(lambda c: times / c["efficiency"][:, None], times / 0.7, reached)
    >>> round(found["efficiency"], 2)
    0.7
    """
    if len(ranges) > MOST_CONSTANTS:
        raise EinfuseError(
            f"at most {MOST_CONSTANTS} constants may be fitted, found {', '.join(ranges)}"
        )
    if not len(measured_s):
        raise EinfuseError("constants cannot be fitted on no rows")
    middle = np.array([_logit(one, one.default) for one in ranges.values()])
    wanted = np.log(measured_s)

    def residuals(places: Array) -> Array:
        """The residuals [candidates, rows + constants] of logits [candidates, constants]."""
        values = {
            name: one.low + (one.high - one.low) / (1 + np.exp(-places[:, k]))
            for k, (name, one) in enumerate(ranges.items())
        }
        misses = (np.log(seconds(values)) - wanted) / _NOISE
        misses = np.sign(misses) * np.sqrt(_huber(misses))
        return np.concatenate([misses, (places - middle) / _PRIOR], axis=1)

    if not ranges:
        return {}
    if start is None:
        starts = middle + _PRIOR * np.array(list(itertools.product(_STARTS, repeat=len(ranges))))
    else:
        starts = np.array([[_logit(one, start[name]) for name, one in ranges.items()]])
    found = residuals(starts)
    costs = (found**2).sum(axis=1)
    if not np.isfinite(costs).any():
        raise EinfuseError("the model predicts none of the rows to fit on")
    place = _descend(residuals, starts[np.nanargmin(costs)])
    return {
        name: float(one.low + (one.high - one.low) / (1 + np.exp(-place[k])))
        for k, (name, one) in enumerate(ranges.items())
    }


def _descend(residuals: Callable[[Array], Array], start: Array) -> Array:
    """Return the place of least squares from a start, by Levenberg and Marquardt's method."""
    place: Array = start
    damping = 1e-2
    for _ in range(_ROUNDS):
        steps = np.vstack([place, place + _STEP * np.eye(len(place))])
        found = residuals(steps)
        here, slopes = found[0], ((found[1:] - found[0]) / _STEP).T  # [rows, constants]
        square = slopes.T @ slopes
        dampings = damping * np.array([0.1, 1.0, 10.0, 100.0, 1000.0])
        moves = np.array(
            [np.linalg.solve(square + d * np.diag(np.diag(square)), -slopes.T @ here)
             for d in dampings]
        )  # fmt: skip
        costs = np.nan_to_num((residuals(place + moves) ** 2).sum(axis=1), nan=np.inf)
        best = int(np.argmin(costs))
        gain = (here**2).sum() - costs[best]
        if not gain > 0:
            return place
        place, damping = np.asarray(place + moves[best]), dampings[best]
        if gain < 1e-4 * (1 + costs[best]):
            return place
    return place


def _huber(residual: Array) -> Array:
    size: Array = np.abs(residual)
    near: Array = np.minimum(size, _LINEAR_FROM)
    return near**2 + 2 * _LINEAR_FROM * (size - near)


def _logit(one: Range, value: float) -> float:
    if not one.low < one.high:
        raise EinfuseError(f"a constant's range must have a width, found {one.low} to {one.high}")
    share = min(max((value - one.low) / (one.high - one.low), _EDGE), 1 - _EDGE)
    return float(np.log(share / (1 - share)))

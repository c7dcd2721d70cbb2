"""Predictions of cases under given constants, fits on cases, and fits that leave some out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import EinfuseError

from .cases import Case
from .constants import Constants, Found, Owner, find_constants
from .fit import fit_constants
from .model import DesignModel, Model
from .work import Direction

Models = Callable[[str, str, Direction], Model]
Table = Mapping[Owner, Constants]
LEAST_ROWS = 3  # to fit on


@dataclass(frozen=True, slots=True)
class Prediction:
    """Milliseconds of a case (NaN, with the reason, where the design refuses it).

    ``launch_ms`` of them are spent on launching.
    """

    case: Case
    ms: float
    launch_ms: float
    constants: Found
    fitted: bool
    refusal: str = ""


def predict(
    cases: Sequence[Case], table: Table, models: Models = DesignModel
) -> tuple[Prediction, ...]:
    """Return the predictions of cases, each under the constants that `find_constants` gives it."""
    groups: dict[tuple[str, Owner], list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault((case.design, case.owner), []).append(place)
    found: dict[int, Prediction] = {}
    for (design, owner), places in groups.items():
        constants = find_constants(table, owner)
        try:
            model = models(design, owner.gpu, owner.direction)
        except EinfuseError as error:
            for place in places:
                found[place] = Prediction(
                    cases[place], math.nan, math.nan, constants, False, str(error)
                )
            continue
        settings = {n: v for n, v in constants.values.items() if n in model.ranges()}
        keys = table[owner].fitted_on if owner in table else frozenset()
        calls = [cases[place].call for place in places]
        seconds = model.seconds(calls, settings)
        launches = model.launch_seconds(calls, settings)
        for place, one, launch in zip(places, seconds, launches, strict=True):
            case = cases[place]
            refused = "" if math.isfinite(one) else model.refusal(case.call, settings)
            fitted = case.row.key in keys
            found[place] = Prediction(
                case, 1e3 * float(one), 1e3 * float(launch), constants, fitted, refused
            )
    return tuple(found[place] for place in range(len(cases)))


def fit(
    cases: Iterable[Case], models: Models = DesignModel, start: Table | None = None
) -> dict[Owner, Constants]:
    """Return constants of every kernel version, GPU and direction that has rows enough.

    Kernels without a design of their own, or in this direction, get none. A fit begins at those
    of ``start``, if there.
    """
    groups: dict[Owner, list[Case]] = {}
    for case in cases:
        if not case.stand_in:
            groups.setdefault(case.owner, []).append(case)
    found = {}
    for owner, own in groups.items():
        try:
            model = models(own[0].design, owner.gpu, owner.direction)
        except EinfuseError:
            continue
        constants = fit_owner(owner, own, model, (start or {}).get(owner))
        if constants is not None:
            found[owner] = constants
    return found


def fit_owner(
    owner: Owner, cases: Sequence[Case], model: Model, start: Constants | None = None
) -> Constants | None:
    """Return the constants of one owner from its cases; None if these are too few."""
    taken = model.seconds([case.call for case in cases], {})
    cases = [case for case, one in zip(cases, taken, strict=True) if math.isfinite(one)]
    ranges = model.ranges()
    if len({case.row.key for case in cases}) < LEAST_ROWS or not ranges:
        return None
    calls = [case.call for case in cases]
    measured_s = np.array([case.measured_ms for case in cases]) / 1e3

    def seconds(values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Evaluate all rows under all candidates at once."""
        candidates = len(next(iter(values.values())))
        settings = {name: np.repeat(value, len(calls)) for name, value in values.items()}
        return model.seconds(calls * candidates, settings).reshape(candidates, len(calls))

    values = fit_constants(seconds, measured_s, ranges, start.values if start else None)
    predicted = model.seconds(calls, values)
    error = float(np.mean(np.abs(predicted / measured_s - 1)))
    return Constants(owner, values, frozenset(case.row.key for case in cases), error)

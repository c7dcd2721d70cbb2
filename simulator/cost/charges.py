"""Every charge there is: what is paid, how often, at which price, and what switches it on.

`CHARGES` are the energies and `CHANNELS` the times of a memory. `evaluate`, `simulate` and the
objectives of a search read them through a `Tariff`; the sources and the options to include follow
from them. So a cost is added by one row. The closed forms of the options:

- ``leakage``: energy = power x time of the run x instances: a memory once, a unit for each lane.
- ``interconnect``: a memory lies along one side of a unit, the columns of a 2D array or all lanes
  of a vector unit. A word that goes between it and the lanes makes the mean number of hops
  between neighbouring lanes, (rows + 1) / 2, or 1; what is handed on from register to register
  makes none.
- ``multicast``: a word that f lanes share, or sum up, passes along f of them at least. What it
  makes beyond the mean distance is charged here: max(f - (rows + 1) / 2, 0) further hops.
- ``mesh``: a network of routers in place of those wires: a memory lies at a corner, and a word goes
  along one dimension after the other. From the memory to the corner it is one hop, along n lanes
  (n - 1) / 2 in the mean.
- ``ports``: an access takes a port of its memory for one cycle of the port, so that a memory
  delivers ports x access_bytes x port_hz bytes in a second.

An option asks for its figures: a missing one is an error that names its path, never a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper import Architecture, ArchitectureError, MappingError, Traffic, Values, Work
from einfuse.simulator.result.accounting import ACCOUNTINGS, Accounting

PJ_PER_MW_SECOND = 1e9


@dataclass(frozen=True, slots=True)
class Operations:
    """What an Einsum does of one operation, on all its lanes."""

    work: Work
    operation: str

    @property
    def at(self) -> str:
        """Where the price stands."""
        return f"{self.work.unit}.operations.{self.operation}"


@dataclass(frozen=True, slots=True)
class Registers:
    """Words that an Einsum reads and writes in the registers of one lane."""

    work: Work
    traffic: Traffic

    @property
    def at(self) -> str:
        """Where the price stands."""
        return f"{self.work.unit}.registers"


@dataclass(frozen=True, slots=True)
class Access:
    """Words read and written at a memory."""

    at: str
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class Transport:
    """Words that go between a memory and the lanes of a unit, each to or from some of them."""

    at: str
    words: Values
    lanes: Values


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time of the run, for a memory or a unit."""

    at: str
    seconds: Values


Event = Operations | Registers | Access | Transport | Elapsed


@dataclass(frozen=True, slots=True)
class Charge:
    """An energy: for an event at ``AT``, ``count`` times the price ``AT.price``.

    Attributes:
        event: the kind of event it is paid for.
        price: the last word of the price's path.
        count: how often, from the tariff and the event.
        option: what has to be included for it; it is then a component ``AT.option`` of its own.
        what: the option in words.
    """

    event: type[Event]
    price: str
    count: Callable[[Tariff, Any], Values]
    option: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Channel:
    """A limit on the bytes that a memory moves in a second, those of ``reads`` and ``writes``.

    Attributes:
        name: the path of the limit at the memory.
        option: what has to be included for it.
        what: the option in words.
    """

    name: str
    reads: bool = True
    writes: bool = True
    option: str = ""
    what: str = ""


CHARGES = (
    Charge(Registers, "read_pj", lambda t, e: e.traffic.reads * t.files(e.work)),
    Charge(Registers, "write_pj", lambda t, e: e.traffic.writes * t.files(e.work)),
    Charge(Access, "read_pj", lambda t, e: e.traffic.reads * t.lines(e.at)),
    Charge(Access, "write_pj", lambda t, e: e.traffic.writes * t.lines(e.at)),
    Charge(Operations, "energy_pj", lambda t, e: e.work.operations[e.operation] * e.work.active),
    Charge(
        Elapsed,
        "leakage_mw",
        lambda t, e: t.parts(e.at) * e.seconds * PJ_PER_MW_SECOND,
        "leakage",
        "power x time x instances",
    ),
    Charge(
        Transport,
        "hop_pj",
        lambda t, e: e.words * t.mean_hops(e.at),
        "interconnect",
        "each word between a memory and the lanes, hops of its mean distance",
    ),
    Charge(
        Transport,
        "hop_pj",
        lambda t, e: e.words * np.maximum(e.lanes - t.mean_hops(e.at), 0),
        "multicast",
        "the further hops to all lanes that share a word, or that sum it up",
    ),
    Charge(
        Transport,
        "mesh_hop_pj",
        lambda t, e: e.words * t.mesh_hops(e.at),
        "mesh",
        "each word between a memory and the lanes, mean hops from a corner of a mesh",
    ),
)
CHANNELS = (
    Channel("bandwidth_bytes_per_s"),
    Channel("read_bandwidth_bytes_per_s", writes=False),
    Channel("write_bandwidth_bytes_per_s", reads=False),
    Channel(
        "ports",
        option="ports",
        what="memories deliver what their ports do in the time: ports x width x port cycles",
    ),
)
OPTIONS = {row.option: row.what for row in (*CHARGES, *CHANNELS) if row.option}


@dataclass(frozen=True, slots=True)
class Tariff:
    """The prices of an architecture under an accounting.

    Attributes:
        values: parameter -> its value, or None.
        omitted: the components that are left out.
    """

    architecture: Architecture
    values: Mapping[str, Values | None]
    accounting: Accounting
    omitted: tuple[str, ...] = ()

    def number(self, path: str) -> Values:
        """A parameter that must be known."""
        value = self.values[path]
        if value is None:
            raise ArchitectureError(f"{self.architecture.name}: {path} has no value")
        return value

    def charges(self, event: Event) -> Iterator[tuple[str, Values, str]]:
        """Yield what is charged for an event: a component, how often, the path of the price."""
        kind: Any = type(event)
        for row in _rows(kind, self.accounting.include):
            component = f"{event.at}.{row.option}" if row.option else event.at
            if component not in self.omitted:
                yield component, row.count(self, event), f"{event.at}.{row.price}"

    def energy(self, events: Iterable[Event]) -> Values:
        """The energy of events in pJ; infinite where a price is unknown and charged."""
        total: Values = 0.0
        for event in events:
            for _, count, path in self.charges(event):
                price = self.values[path]
                if price is None:
                    total = total + np.where(np.asarray(count) == 0, 0.0, np.inf)
                else:
                    total = total + count * price
        return total

    def elapsed(self, seconds: Values) -> Iterator[Elapsed]:
        """The time of the run at all that takes energy as it passes."""
        for name in (*self.architecture.memories, *self.architecture.units):
            yield Elapsed(name, seconds)

    def seconds(
        self, level: str, reads: Values, writes: Values
    ) -> Iterator[tuple[Channel, Values]]:
        """Yield the channels of a memory, and the time that bytes read and written take there."""
        for row, rate in self.channels(level):
            moved = reads + writes if row.reads and row.writes else reads if row.reads else writes
            yield row, moved / rate

    def channels(self, level: str) -> Iterator[tuple[Channel, Values]]:
        """Yield the channels of a memory that are limited, and their bytes in a second."""
        for row in CHANNELS:
            limit = self.values[f"{level}.{row.name}"]
            if limit is not None and row.option in ("", *self.accounting.include):
                if row.name == "ports":
                    cycles = self.values[f"{level}.port_hz"]
                    cycles = self.values["clock_hz"] if cycles is None else cycles
                    limit = limit * self.values[f"{level}.access_bytes"] * cycles
                yield row, limit

    def files(self, work: Work) -> Values:
        """The register files that are charged for what one lane reads and writes."""
        return work.active if self.accounting.all_register_files else 1

    def lines(self, level: str) -> Values:
        """The accesses that a word takes at a memory."""
        return self.number("word_bytes") / self.number(f"{level}.access_bytes")

    def parts(self, name: str) -> Values:
        """The parts that a figure of a memory or a unit is for: one memory, or all lanes."""
        lanes: Values = 1
        for dimension in self.architecture.dimensions(name) if name in self.units else ():
            lanes = lanes * self.number(f"{name}.{dimension}")
        return lanes

    def mean_hops(self, unit: str) -> Values:
        """The mean number of hops between the side of a unit and its lanes."""
        rows = "rows" in self.architecture.dimensions(unit)
        return (self.number(f"{unit}.rows") + 1) / 2 if rows else 1

    def mesh_hops(self, unit: str) -> Values:
        """The mean number of hops between a corner of a unit's lanes and a lane."""
        hops: Values = 1
        for dimension in self.architecture.dimensions(unit):
            if dimension != "instances":  # each has memories of its own
                hops = hops + (self.number(f"{unit}.{dimension}") - 1) / 2
        return hops

    @property
    def units(self) -> tuple[str, ...]:
        """The units."""
        return self.architecture.units

    def check(self, events: Iterable[Event]) -> None:
        """Refuse options that the architecture has no figures for, naming every missing path.

        Args:
            events: what may be charged, so often or not.

        Raises:
            ArchitectureError: the options, and the paths to set.
        """
        if not self.accounting.include:
            return
        found = (*events, *self.elapsed(0.0))
        missing: dict[str, list[str]] = {}
        for option in self.accounting.include:
            for path in dict.fromkeys(self._needed(option, found)):
                if self.values[path] is None:
                    missing.setdefault(path, []).append(option)
        if missing:
            options = dict.fromkeys(option for names in missing.values() for option in names)
            paths = ", ".join(missing)
            raise ArchitectureError(
                f"no figures to include {', '.join(options)}: set {paths} (--set "
                f"{next(iter(missing))}=..., or in the file of the architecture "
                f"{self.architecture.name})"
            )

    def _needed(self, option: str, events: Iterable[Event]) -> Iterator[str]:
        charges = [row for row in CHARGES if row.option == option]
        channels = [row for row in CHANNELS if row.option == option]
        for event in events:
            paid = (row for row in charges if isinstance(event, row.event))
            yield from (f"{event.at}.{row.price}" for row in paid)
            # of memories on chip that nothing else limits
            inner = isinstance(event, Access) and event.at != self.architecture.memories[0]
            if channels and inner and not any(self.channels(event.at)):
                yield from (f"{event.at}.{row.name}" for row in channels)


@cache
def _rows(event: type, include: tuple[str, ...]) -> tuple[Charge, ...]:
    return tuple(row for row in CHARGES if row.event is event and row.option in ("", *include))


def find_accounting(name: str, include: Iterable[str] = ()) -> Accounting:
    """Return an accounting by its name, with options; MappingError lists the known ones.

    >>> find_accounting("physical").waits
    True
    >>> find_accounting("physical", ["ports", "leakage"]).include
    ('leakage', 'ports')
    """
    if name not in ACCOUNTINGS:
        raise MappingError(f"no accounting '{name}'{closest(name, ACCOUNTINGS)}")
    wanted = [include] if isinstance(include, str) else list(include)
    for option in wanted:
        if not isinstance(option, str) or option not in OPTIONS:
            near = closest(str(option), OPTIONS)
            raise MappingError(
                f"no option '{option}' to include{near}; there are {', '.join(OPTIONS)}"
            )
    if wanted and name != "physical":
        raise MappingError(
            f"include {', '.join(wanted)}: options of the accounting physical, found {name}"
        )
    chosen = tuple(option for option in OPTIONS if option in wanted)
    return replace(ACCOUNTINGS[name], include=chosen)

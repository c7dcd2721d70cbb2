"""What a result charges: an explicit, named choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from einfuse.einsum import closest
from einfuse.mapper import MappingError


@dataclass(frozen=True, slots=True)
class Accounting:
    """How energy, area and waits are charged.

    Attributes:
        name: the name.
        all_register_files: charge the register files of every active lane, not of one.
        omissions: leave out what the design says that its published run left out.
        waits: pay the wait of a dependency that the design's pipeline breaks, not just warn.
        include: options that are charged too, of `OPTIONS`.
    """

    name: str
    all_register_files: bool
    omissions: bool
    waits: bool
    include: tuple[str, ...] = ()


OPTIONS = {
    "leakage": "power x time x instances",
    "interconnect": "each word between a memory and the lanes, hops of its mean distance",
    "multicast": "the further hops to all lanes that share a word, or that sum it up",
    "ports": "memories deliver what their ports do in the time: ports x width x port cycles",
}
ACCOUNTINGS = {
    accounting.name: accounting
    for accounting in (
        Accounting("published", all_register_files=False, omissions=True, waits=False),
        Accounting("published-all-registers", all_register_files=True, omissions=True, waits=False),
        Accounting("physical", all_register_files=True, omissions=False, waits=True),
    )
}


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
        if option not in OPTIONS:
            raise MappingError(f"no option '{option}' to include{closest(str(option), OPTIONS)}")
    if wanted and name != "physical":
        raise MappingError(
            f"include {', '.join(wanted)}: options of the accounting physical, found {name}"
        )
    chosen = tuple(option for option in OPTIONS if option in wanted)
    return replace(ACCOUNTINGS[name], include=chosen)

"""What a result charges: an explicit, named choice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accounting:
    """How energy, area and waits are charged.

    Attributes:
        name: the name.
        all_register_files: charge the register files of every active lane, not of one.
        omissions: leave out what the design says that its published run left out.
        waits: pay the wait of a dependency that the design's pipeline breaks, not just warn.
        include: options that are charged too, see `einfuse.simulator.cost.charges`.
    """

    name: str
    all_register_files: bool
    omissions: bool
    waits: bool
    include: tuple[str, ...] = ()


ACCOUNTINGS = {
    accounting.name: accounting
    for accounting in (
        Accounting("published", all_register_files=False, omissions=True, waits=False),
        Accounting("published-all-registers", all_register_files=True, omissions=True, waits=False),
        Accounting("physical", all_register_files=True, omissions=False, waits=True),
    )
}

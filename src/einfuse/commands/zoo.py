"""``einfuse zoo``: the shipped cascades, with what is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import print_json

if TYPE_CHECKING:
    from einfuse.einsum import Entry

_WIDTH = 160  # columns of a table that is piped
_COLUMNS = (
    "cascade", "family", "phase", "keys", "queries", "parameters", "paper", "confidence",
    "simplification",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add ``zoo`` to the application."""
    app.command("zoo")(zoo)


def zoo(
    family: Annotated[str, typer.Option(help="only this family, such as dense")] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON, with every fact")] = False,
) -> None:
    """List the shipped cascades: family, passes, parameters, source, what is simplified."""
    from einfuse.einsum import entries

    found = [describe(entry) for entry in entries(family or None)]
    if json:
        print_json(found)
    else:
        _print(found)


def describe(entry: Entry) -> dict[str, Any]:
    """Return what ``zoo --json`` prints of a cascade: its facts, and its passes."""
    from einfuse.einsum import load, passes_over

    cascade = load(entry.name)
    return {
        **entry.model_dump(mode="json"),
        "passes_over_keys": passes_over(cascade, entry.keys),
        "passes_over_queries": passes_over(cascade, entry.queries),
    }


def _print(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column == "cascade")
    for facts in found:
        parameters = ", ".join(
            name if p["default"] is None else f"{name}={p['default']:g}"
            for name, p in facts["parameters"].items()
        )
        passes = (facts["passes_over_keys"], facts["passes_over_queries"])
        keys, queries = ("-" if count is None else f"{count:g}" for count in passes)
        phases = ", ".join(facts["phases"])
        table.add_row(
            facts["name"], facts["family"], phases, keys, queries, parameters or "-",
            facts["paper"], facts["confidence"], facts["simplification"] or "-",
        )  # fmt: skip
    console.print(table)
    print(f"{len(found)} cascades; keys and queries: passes over them; --json has every fact")

"""The command ``costs``: what components cost, with sources, and one cost model beside another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from einfuse.einsum import EinfuseError

from .arguments import parse_numbers, print_json

if TYPE_CHECKING:
    from einfuse.simulator import TableModel


def costs(
    technology: Annotated[
        str, typer.Option(help="45nm, 7nm, a CSV file, or hwcomponents-NNnm.")
    ] = "7nm",
    component: Annotated[str, typer.Option(help="Only this one: sram, mac, dram, wire, ...")] = "",
    type: Annotated[str, typer.Option(help="Of this type: bf16, hbm2, lstp, ...")] = "",
    at: Annotated[
        list[str] | None,
        typer.Option(help="Price the component at sizes: bytes=65536,width_bits=64."),
    ] = None,
    against: Annotated[str, typer.Option(help="Another technology to price it by.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """What components cost at a technology, and who says so; at sizes, their figures."""
    from einfuse.simulator import TableModel, find_cost_model

    model = find_cost_model(technology)
    if at is None and not against:
        if not isinstance(model, TableModel):
            raise EinfuseError(f"{technology} has no list: price a --component --at its sizes")
        rows = _list(model, component, type)
    elif not component:
        raise EinfuseError("--at and --against need a --component")
    else:
        sizes = parse_numbers(at or [], "--at")
        names = [technology, *([against] if against else [])]
        rows = _price(names, component, type, sizes)
    if json:
        print_json(rows)
        return
    for row in rows:
        print("  ".join(str(value) for key, value in row.items() if key != "source" and value))
        print(f"    from {row['source']}")


def _list(model: TableModel, component: str, type: str) -> list[dict[str, Any]]:
    if component:
        model.quantities(component, type) if type else model.types(component)
    return [
        row
        for row in model.describe()
        if component in ("", row["component"]) and type in ("", row["type"])
    ]


def _price(
    technologies: list[str], component: str, type: str, sizes: dict[str, float]
) -> list[dict[str, Any]]:
    from einfuse.simulator import find_cost_model

    models = [find_cost_model(name) for name in technologies]
    known = [model.quantities(component, type) for model in models]
    rows: list[dict[str, Any]] = []
    for quantity in known[0]:
        if not all(quantity in names for names in known):
            continue
        prices = [model.price(component, type, quantity, sizes) for model in models]
        row: dict[str, Any] = {"quantity": quantity, "value": float(prices[0].value)}
        if len(prices) > 1:
            row[technologies[1]] = float(prices[1].value)
            row["ratio"] = float(prices[0].value / prices[1].value)
        row["how"] = prices[0].how
        row["source"] = "; ".join(dict.fromkeys(price.source for price in prices))
        rows.append(row)
    return rows


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(costs)

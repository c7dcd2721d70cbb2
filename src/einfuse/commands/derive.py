"""``einfuse derive``: equivalent cascades that need fewer passes, with their derivations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import load_cascade, parse_shape, print_json

if TYPE_CHECKING:
    from einfuse.einsum import Derived


def register(app: typer.Typer) -> None:
    """Add ``derive`` to the application."""
    app.command("derive")(derive)


def derive(
    cascade: Annotated[
        str, typer.Argument(help="a name of the library, a file, or - (standard input)")
    ],
    rank: Annotated[str, typer.Option(help="the rank whose passes are to be reduced")] = "M",
    shape: Annotated[
        str, typer.Option(help="sizes that the derived texts carry, such as M=4K,M0=256")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="stop after this time with the best so far")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Derive equivalent cascades: the Pareto set over passes, operations and footprint."""
    from einfuse.einsum.derivation import search as derivation

    loaded = load_cascade(cascade)
    found = derivation.derive(loaded, rank, seconds=seconds, sizes=parse_shape(shape))
    if json:
        print_json([describe(derived) for derived in found])
        return
    for number, derived in enumerate(found):
        _print(number, derived, rank)


def describe(derived: Derived) -> dict[str, Any]:
    """Return what ``derive --json`` prints of one cascade; counts are numbers or formulas."""
    return {
        "name": derived.cascade.name,
        "text": derived.text,
        "passes": _number(derived.passes),
        "sweeps": _number(derived.sweeps),
        "operations": {name: _number(count) for name, count in derived.operations.items()},
        "footprint": derived.footprint,
        "steps": [
            {"rule": step.rule, "explanation": step.explanation, "text": step.text}
            for step in derived.steps
        ],
        "exact": derived.exact,
        "stable": derived.stable,
        "hazards": list(derived.hazards),
        "obstacles": list(derived.obstacles),
    }


def _number(value: Any) -> int | str:
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() else text


def _print(number: int, derived: Derived, rank: str) -> None:
    rules = " ".join(step.rule for step in derived.steps) or "as given"
    if number:
        print()
    print(f"# {number}: {derived.passes} passes, {derived.sweeps} sweeps over {rank} ({rules})")
    for step in derived.steps:
        print(f"#   {step.rule}: {step.explanation}")
    counts = ", ".join(f"{name} {count}" for name, count in derived.operations.items())
    print(f"# operations: {counts or 'none'}")
    levels = ", ".join(f"{level} {words}" for level, words in derived.footprint.items())
    print(f"# live words: {levels or 'none'}")
    print(f"# in floating point: {'; '.join(derived.hazards) or 'safe'}")
    for obstacle in derived.obstacles:
        print(f"# no fewer: {obstacle}")
    print(derived.text, end="")

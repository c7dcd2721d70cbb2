"""Commands of the mapper: ``map`` and ``explain``."""

from __future__ import annotations

from functools import partial
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from einfuse.einsum import EinfuseError
from einfuse.progress import progress

from .arguments import Include, parse_names, parse_numbers, parse_shape, print_json

if TYPE_CHECKING:
    from einfuse.mapper import Ratio, SearchResult, Solution
    from einfuse.simulator import Evaluation

Shape = Annotated[str, typer.Option(help="Rank sizes, such as B=64,H=12,M=4K,P=4K,E=64,F=64.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
_LEAST_SECONDS = 0.05
_MAIN_SHARE = 0.8  # of the time, for the best mapping; what is left goes to trade-offs
_TRADE_SECONDS = 3.0  # at most for these
_TRADED = {
    "latency": ("latency", "energy"),
    "energy": ("energy", "latency"),
    "edp": ("latency", "energy"),
    "traffic": ("traffic", "latency"),
    "buffer": ("buffer", "latency"),
}
_WORDS = {"latency": "time", "energy": "energy", "traffic": "DRAM traffic", "buffer": "buffer"}


def map_(
    cascade: Annotated[str, typer.Option(help="A shipped cascade, or a text file.")],
    architecture: Annotated[str, typer.Option(help="A shipped architecture, or a YAML file.")],
    shape: Shape,
    objective: Annotated[
        str, typer.Option(help="latency, energy, edp, traffic, buffer; several give their front.")
    ] = "latency",
    constraints: Annotated[
        str | None,
        typer.Option(
            help="A YAML file of what is fixed beforehand, or a shipped one's name: units, keep, "
            "exchange, forward, repeat, tiles, relations, order, parallel, innermost, fuse, "
            "split, double (docs/mapping.md)."
        ),
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The front of latency and energy, and what is named.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="Stop then, with the best so far.")] = None,
    processes: Annotated[
        int,
        typer.Option(
            help="Search in so many processes. Starting them takes a second or two, which pays for "
            "searches of ten seconds or more."
        ),
    ] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An architecture parameter by its path: buffer.bytes=1e6."),
    ] = None,
    accounting: Annotated[
        str, typer.Option(help="published, published-all-registers, or physical.")
    ] = "physical",
    include: Include = None,
    json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Write the mapping, a design file.")] = None,
) -> None:
    """Search the best mapping of a cascade on an architecture, with the proof or the gap left.

    The shipped designs of the cascade are where it starts. Beside the best mapping stand the
    nearest trade-offs that were found: a little slower for less energy, say.
    """
    started = monotonic()
    from einfuse.einsum import load
    from einfuse.files import require_writable, write_text
    from einfuse.mapper import (
        Constraints,
        MapSpace,
        find_best,
        load_architecture,
        load_constraints,
        to_design,
        to_yaml,
        usable_cores,
        worker_processes,
    )
    from einfuse.simulator import evaluate, find_objective

    if seconds is not None and not seconds > 0:
        raise EinfuseError(f"--seconds: expected more than 0, found {seconds:g}")
    if processes < 1:
        raise EinfuseError(f"--processes: expected at least 1, found {processes}")
    if out is not None:
        require_writable(out)
    machine = load_architecture(architecture).with_settings(parse_numbers(settings or []))
    given = Constraints() if constraints is None else load_constraints(constraints)
    space = MapSpace(load(cascade), machine, parse_shape(shape), given)
    names = [name.strip() for name in objective.split(",")]
    if pareto:
        names = list(dict.fromkeys(["latency", "energy", *(n for n in names if n != "edp")]))
    charged: dict[str, Any] = {
        "accounting": accounting,
        "include": parse_names(include or [], "--include"),
    }
    asked = find_objective(names, machine, **charged)
    show = progress()

    def left(share: float = 1.0) -> float | None:
        """The seconds that are left of some share of the time."""
        if seconds is None:
            return None
        return max(share * seconds - (monotonic() - started), _LEAST_SECONDS)

    def costs(plan: Any) -> Evaluation:
        return evaluate(to_design(space, plan), dict(space.shape), **charged)

    pair = _TRADED.get(",".join(names))
    search = partial(find_best, space, asked, report=show)
    processes = min(processes, usable_cores())
    if processes == 1:
        result = search(seconds=left(_MAIN_SHARE if pair else 1.0))
    else:
        with worker_processes(processes) as executor:
            share = left(_MAIN_SHARE if pair else 1.0)
            result = search(seconds=share, executor=executor, at_once=4 * processes)
    found = [(one, costs(one.plan)) for one in result.solutions]
    traded = []
    if pair and given.composition != "sequential":
        until = left()
        extra = _TRADE_SECONDS if until is None else min(until, _TRADE_SECONDS)
        traded = _trade_offs(result, found[0][1], pair, charged, extra)
    show("")
    record = {"objective": ",".join(names), **charged, "gap": result.gap}
    if out is not None:
        write_text(out, to_yaml(space, result.best.plan, out.stem, record))
    if json:
        print_json({**_to_json(result, found), "trade_offs": [one for one, _ in traded]})
        return
    print("\n".join(_tree(_nest(result, result.best.plan))))
    print(found[0][1])
    if result.is_front:
        print(_front(result))
    if traded:
        print("nearest trade-offs: " + "; ".join(text for _, text in traded))
    print(_verdict(result))
    if out is not None:
        print(f"written to {out}")


def _trade_offs(
    result: SearchResult,
    own: Evaluation,
    pair: tuple[str, str],
    charged: dict[str, Any],
    seconds: float,
) -> list[tuple[dict[str, Any], str]]:
    """The nearest trade-offs, as records and as words; what there is no price for is left out."""
    from einfuse.mapper import find_best, nearest_trade_offs
    from einfuse.simulator import figures_of, find_objective

    space = result.space
    try:
        both = find_objective(pair, space.architecture, **charged)
        best = figures_of(own, both)
        known = ((result.best.plan, best),)
        front = find_best(space, both, seconds=seconds, known=known).solutions
    except EinfuseError:
        return []
    points = [(one.plan, one.figures) for one in front]
    told = []
    for asked, other in ((0, 1), (1, 0)) if result.objective.name == "edp" else ((0, 1),):
        for one in nearest_trade_offs(points, best, asked, other):
            figures = dict(zip(both.figures, one.figures, strict=True))
            words = f"{100 * one.more:.2g} % more {_WORDS[pair[asked]]}"
            told.append(
                (
                    {**figures, "mapping": _nest(result, one.plan)},
                    f"{words} for {100 * one.less:.2g} % less {_WORDS[pair[other]]}",
                )
            )
    return told


def _nest(result: SearchResult, plan: Any) -> list[Any]:
    from einfuse.mapper import render_nest, to_design

    return render_nest(to_design(result.space, plan).nest)


def _to_json(result: SearchResult, found: list[tuple[Solution, Evaluation]]) -> dict[str, Any]:
    from einfuse.mapper import open_sizes

    def one(solution: Solution, evaluation: Evaluation) -> dict[str, Any]:
        return {
            **evaluation.to_json(),
            "splits": open_sizes(solution.plan),
            "mapping": _nest(result, solution.plan),
        }

    return {
        **one(*found[0]),
        **({"front": [one(*pair) for pair in found]} if result.is_front else {}),
        "objective": result.objective.name,
        "optimal": result.optimal,
        "gap": result.gap,
        "candidates": result.candidates,
        "structures": result.structures,
        "infeasible": dict(result.infeasible),
    }


def _front(result: SearchResult) -> str:
    lines = ["front: " + ", ".join(result.objective.figures)]
    lines += ["  " + "  ".join(f"{v:.6g}" for v in one.figures) for one in result.solutions]
    return "\n".join(lines)


def _verdict(result: SearchResult) -> str:
    from einfuse.mapper import Design

    plan = result.best.plan
    if result.optimal and isinstance(plan, Design) and not result.is_front:
        proof = f"the design {plan.name}: no mapping in this space is better"
    elif result.optimal:
        proof = "optimal in this space"
    elif result.is_front:
        proof = (
            "stopped early: no mapping is better in every figure by more than "
            f"{100 * result.gap:.3g} % than one found"
        )
    else:
        which = f"the design {plan.name}, " if isinstance(plan, Design) else ""
        proof = f"stopped early: {which}at most {100 * result.gap:.3g} % above the optimum"
    return (
        f"{proof}; {result.candidates} mappings costed in full, {result.structures} structures, "
        f"{result.seconds:.2f} s"
    )


def explain(
    mapping: Annotated[Path, typer.Argument(help="A mapping that `einfuse map --out` wrote.")],
    seconds: Annotated[float, typer.Option(help="For all of the searches behind it.")] = 3.0,
    json: Json = False,
) -> None:
    """Say why a mapping is chosen: loops, what binds, what more would bring, what comes next."""
    from einfuse.mapper import (
        DesignFile,
        MapSpace,
        explain_mapping,
        load_design,
        parse_constraints,
        read_yaml,
        render_nest,
    )
    from einfuse.simulator import evaluate, figures_of, find_objective, find_reuse

    if not seconds > 0:
        raise EinfuseError(f"--seconds: expected more than 0, found {seconds:g}")
    if not mapping.is_file():
        raise EinfuseError(f"{mapping}: no such mapping file")
    design = load_design(mapping)
    asked = DesignFile.model_validate(read_yaml(mapping)).found
    shape: Any = asked.get("shape")
    sized = isinstance(shape, dict) and all(isinstance(rank, str) for rank in shape)
    if "objective" not in asked or not sized:
        raise EinfuseError(
            f"{mapping}: expected a file that 'einfuse map --out' wrote, found no 'found' with the "
            "objective and the shape"
        )
    charged: dict[str, Any] = {
        "accounting": str(asked.get("accounting", "physical")),
        "include": asked.get("include", []),
    }
    given = parse_constraints(asked.get("constraints"), f"{mapping}: found.constraints")
    machine = design.architecture
    space = MapSpace(design.cascade, machine, shape, given, design.batch)
    objective = find_objective(str(asked["objective"]), machine, **charged)
    evaluation = evaluate(design, dict(space.shape), **charged)
    reuse = find_reuse(design, dict(space.shape))
    gap = asked.get("gap")
    show = progress()
    worth, others = explain_mapping(
        space,
        design,
        figures_of(evaluation, objective),
        lambda m: find_objective(objective.name, m, **charged),
        seconds,
        gap=gap if isinstance(gap, float) and 0 <= gap <= 1 else 1.0,
        report=show,
    )
    show("")
    if json:
        print_json(
            {
                "mapping": render_nest(design.nest),
                "bound": evaluation.bound,
                "resource_seconds": dict(evaluation.resource_seconds),
                "peak_bytes": dict(evaluation.peak_bytes),
                "reuse": reuse,
                "worth": {one.resource: _numbers(one.ratio) for one in worth},
                "alternatives": {one.decision: _numbers(one.ratio) for one in others},
            }
        )
        return
    print("\n".join(_tree(render_nest(design.nest))))
    print(f"\nbound by {evaluation.bound}; each resource alone takes")
    for name, alone in evaluation.resource_seconds.items():
        print(f"  {name}: {alone:.6g} s, {100 * alone / evaluation.seconds:.1f} %")
    for level, held in evaluation.holders_bytes.items():
        print(f"{level} holds " + ", ".join(f"{t} ({n:.6g} bytes)" for t, n in held if n))
    for level, often in reuse.items():
        each = ", ".join(f"{tensor} {times:.4g}" for tensor, times in often.items())
        print(f"{level} is read, for each word that comes there: {each}")
    print(
        "\nHere 100 % is what this mapping costs. A range is the least and the most that it may "
        "be, where the search for it did not end in its time."
    )
    print(f"\ntwice of a resource changes {objective.name} to")
    for one in worth:
        print(f"  {one.resource}: {_percent(one.ratio)}")
    print(f"\nwithout a decision the best {objective.name} is")
    for other in others:
        print(f"  {other.decision}: {_percent(other.ratio)}{other.note and f' ({other.note})'}")


def _numbers(ratio: Ratio | None) -> float | list[float | None] | None:
    """A ratio, or its bounds if it is not proven."""
    if ratio is None:
        return None
    most = ratio.most if isfinite(ratio.most) else None
    return [ratio.least, most] if ratio.proven is None else ratio.proven


def _percent(ratio: Ratio | None) -> str:
    if ratio is None:
        return "unknown"
    if not isfinite(ratio.most):
        return f"at least {100 * ratio.least:.2f} %"
    if ratio.proven is None:
        return f"{100 * ratio.least:.2f} to {100 * ratio.most:.2f} %"
    return f"{100 * ratio.proven:.2f} %"


def _tree(lines: list[Any], depth: int = 0) -> list[str]:
    out: list[str] = []
    for line in lines:
        if isinstance(line, str):
            out.append("  " * depth + line)
        else:
            for kind, children in line.items():
                out.append("  " * depth + f"{kind}:")
                for child in children:
                    out += _tree(child, depth + 1)
    return out


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("map")(map_)
    app.command()(explain)

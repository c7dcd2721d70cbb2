"""``einfuse convert``: cascades from, and to, the files of other tools; mappings from them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from einfuse.einsum import EinfuseError, closest

from .arguments import load_cascade, parse_settings, parse_shape

if TYPE_CHECKING:
    from einfuse.einsum import Cascade

_SOURCES = ("teaal", "accelforge")
_TARGETS = ("text", "teaal", "accelforge", "latex", "dot")


def register(app: typer.Typer) -> None:
    """Add ``convert`` to the application."""
    app.command("convert")(convert)


def convert(
    cascade: Annotated[str, typer.Argument(help="a name of the library, or a file")],
    to: Annotated[str, typer.Option(help=f"one of {', '.join(_TARGETS)}")] = "text",
    source: Annotated[
        str, typer.Option("--from", help=f"what the file is: one of {', '.join(_SOURCES)}")
    ] = "",
    shape: Annotated[
        str, typer.Option(help="sizes of ranks that the file to write needs, such as M=4K,P=1K")
    ] = "",
    bits: Annotated[int, typer.Option(help="bits per value, for AccelForge")] = 16,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="a template variable of an AccelForge file, such as N_TOKENS=8"),
    ] = None,
    maps: Annotated[
        str, typer.Option(help="of an AccelForge mapping: the cascade that it maps")
    ] = "",
    architecture: Annotated[
        str, typer.Option(help="of an AccelForge mapping: the architecture that it maps to")
    ] = "",
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="what a name of the mapping is here, such as Matmul0=T1"),
    ] = None,
) -> None:
    """Convert a cascade: to a file of another tool, or from one (printed as a cascade).

    A mapping file of AccelForge becomes a design, with --maps and --architecture.
    """
    _check(to, "--to", _TARGETS)
    if source:
        _check(source, "--from", _SOURCES)
    if maps or architecture or names:
        if source != "accelforge" or not (maps and architecture):
            raise EinfuseError(
                "a mapping needs --from accelforge, --maps CASCADE and --architecture NAME"
            )
        given = parse_settings(names or [], "--name"), parse_settings(settings or [])
        print(_mapping(cascade, maps, architecture, *given), end="")
        return
    loaded, comment = _read(cascade, source, parse_settings(settings or []))
    if to == "text":
        print(comment, end="")
    print(_written(loaded, to, parse_shape(shape), bits), end="")


def _mapping(
    path: str, maps: str, architecture: str, names: dict[str, str], settings: dict[str, str]
) -> str:
    import yaml

    from einfuse.mapper import facts, load_architecture, read_mapping

    content = read_mapping(
        _text(path),
        facts(load_cascade(maps)),
        load_architecture(architecture),
        names=names,
        settings=settings,
        name=Path(path).stem,
        source=path,
    )
    return yaml.safe_dump(content, sort_keys=False, width=96)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise EinfuseError(f"{path}: expected text in UTF-8") from None


def _check(value: str, option: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise EinfuseError(f"{option}: unknown format '{value}'{closest(value, known)}")


def _read(path: str, source: str, settings: dict[str, str]) -> tuple[Cascade, str]:
    """Return the cascade, and what a comment in front of it says."""
    from einfuse.einsum import read_accelforge, read_teaal

    if not source:
        if path.endswith((".yaml", ".yml")):
            raise EinfuseError(
                f"{path}: say what it is, with --from {' or --from '.join(_SOURCES)}"
            )
        return load_cascade(path), ""
    text, name = _text(path), Path(path).stem
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if source == "teaal":
            found, comment = read_teaal(text, name, path), ""
        else:
            workload = read_accelforge(text, name, path, settings)
            bits = ", ".join(f"{tensors} {n}" for tensors, n in workload.bits_per_value)
            found, comment = workload.cascade, f"# bits per value: {bits}\n" if bits else ""
    for warning in caught:
        print(f"warning: {warning.filename}: {warning.message}", file=sys.stderr)
    return found, comment


def _written(cascade: Cascade, to: str, shape: dict[str, int], bits: int) -> str:
    if to == "teaal":
        from einfuse.einsum import write_teaal

        return write_teaal(cascade, shape)
    if to == "accelforge":
        from einfuse.einsum import write_accelforge

        return write_accelforge(cascade, shape, bits)
    if to == "dot":
        from einfuse.einsum import dot

        return dot(cascade)
    from einfuse.einsum import latex, render

    return latex(cascade) if to == "latex" else render(cascade)

"""``einfuse run``: a cascade executed on arrays."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from einfuse.einsum import EinfuseError
from einfuse.progress import shown

from .arguments import (
    Parameters,
    load_cascade,
    parse_numbers,
    parse_shape,
    print_json,
)

if TYPE_CHECKING:
    from einfuse.einsum import Cascade

Arrays = dict[str, Any]

_BATCH = ("B", "H")  # ranks that the notation leaves out
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_DAMAGED = (zlib.error, zipfile.BadZipFile)
_TINY = 4  # largest size of a rank in the point-by-point check
_AGREES = 1e-9


def register(app: typer.Typer) -> None:
    """Add ``run`` to the application."""
    app.command("run")(run)


def run(
    cascade: Annotated[str, typer.Argument(help="a name of the library, or a file")],
    shape: Annotated[
        str, typer.Option(help="sizes of ranks, such as E=64,F=64,P=1K,M=1K; B, H add a batch")
    ] = "",
    settings: Parameters = None,
    inputs: Annotated[
        Path | None, typer.Option(help="an .npz keyed by tensor name; drawn if left out")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="write the outputs to this .npz")] = None,
    backend: Annotated[str, typer.Option(help="numpy or torch")] = "numpy",
    device: Annotated[str, typer.Option(help="torch's device, such as cuda")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float16, bfloat16 (torch), float32, float64; the inputs' own")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="of the drawn inputs")] = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="compare with float64, and point by point on a tiny shape"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Run a cascade, on inputs from a file or drawn at random, and summarise its outputs."""
    import numpy as np

    from einfuse.einsum import bound_sizes, naming_parameters
    from einfuse.einsum import run as execute
    from einfuse.files import require_writable, write_whole

    if dtype and dtype not in _DTYPES:
        raise EinfuseError(f"unknown dtype '{dtype}'; there is {', '.join(_DTYPES)}")
    if output is not None:
        require_writable(output)
    sizes = parse_shape(shape)
    given = None if inputs is None else _read(inputs)
    shipped = load_cascade(cascade)
    with naming_parameters(shipped):
        chosen = _with_parameters(shipped, settings or (), sizes, given)
        loaded = _batched(chosen, sizes)
        arrays = _drawn(loaded, sizes, seed, dtype) if given is None else given
        fed = _converted(arrays, backend, device, dtype)
        with shown(f"running {loaded.name}", silent_seconds=1):
            results = execute(loaded, fed, sizes, backend)
    outputs = {name: _numpy(array) for name, array in results.items()}
    report: dict[str, Any] = {
        "cascade": loaded.name,
        "outputs": {n: _summary(outputs[n], results[n].dtype) for n in outputs},
    }
    if check:
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        bound = bound_sizes(loaded, shapes, sizes)
        report["check"] = _checked(loaded, bound, fed, results, seed, backend)
    if output is not None:
        write_whole(output, partial(np.savez, **outputs))
    if json:
        print_json(report)
    else:
        _print(report)
    if check and not all(row["agrees"] for row in report["check"]["pointwise"].values()):
        raise EinfuseError(f"{loaded.name}: the run differs from its point-by-point meaning")


def _with_parameters(
    cascade: Cascade, settings: Sequence[str], sizes: Mapping[str, int], inputs: Arrays | None
) -> Cascade:
    """Return the cascade with parameters as set, and defaults where nothing else says."""
    from einfuse.einsum import defaults, with_parameters

    known = {*sizes, *(inputs or ())}
    known |= {r for t in cascade.input_tensors if t.name in (inputs or ()) for r in t.ranks}
    for split in cascade.splits:
        if len(known & {split.whole, split.outer, split.inner}) > 1:
            known |= {split.whole, split.outer, split.inner}
    return with_parameters(cascade, defaults(cascade, known) | parse_numbers(settings))


def _batched(cascade: Cascade, sizes: Mapping[str, int]) -> Cascade:
    """Return the cascade with the batch ranks that a shape names and it leaves out."""
    from einfuse.einsum import with_batch

    ranks = [rank for rank in _BATCH if rank in sizes and rank not in cascade.rank_names]
    return with_batch(cascade, ranks) if ranks else cascade


def _drawn(cascade: Cascade, sizes: Mapping[str, int], seed: int, dtype: str) -> Arrays:
    from einfuse.einsum import available_main_memory_bytes, bind, check_fits, draw_inputs

    bound = bind(cascade, sizes)
    kind = "float32" if dtype in ("", "bfloat16") else dtype
    item_bytes = {"float16": 2, "float32": 4, "float64": 8}[kind]
    free = available_main_memory_bytes()
    check_fits(cascade, bound, item_bytes, free, count_inputs=True)
    return dict(draw_inputs(cascade, bound, seed, kind))


def _read(path: Path) -> Arrays:
    """Return the arrays of an .npz; pickled objects are refused."""
    import numpy as np

    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise EinfuseError(
                    f"{path}: expected an .npz with an array for each input, found one .npy array"
                )
            _require_room(path, loaded)
            return {name: loaded[name] for name in loaded.files}
    except EinfuseError:
        raise
    except MemoryError:
        raise EinfuseError(f"{path}: its arrays do not fit into memory") from None
    except OSError as error:
        raise EinfuseError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, LookupError, NotImplementedError, *_DAMAGED) as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise EinfuseError(
                f"{path}: not an .npz of numbers (it is no zip file, or holds pickled objects, "
                "which are never loaded); write it with numpy.savez"
            ) from None
        raise EinfuseError(f"{path}: not a readable .npz: {error}") from None


def _require_room(path: Path, loaded: Any) -> None:
    """Refuse an .npz whose headers claim more than is in it, or than memory holds."""
    import numpy as np

    from einfuse.einsum import available_main_memory_bytes

    claimed = 0
    for entry in loaded.zip.infolist():
        with loaded.zip.open(entry) as file:
            version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            first, later = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            shape, _, dtype = (later if version > (1, 0) else first)(file)  # type: ignore[no-untyped-call]
        item_bytes = math.prod(shape) * dtype.itemsize
        if item_bytes > entry.file_size:
            raise EinfuseError(
                f"{path}: {entry.filename} claims {item_bytes:,} bytes and holds "
                f"{entry.file_size:,}: the file is damaged"
            )
        claimed += item_bytes
    free = available_main_memory_bytes()
    if free is not None and claimed > free:
        raise EinfuseError(f"{path}: holds {claimed:,} bytes, of which {free:,} fit into memory")


def _converted(arrays: Arrays, backend: str, device: str, dtype: str) -> Arrays:
    """Return the arrays for a backend, floating ones in the dtype that is asked for."""
    if backend != "torch":
        if device != "cpu":
            raise EinfuseError(f"--device {device}: needs --backend torch; NumPy runs on the cpu")
        if dtype == "bfloat16":
            raise EinfuseError("bfloat16 needs --backend torch: NumPy has no such dtype")
        if not dtype:
            return arrays
        return {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    try:
        import torch
    except ModuleNotFoundError:
        raise EinfuseError("backend torch: PyTorch is not installed; pip install torch") from None
    converted: Arrays = {}
    for name, array in arrays.items():
        try:
            tensor = torch.as_tensor(array).to(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise EinfuseError(f"input {name}: cannot go to device '{device}': {first}") from None
        wanted = getattr(torch, dtype) if dtype and tensor.is_floating_point() else tensor.dtype
        converted[name] = tensor.to(wanted)
    return converted


def _numpy(array: Any) -> Any:
    """Return an array in main memory; bfloat16 widens to float32, which NumPy has."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            array = array.float()
        return array.numpy()
    return array


def _summary(array: Any, dtype: object) -> dict[str, Any]:
    import numpy as np

    finite = array[np.isfinite(array)].astype(np.float64)

    def of(function: Any) -> float | None:
        return float(function(finite)) if finite.size else None

    return {
        "shape": list(array.shape),
        "dtype": str(dtype).removeprefix("torch."),
        "min": of(np.min),
        "max": of(np.max),
        "mean": of(np.mean),
        "not_finite": int(array.size - finite.size),
    }


def _checked(
    cascade: Cascade,
    sizes: Mapping[str, int],
    inputs: Arrays,
    results: Arrays,
    seed: int,
    backend: str,
) -> dict[str, Any]:
    """Compare outputs with float64, and a tiny run with the point-by-point interpreter."""
    from einfuse.einsum import draw_inputs, run_pointwise, shrunk
    from einfuse.einsum import run as execute

    wide = {name: _numpy(array) for name, array in inputs.items()}
    wide = {n: a.astype("float64") if a.dtype.kind == "f" else a for n, a in wide.items()}
    exact = execute(cascade, wide, sizes)
    opened, tiny = shrunk(cascade, sizes, _TINY)
    drawn = draw_inputs(opened, tiny, seed)
    fast = execute(opened, _converted(dict(drawn), backend, "cpu", ""), tiny, backend)
    slow = run_pointwise(opened, drawn, tiny)
    pointwise = {name: _compared(_numpy(fast[name]), slow[name]) for name in slow}
    return {
        "float64": {name: _compared(_numpy(results[name]), exact[name]) for name in exact},
        "shape": tiny,
        "pointwise": {
            name: {**row, "agrees": row["not_finite_differ"] == 0 and row["relative"] <= _AGREES}
            for name, row in pointwise.items()
        },
    }


def _compared(found: Any, truth: Any) -> dict[str, Any]:
    """Return the largest error, absolute and against the largest true value."""
    import numpy as np

    found, truth = found.astype(np.float64), truth.astype(np.float64)
    both = np.isfinite(found) & np.isfinite(truth)
    same = (found == truth) | (np.isnan(found) & np.isnan(truth))
    error = float(np.abs(found[both] - truth[both]).max(initial=0.0))
    scale = float(np.abs(truth[both]).max(initial=0.0))
    return {
        "error": error,
        "relative": error / scale if scale else error,
        "not_finite_differ": int((~both & ~same).sum()),
    }


def _print(report: Mapping[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    rows.append(("output", "shape", "dtype", "min", "max", "mean", "not finite"))
    for name, row in report["outputs"].items():
        numbers = ["-" if row[k] is None else f"{row[k]:.6g}" for k in ("min", "max", "mean")]
        shape = "x".join(map(str, row["shape"])) or "scalar"
        rows.append((name, shape, row["dtype"], *numbers, str(row["not_finite"])))
    _table(rows)
    if "check" not in report:
        return
    check = report["check"]
    tiny = ",".join(f"{rank}={size}" for rank, size in check["shape"].items())
    print()
    rows = [("check", "output", "largest error", "relative", "")]
    for name, row in check["float64"].items():
        rows.append(("float64", name, f"{row['error']:.3g}", f"{row['relative']:.3g}", ""))
    for name, row in check["pointwise"].items():
        verdict = "agrees" if row["agrees"] else "DIFFERS"
        error = f"{row['error']:.3g}", f"{row['relative']:.3g}"
        rows.append(("point by point", name, *error, verdict))
    _table(rows)
    print(f"point by point at {tiny}")


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())

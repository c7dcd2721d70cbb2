"""A PyTorch function as a cascade: `from_torch`, by way of ``torch.export``.

Every value of the exported graph is a function from indices to an expression. Views (transposes,
slices, reshapes, repeats), masks and positions stay such functions and cost nothing; what computes
becomes an Einsum. A mask that compares positions becomes a filter, so that a masked score is
absent, and a row without a key gives 0 where PyTorch gives NaN.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.functions import aten_functions

from . import complex as torch_complex
from . import gathers as torch_gathers
from . import masks as torch_masks
from . import pointwise as torch_arithmetic
from . import products as torch_products
from . import sums as torch_sums
from . import views as torch_views
from . import windows as torch_windows
from .constants import Holdings
from .graph import Translation
from .nodes import mutates, name_of, operations_of

_OPERATIONS = {
    **torch_arithmetic.OPERATIONS,
    **torch_sums.OPERATIONS,
    **torch_products.OPERATIONS,
    **torch_views.OPERATIONS,
    **torch_masks.OPERATIONS,
    **torch_gathers.OPERATIONS,
    **torch_windows.OPERATIONS,
    **torch_complex.MAKING,
}
_ROUNDS = 4  # of decompositions, each of which may bring operations that another knows
_WIDTH = 200  # characters of an error of torch's that are passed on


def from_torch(
    function: Callable[..., Any], *example_inputs: Any, **example_keywords: Any
) -> Cascade:
    """Return the cascade that a PyTorch function computes on tensors of the examples' shapes.

    Its inputs are the function's tensors, in the order of its arguments, under their names in
    upper case; numbers and flags among the arguments are taken as they are. The weights and
    buffers of a module and tensors that a function captured are inputs after those, each with its
    value, which `run` takes where none is given. The sizes of all ranks are those of the examples.
    A complex input stands with its real and imaginary part on a last rank of size 2.

    Args:
        function: takes tensors; returns one, or a tuple of them. A module is such a function.
        example_inputs: an argument each, or lists, tuples and dicts of them; only shapes and
            dtypes of tensors matter.
        example_keywords: keyword arguments, likewise.

    Raises:
        EinfuseError: control flow that depends on data, or an operation that a cascade cannot
            express: named, with its line in the function.

    >>> import torch
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> cascade = from_torch(lambda a, b: torch.tanh(a @ b), torch.ones(2, 3), torch.ones(3, 4))
    >>> print(*map(render_einsum, cascade.einsums), sep="\\n")
    MATMUL[p,f] = A[p,e] * B[e,f]
    TANH[p,f] = tanh(MATMUL[p,f])
    """
    if not callable(function):
        raise EinfuseError(
            f"from_torch: expected a function or a module, found {type(function).__name__}"
        )
    name = _name_of(function)
    parameters = _parameter_names(function, example_inputs, example_keywords)
    program = _exported(function, example_inputs, example_keywords)
    holdings = Holdings(function)
    return Translation(program, parameters, _operations(), __file__, holdings).cascade(name)


def _exported(
    function: Callable[..., Any], inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    import torch

    traced = _named_forward(function)

    class _Wrapped(torch.nn.Module):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            return traced(*arguments, **named)

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    aside = io.StringIO()  # torch prints the graph before it raises
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(aside),
            contextlib.redirect_stderr(aside),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(_Wrapped(), inputs, keywords, strict=False)
            return _reduced(program)
    except Exception as error:
        text = str(error).strip().split("\n")[0][:_WIDTH] or type(error).__name__
        depends = "data-dependent" in str(error)
        why = "control flow that depends on data" if depends else f"what fails to export: {text}"
        place = _place(function, error)
        raise EinfuseError(f"{place}a cascade cannot express {why}") from None
    finally:
        logging.disable(before)


def _reduced(program: Any) -> Any:
    """Return a program whose unknown operations are written as others, without writes in place."""
    import torch

    found = program.run_decompositions({}) if mutates(program.graph) else program
    for _ in range(_ROUNDS):
        unknown = {target for target in operations_of(found.graph) if not _known(target)}
        if not unknown:
            return found
        table = torch.export.default_decompositions()
        chosen = {target: table[target] for target in unknown if target in table}
        if not chosen:
            break
        found = found.run_decompositions(chosen)
    return program  # with the line of what nobody knows


def _known(target: Any) -> bool:
    name = name_of(target)
    return name in _operations() or name in torch_complex.OPERATIONS


def _operations() -> dict[str, Callable[..., Any]]:
    """Return all operations: those of the function table, which may grow, and those here."""
    functions = {n: torch_arithmetic.function_operation(f) for n, f in aten_functions().items()}
    return {**functions, **_OPERATIONS}


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under the name ``forward``: torch notes lines of such frames alone."""
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    named = types.FunctionType(
        code, function.__globals__, "forward", function.__defaults__, function.__closure__
    )
    named.__kwdefaults__ = function.__kwdefaults__
    return named


def _place(function: Callable[..., Any], error: Exception) -> str:
    """Return ``name, line 3 (if x > 0:): `` of the function's own line that raised, or less."""
    code, name = getattr(function, "__code__", None), _name_of(function)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return f"{name}, line {frames[-1].lineno} ({frames[-1].line}): " if frames else f"{name}: "


def _parameter_names(
    function: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> list[str]:
    """Return a name for each leaf of the arguments, in the order in which they are given."""
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except ValueError:  # of what is built into torch
        return [f"x{k}" for k in range(len(inputs))] + list(keywords)
    try:
        bound = signature.bind(*inputs, **keywords)
    except TypeError as error:
        raise EinfuseError(f"the example inputs do not fit the function: {error}") from None
    names: list[str] = []
    for name, value in bound.arguments.items():
        match signature.parameters[name].kind.name:
            case "VAR_POSITIONAL":
                names += _leaf_names(name, value)
            case "VAR_KEYWORD":
                names += [leaf for key, part in value.items() for leaf in _leaf_names(key, part)]
            case _ if name not in keywords:
                names += _leaf_names(name, value)
    later = [leaf for key, part in keywords.items() for leaf in _leaf_names(key, part)]
    return [*names, *(name for name in later if name not in names)]


def _leaf_names(name: str, value: Any) -> list[str]:
    """Return ``pair0``, ``pair1`` for a pair, ``state_k`` for a dict, the name for a tensor."""
    if isinstance(value, dict):
        parts = [(f"{name}_{key}", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{name}{k}", part) for k, part in enumerate(value)]
    else:
        return [name]
    return [leaf for key, part in parts for leaf in _leaf_names(key, part)]


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__).strip("<>")

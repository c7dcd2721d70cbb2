"""The rules of the language, as a list; each raises a `CascadeError` that points at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .cascade import Cascade
from .errors import CascadeError
from .inference import infer_tensors

RULES: tuple[Callable[[Cascade], None], ...] = ()


def validated(cascade: Cascade, text: str = "", source: str = "") -> Cascade:
    """Return the cascade with its tensors inferred; CascadeError if it breaks a rule.

    Rewrites that build a cascade call this to complete ``tensors`` and to check the result.
    """
    try:
        cascade = replace(cascade, tensors=infer_tensors(cascade))
        for rule in RULES:
            rule(cascade)
    except CascadeError as error:
        where = source or cascade.name
        raise CascadeError(error.message, error.span, text, where) from None
    return cascade

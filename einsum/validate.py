"""The rules of the language, as a list; each raises a `CascadeError` that points at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .cascade import Cascade
from .errors import located
from .inference import infer_tensors

RULES: tuple[Callable[[Cascade], None], ...] = ()


def validated(cascade: Cascade) -> Cascade:
    """Return the cascade with its tensors inferred; CascadeError if it breaks a rule.

    Rewrites that build a cascade call this to complete ``tensors`` and to check the result.
    """
    with located(cascade):
        cascade = replace(cascade, tensors=infer_tensors(cascade))
        for rule in RULES:
            rule(cascade)
    return cascade

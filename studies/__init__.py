"""Questions answered with all of it: tables, figures and reports."""

from __future__ import annotations

from .study import STUDIES, run_study

__all__ = ["STUDIES", "run_study"]

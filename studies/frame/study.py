"""The studies by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from einfuse.einsum import EinfuseError, closest
from einfuse.files import require_folder, sign_folder

STUDIES = {
    "accelforge": "einfuse.studies.accelforge.study",
    "analytic-vs-simulated": "einfuse.studies.analytic_vs_simulated.study",
    "costs": "einfuse.studies.component_costs.study",
    "footprint": "einfuse.studies.footprint.study",
    "fusemax": "einfuse.studies.fusemax.study",
    "mapper-vs-hand": "einfuse.studies.mapper_vs_hand.study",
    "model-vs-compiled": "einfuse.studies.model_vs_compiled.study",
    "taxonomy": "einfuse.studies.taxonomy.study",
}


def run_study(
    name: str,
    out: Path,
    *,
    models: Sequence[str] | None = None,
    lengths: Sequence[str] | None = None,
) -> Path:
    """Run a study, write its tables, figures and report under ``out``; return the report's path.

    Raises:
        EinfuseError: no such study, model or length, or a folder that cannot be written.
    """
    if name not in STUDIES:
        raise EinfuseError(f"no study '{name}'{closest(name, STUDIES)}")
    require_folder(out, f"study {name}")
    module = importlib.import_module(STUDIES[name])
    path: Path = module.run(out, models=models, lengths=lengths)
    sign_folder(out, f"study {name}")
    return path

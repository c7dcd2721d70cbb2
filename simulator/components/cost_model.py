"""What a component costs: the protocol of cost models, and the known ones by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from einfuse.einsum import closest
from einfuse.mapper import ArchitectureError, Values

from .price import Price

DATA = Path(__file__).parents[1] / "data"


class CostModel(Protocol):
    """Prices the components of one technology node."""

    @property
    def name(self) -> str:
        """What an architecture's ``technology`` says."""

    def quantities(self, component: str, type: str) -> tuple[str, ...]:
        """The figures that a component has, such as ``read_pj``; ArchitectureError if unknown."""

    def price(self, component: str, type: str, quantity: str, sizes: Mapping[str, Values]) -> Price:
        """The figure of a component of some sizes (numbers or arrays).

        Raises:
            ArchitectureError: there is no such component, or a single point is outside what the
                model knows.
        """


_LOADED: dict[str, CostModel] = {}


def register_cost_model(model: CostModel) -> None:
    """Let architectures name a cost model of one's own as their ``technology``."""
    _LOADED[model.name] = model


def find_cost_model(name: str) -> CostModel:
    """Return a cost model: a shipped table, a table of one's own (CSV), or a plug-in.

    Args:
        name: "45nm", "7nm", a path that ends in ``.csv``, or "hwcomponents-NNnm".

    >>> find_cost_model("7nm").quantities("mac", "bf16")
    ('energy_pj', 'area_um2')
    """
    if name not in _LOADED:
        loaders = {path.stem: _load_table for path in sorted(DATA.glob("*nm.csv"))}
        path = Path(name)
        if path.suffix == ".csv":
            _LOADED[name] = _load_table(path)
        elif name in loaders:
            _LOADED[name] = loaders[name](DATA / f"{name}.csv")
        elif name.startswith("hwcomponents"):
            from .hwcomponents import load_plugin

            _LOADED[name] = load_plugin(name)
        else:
            known = (*_LOADED, *loaders, "hwcomponents-45nm")
            raise ArchitectureError(f"no technology '{name}'{closest(name, known)}")
    return _LOADED[name]


def _load_table(path: Path) -> CostModel:
    from .cost_table import load_table

    return load_table(path)

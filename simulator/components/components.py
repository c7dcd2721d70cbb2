"""The prices of an architecture's components, as names that its formulas read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from einfuse.mapper import Architecture, ArchitectureError, Component, Values

from .cost_model import CostModel, find_cost_model
from .price import Price


@dataclass(frozen=True, slots=True)
class Priced(Mapping[str, Values]):
    """A component of some sizes: ``NAME.QUANTITY`` -> figure, looked up when it is asked for."""

    name: str
    component: Component
    model: CostModel
    sizes: Mapping[str, Values]
    prices: dict[str, Price] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Values:
        name, _, quantity = path.partition(".")
        if name != self.name or not quantity:
            raise KeyError(path)
        if path not in self.prices:
            kind, type_ = self.component.component, self.component.type
            try:
                self.prices[path] = self.model.price(kind, type_, quantity, self.sizes)
            except ArchitectureError as error:
                raise ArchitectureError(f"costs.{self.name}: {error}") from None
        return self.prices[path].value

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and path in set(self)

    def __iter__(self) -> Iterator[str]:
        kind, type_ = self.component.component, self.component.type
        try:
            return iter([f"{self.name}.{q}" for q in self.model.quantities(kind, type_)])
        except ArchitectureError as error:
            raise ArchitectureError(f"costs.{self.name}: {error}") from None

    def __len__(self) -> int:
        return sum(1 for _ in self)


Source = Callable[[Mapping[str, Values]], Priced]


def find_components(architecture: Architecture) -> dict[str, Source]:
    """Return the components of an architecture, for a scope's ``sources``.

    Raises:
        ArchitectureError: a technology is unknown or missing.

    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> from einfuse.mapper.machine.formula import Scope
    >>> hardware = load_architecture("fusemax-7nm")
    >>> scope = hardware.scope(sources=find_components(hardware))
    >>> scope["mac.energy_pj"]
    0.32
    """
    return {
        name: _source(architecture, name, component)
        for name, component in architecture.file.costs.items()
    }


def _source(architecture: Architecture, name: str, component: Component) -> Source:
    technology = component.technology or architecture.file.technology
    if not technology:
        raise ArchitectureError(
            f"{architecture.name}: costs.{name} needs a cost model: add 'technology: 7nm' to the "
            "file, or to the component"
        )
    try:
        model = find_cost_model(technology)
    except ArchitectureError as error:
        raise ArchitectureError(f"{architecture.name}: technology: {error}") from None

    def price(names: Mapping[str, Values]) -> Priced:
        sizes = {size: names[f"{name}.{size}"] for size in component.sizes}
        for size, value in sizes.items():
            if value is None:
                raise ArchitectureError(f"costs.{name}: {size} is unknown")
        return Priced(name, component, model, sizes)

    return price

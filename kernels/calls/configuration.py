"""Tile sizes, warps and stages of one launch, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Configuration:
    """How one launch of a kernel is tiled on an architecture.

    ``tiles`` are the kernel's compile-time sizes by the ranks of its cascade, ``block_p`` queries
    by ``block_m`` keys say. ``when`` bounds the sizes a row is for, from above (``head_size: 64``
    is for head sizes up to 64); rows are tried in the order of the file.
    """

    launch: str
    architecture: str
    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    when: tuple[tuple[str, int], ...] = ()
    source: str = ""

    def serves(self, architecture: str, sizes: Mapping[str, int]) -> bool:
        """Whether the row is for this architecture and these sizes."""
        return architecture == self.architecture and all(
            name in sizes and sizes[name] <= most for name, most in self.when
        )

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told besides the tiles."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @staticmethod
    def from_data(row: Mapping[str, Any], source: str = "") -> Configuration:
        """Return the configuration of one row of a data file."""
        return Configuration(
            launch=row["launch"],
            architecture=row["architecture"],
            tiles=tuple(row["tiles"].items()),
            warps=row["warps"],
            stages=row["stages"],
            when=tuple(row.get("when", {}).items()),
            source=row.get("source", source),
        )

"""The schema of a kernel design's file; `design.gpu_kernel` says what the words mean."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.spec import Spec, explain

Text = str | float | int


class ConstantFile(Spec):
    """A constant of the model that a fit may move."""

    default: float
    low: float
    high: float
    meaning: str

    @model_validator(mode="after")
    def _is_in_its_range(self) -> ConstantFile:
        if not self.low <= self.default <= self.high:
            raise ValueError("expected low <= default <= high")
        return self


class GridFile(Spec):
    """What a block owns: a tile of ``size``, for each of ``copies``, of which ``split`` share one.

    ``workers`` spreads all tiles evenly over so many blocks instead (stream-K).
    """

    size: Text
    tile: Text
    copies: Text = "B * H"
    split: Text = 1
    workers: Text | None = None
    order: Literal["in-order", "longest-first", "static"] = "in-order"


class LoopFile(Spec):
    """What a block walks over, and which part of it the block's tile sees."""

    size: Text
    tile: Text
    sees: Literal["all", "keys", "queries"] = "all"
    density: Text = 1


class StreamFile(Spec):
    """A tensor that every block of a copy reads, tile by tile."""

    tile: Text
    whole: Text


class LaunchFile(Spec):
    """The schema of a launch; without a grid it is a flat pass, of whole sizes."""

    name: str
    when: Text = 1
    source: str = ""
    cascade: str | None = None
    sizes: dict[str, Text] = {}
    copies: Text = "B * H"
    grid: GridFile | None = None
    loop: LoopFile | None = None
    phases: tuple[dict[str, tuple[str, ...]], ...] = ()
    final: tuple[str, ...] = ()
    accumulated: tuple[str, ...] = Field((), description="the tensor cores add them in place")
    extras: dict[str, Text] = Field({}, description="operations a tile beyond the cascade")
    masking: dict[str, Text] = Field({}, description="operations a tile that is partly seen")
    warps: Text = 4
    helpers: Text = 0
    streams: Text | None = Field(None, description="independent sequences of phases a block")
    registers: Text = "processors.registers_per_thread"
    keep: dict[str, dict[str, Text]] = Field({}, description="level -> tensor -> bytes a block")
    reads: dict[str, Text] = Field({}, description="tensor -> bytes from DRAM, once")
    writes: dict[str, Text] = {}
    streamed: dict[str, StreamFile] = {}
    moves: dict[Literal["shared", "l2"], Text] = Field(
        {}, description="bytes a tile that the warps move: like vector work"
    )
    feeds: Text = Field(0, description="bytes a tile that the tensor cores read from shared memory")
    rates: dict[str, Text] = Field({}, description="part of the rate of a unit or level")
    exposed: Text = "calibration.exposed"
    block_cycles: Text = 0


class KernelFile(Spec):
    """The schema of a kernel design's file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    description: str = ""
    source: str = ""
    cascade: str
    architecture: str | dict[str, Any]
    ranks: tuple[str, ...]
    defaults: dict[str, Text] = Field({}, description="sizes of ranks that may be left out")
    options: dict[str, float | int] = {}
    calibration: dict[str, ConstantFile] = {}
    let: dict[str, Text] = {}
    tiles: dict[str, tuple[dict[str, Text], ...]] = {}
    require: tuple[dict[Literal["that", "otherwise"], str], ...] = ()
    launches: tuple[LaunchFile, ...] = Field(min_length=1)


def read_kernel(content: Any, where: str) -> KernelFile:
    """Return the checked content of a kernel design's file; MappingError names the path."""
    try:
        return KernelFile.model_validate(content)
    except ValidationError as error:
        raise MappingError(explain(error, where)) from None

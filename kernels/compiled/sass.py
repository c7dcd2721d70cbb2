"""The machine code of a compiled kernel: resources, loops by their back-edges, instruction mix.

Reads what ``cuobjdump --dump-resource-usage`` and ``nvdisasm -c`` print; both tools come with
the triton package, so neither a GPU nor a CUDA toolkit is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from einfuse.einsum import EinfuseError

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LABEL = re.compile(r"\s*(\.L_?\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_TARGET = re.compile(r"`\((\.L_?\w+)\)")
# The part of an opcode behind its first dot that makes another operation of it.
_QUALIFIED = {"MUFU", "WARPGROUP", "SYNCS"}
MATRIX = ("HGMMA", "HMMA", "QGMMA", "QMMA", "IGMMA", "IMMA", "DMMA")
SPILLS = ("LDL", "STL")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a thread (registers, bytes of stack and local memory) and a block (shared) occupy."""

    registers: int
    stack_bytes: int
    static_shared_bytes: int
    local_bytes: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction; ``target`` is the position a branch goes to, if it has one."""

    opcode: str
    operands: str = ""
    predicate: str = ""
    target: int | None = None

    @property
    def operation(self) -> str:
        """The opcode without the modifiers that do not change what is computed.

        >>> Instruction("MUFU.EX2.FTZ").operation, Instruction("HMMA.16816.F32").operation
        ('EX2', 'HMMA')
        """
        name, *modifiers = self.opcode.split(".")
        if name == "MUFU" and modifiers:
            return modifiers[0]
        return ".".join((name, *modifiers[:1])) if name in _QUALIFIED else name


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions from ``start`` to the backward branch at ``end``, both included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Program:
    """The instructions of a kernel in the order of their addresses."""

    instructions: tuple[Instruction, ...]

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Every loop, one per head, outer loops before the loops they hold."""
        ends: dict[int, int] = {}
        for position, instruction in enumerate(self.instructions):
            head = instruction.target
            if head is not None and head < position:  # a branch to itself is the trap at the end
                ends[head] = position
        return tuple(Loop(start, end) for start, end in sorted(ends.items()))

    @property
    def innermost_loops(self) -> tuple[Loop, ...]:
        """The loops that hold no other loop."""
        loops = self.loops
        return tuple(
            loop
            for loop in loops
            if not any(o != loop and loop.start <= o.start and o.end <= loop.end for o in loops)
        )

    def count(self, loop: Loop | None = None) -> Counter[str]:
        """Return operation -> number of instructions in a loop, or in the whole program."""
        body = self.instructions[loop.start : loop.end + 1] if loop else self.instructions
        return Counter(instruction.operation for instruction in body)


def spill_bytes(resources: Resources) -> int:
    """Return the bytes of stack and local memory a thread needs: zero in a kernel without spills.

    >>> spill_bytes(Resources(registers=255, stack_bytes=16, static_shared_bytes=0, local_bytes=0))
    16
    """
    return resources.stack_bytes + resources.local_bytes


def parse_resources(text: str) -> Resources:
    """Return the resources in what ``cuobjdump --dump-resource-usage`` prints.

    >>> parse_resources("  REG:180 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:624").registers
    180
    """
    found = _RESOURCES.search(text)
    if found is None:
        raise EinfuseError(f"cuobjdump: expected a line 'REG:... STACK:...', found {text!r:.200}")
    return Resources(*map(int, found.groups()))


def parse_program(text: str) -> Program:
    """Return the program in what ``nvdisasm -c`` prints.

    >>> text = '''
    ... .L_x_0:
    ...     /*0010*/              FFMA R1, R2, R3, R4 ;
    ...     /*0020*/         @!P0 BRA `(.L_x_0) ;
    ... '''
    >>> parse_program(text).loops
    (Loop(start=0, end=1),)
    """
    labels: dict[str, int] = {}
    raw: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if (label := _LABEL.match(line)) is not None:
            labels[label[1]] = len(raw)
        elif (found := _INSTRUCTION.match(line)) is not None:
            raw.append((found[2], found[3].strip(), found[1] or ""))
    if not raw:
        raise EinfuseError(f"nvdisasm: expected instructions, found none in {text!r:.200}")
    return Program(tuple(_instruction(*fields, labels) for fields in raw))


def read_cubin(cubin: bytes) -> tuple[Resources, Program]:
    """Return the resources and the program of a compiled kernel (an ELF file of one function)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "--dump-resource-usage", str(path))
        listing = _run("nvdisasm", "-c", str(path))
    return parse_resources(usage), parse_program(listing)


def _instruction(
    opcode: str, operands: str, predicate: str, labels: Mapping[str, int]
) -> Instruction:
    target = _TARGET.search(operands) if opcode.startswith(("BRA", "CALL", "JMP")) else None
    return Instruction(opcode, operands, predicate, labels.get(target[1]) if target else None)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(_tools() / tool), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EinfuseError(f"{tool} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _tools() -> Path:
    try:
        import triton
    except ModuleNotFoundError:
        raise EinfuseError(
            "reading machine code needs triton's own tools: pip install 'einfuse[gpu]'"
        ) from None
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

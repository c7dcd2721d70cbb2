"""AccelForge's mapping files as designs: `read_mapping`.

::

    mapping:
      nodes:
      - !Storage {tensors: [T0, W0, T1], component: GlobalBuffer}
      - !Temporal {rank_variable: m, tile_shape: 1}
      - !Spatial {rank_variable: n1, tile_shape: 1, name: reuse_input, component: PE}
      - !Compute {einsum: Matmul0, component: MAC}

Children of ``!Sequential`` are ``!Nested``. The design counts as AccelForge does: ``explicit``
retention, drains that are read, Einsums one after the other. What AccelForge says in another way:

- It counts every Einsum by itself, with the storage on its path. A storage of an intermediate that
  all its Einsums begin with is one home here, above them; storage that would be filled once here
  and once for each Einsum there is refused, unless it can stand in each of them.
- A copy (a view of the cascade) costs nothing where both sides lie in the outermost memory. One to
  another level is kept there as ``copied``: read where it comes from, written where it arrives, in
  a time of its own. So `evaluate_mapping` there counts it; its mapper counts it the other way
  round (`docs/accelforge.md`).
- Storage takes the room of a smaller tile where only loops over the tensor's own ranks lie beneath
  it; it stands beneath those loops here, which moves the same words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from einfuse.einsum import EinfuseError, closest, parse_yaml, render_template
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import Architecture
from einfuse.mapper.nest.reuse import REGISTERS
from einfuse.mapper.nest.workload import Facts

NAMES = {
    "Register": REGISTERS,
    "Z": "instances",
    "reuse_input": "columns",
    "reuse_output": "rows",
}
"""What AccelForge's architectures call the registers and the dimensions of the units."""

_KNOWN = ("Storage", "Temporal", "Spatial", "Sequential", "Nested", "Compute", "Reservation")


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    fields: Mapping[str, Any]
    children: tuple[tuple[_Node, ...], ...] = ()


def read_mapping(
    text: str,
    facts: Facts,
    architecture: Architecture,
    *,
    names: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    name: str = "mapping",
    source: str = "<accelforge>",
) -> dict[str, Any]:
    """Return the content of the design file of an AccelForge mapping.

    Args:
        text: YAML.
        facts: those of the cascade that it maps.
        architecture: whose memories, units and dimensions it names.
        names: what Einfuse calls an Einsum, a component or a spatial dimension of the file where
            the names differ; `NAMES` are known.
        settings: values of template variables (``{{N_EINSUMS}}``).
        name: what the design is called.
        source: the file's name, for errors.

    Raises:
        EinfuseError: the file is no mapping, or has something that a design cannot say.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> from einfuse.mapper.nest.workload import facts
    >>> text = '''
    ... mapping:
    ...   nodes:
    ...   - !Storage {tensors: [A, B, Y], component: MainMemory}
    ...   - !Temporal {rank_variable: m, tile_shape: 1}
    ...   - !Compute {einsum: Y, component: MAC}
    ... '''
    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M\\ninput A[M], B[M]\\noutput Y\\nY[m] = A[m] * B[m]")
    >>> read_mapping(text, facts(cascade), load_architecture("simple"))["mapping"]
    ['for M in 1', 'compute Y on MAC']
    """
    try:
        nodes = _nodes(
            parse_yaml(render_template(text, settings or {}, source), source, loader=_Loader),
            source,
        )
        reader = _Reader(facts, architecture, {**NAMES, **(names or {})})
        lines = reader.design(nodes)
    except MappingError as error:
        raise MappingError(f"{source}: {error}") from None
    return {
        "schema": 1,
        "name": name,
        "description": f"Converted from the AccelForge mapping {source}.",
        "cascade": facts.cascade.source,
        "architecture": architecture.name,
        "retention": "explicit",
        "drains": "read",
        "composition": "sequential",
        "mapping": lines,
    }


class _Reader:
    """Turns nodes into lines; see the module."""

    def __init__(self, facts: Facts, architecture: Architecture, names: Mapping[str, str]) -> None:
        self.facts, self.architecture, self.names = facts, architecture, names
        cascade = facts.cascade
        self.outside = {facts.root(name) for name in (*cascade.inputs, *cascade.outputs)}
        self.backed: dict[str, str] = {}  # intermediate -> the level that backs it
        self.handed: list[str] = []  # intermediates that the outermost memory backs

    def design(self, nodes: tuple[_Node, ...]) -> list[Any]:
        lines = self.nest(nodes, frozenset(), ())
        handed = [f"keep {', '.join(self.handed)} at {self.outermost}"] if self.handed else []
        return [*handed, *lines]

    @property
    def outermost(self) -> str:
        return self.architecture.memories[0]

    def nest(
        self, nodes: tuple[_Node, ...], held: frozenset[str], loops: tuple[str, ...]
    ) -> list[Any]:
        """Return the lines of nodes; ``held`` are the tensors that have storage above."""
        lines: list[Any] = []
        waiting: list[tuple[str, str]] = []  # tensor and level, stored beneath the next own loops
        below = self.einsums(nodes)
        for number, node in enumerate(nodes):
            if node.kind == "Storage":
                for tensor in self.tensors(node, below):
                    level = self.component(node)
                    if tensor in held:
                        waiting.append((tensor, level))
                    else:
                        lines += self.back(tensor, level, below, loops)
                        held |= {tensor}
                continue
            ranks = {self.rank(node, below)} if node.kind == "Temporal" else set[str]()
            still = [
                (t, level) for t, level in waiting if ranks and ranks <= self.indexed(t, below)
            ]
            alone = [w for w in waiting if w not in still]
            waiting = still
            match node.kind:
                case "Temporal":
                    lines += self.keeps(alone, below)
                    rank = self.rank(node, below)
                    lines.append(f"for {rank} in {self.tile(node)}")
                    loops = (*loops, rank)
                case "Spatial":
                    lines += self.keeps(alone, below)
                    rank = self.rank(node, below)
                    dimension = self.dimension(node, rank, below, nodes[number:])
                    lines.append(f"parallel {rank} in {self.tile(node)} over {dimension}")
                    loops = (*loops, rank)
                case "Compute":
                    lines += self.keeps(alone, below)
                    unit = self.known(node, "component", self.architecture.units, "unit")
                    lines.append(f"compute {below[0]} on {unit}")
                case "Sequential":
                    own = {
                        w for w in alone if len(self.users(w[0], below)) == 1
                    }  # they stay where they are
                    lines += self.keeps([w for w in alone if w in own], below)
                    pushed = [w for w in alone if w not in own]
                    lines += self.split(node, held, loops, pushed)
                case _:
                    pass
        return lines

    def everywhere(self, tensor: str) -> list[str]:
        return self.users(tensor, tuple(self.facts.einsums))

    def split(
        self,
        node: _Node,
        held: frozenset[str],
        loops: tuple[str, ...],
        pushed: Sequence[tuple[str, str]],
    ) -> list[Any]:
        """Return a branch, and above it the homes of intermediates that its children begin with."""
        lines: list[Any] = []
        for child in node.children:
            below = self.einsums(child)
            for first in child:
                if first.kind != "Storage":
                    break
                level = self.component(first)
                for tensor in self.tensors(first, below):
                    if tensor not in held and tensor not in self.outside:
                        self.check_begins(tensor, level, node)
                        lines += self.back(tensor, level, self.einsums([node]), loops)
                        held |= {tensor}
                        self.backed[tensor] = level
        children: list[list[Any]] = []
        for child in node.children:
            if self.copies(child):
                continue
            own = [w for w in pushed if self.users(w[0], self.einsums(child))]
            stored = tuple(
                _Node("Storage", {"tensors": [tensor], "component": level}) for tensor, level in own
            )
            children.append(self.nest((*stored, *self.unbacked(child)), held, loops))
        return [*lines, {"branch": children}]

    def copies(self, child: Sequence[_Node]) -> bool:
        """Whether a child is the copy that a view stands for; where it lies is checked."""
        last = child[-1]
        view = str(last.fields.get("einsum"))
        if last.kind != "Compute" or self.facts.roots.get(view, view) == view:
            return False
        stored = [n for n in child if n.kind == "Storage"]
        for node in stored:
            if self.component(node) != self.outermost:
                raise MappingError(
                    f"{view} is copied through {node.fields['component']}: expected its source at "
                    f"{self.outermost}, and the storage of {view} above all that read it"
                )
        return True

    def check_begins(self, tensor: str, level: str, node: _Node) -> None:
        """Every child of a split that uses an intermediate has to begin with its storage."""
        for child in node.children:
            below = self.einsums(child)
            users = self.users(tensor, below)
            stored = {
                t
                for first in itertools.takewhile(lambda n: n.kind == "Storage", child)
                if self.component(first) == level
                for t in self.tensors(first, below)
            }
            if users and tensor not in stored:
                raise MappingError(
                    f"{tensor} has to stay at {level} for {users[0]}, whose nodes do not begin "
                    "with its storage there"
                )

    def unbacked(self, child: tuple[_Node, ...]) -> Iterator[_Node]:
        """Yield a child's nodes without the storage that stands above the branch by now."""
        first = True
        seen: set[str] = set()
        for node in child:
            first = first and node.kind == "Storage"
            if not first:
                yield node
                continue
            level = self.component(node)
            tensors = [
                t
                for t in self.tensors(node, self.einsums(child))
                if self.backed.get(t) != level or t in seen
            ]
            seen |= set(self.tensors(node, self.einsums(child)))
            if tensors:
                yield _Node("Storage", {**node.fields, "tensors": tensors})

    def back(
        self, tensor: str, level: str, below: Sequence[str], loops: tuple[str, ...]
    ) -> list[str]:
        """Return the line of the outermost storage of a tensor, if it needs one."""
        if tensor in self.outside:
            if level != self.outermost:
                views = [v for v, root in self.facts.roots.items() if root == tensor != v]
                if len(views) == 1 and not loops:
                    return [f"keep {views[0]} at {level} copied"]
                raise MappingError(
                    f"{tensor} comes from outside, and lies at {level}: expected it at "
                    f"{self.outermost}"
                )
            if loops:
                raise MappingError(
                    f"{tensor} is stored at {level} beneath the loop over {loops[0]}: a cascade's "
                    "inputs and outputs lie there whole"
                )
            return []
        if level == self.outermost:
            if loops:
                raise MappingError(
                    f"{tensor} is stored at {level} beneath the loop over {loops[0]}: expected it "
                    "above all loops"
                )
            self.handed += [tensor] if tensor not in self.handed else []
            return []
        for name in self.everywhere(tensor):
            if name not in below:
                raise MappingError(
                    f"{tensor} is stored at {level} where {name} does not see it: expected its "
                    f"storage above all of {', '.join(self.everywhere(tensor))}"
                )
        return [f"keep {tensor} at {level}"]

    def keeps(self, stored: Sequence[tuple[str, str]], below: Sequence[str]) -> list[str]:
        for tensor, level in stored:
            users = self.users(tensor, below)
            if len(users) > 1:
                raise MappingError(
                    f"{tensor} at {level} is filled for each of {', '.join(users)} there, and once "
                    "here: store it in each of them"
                )
        return [f"keep {tensor} at {level}" for tensor, level in stored]

    # What the nodes name.

    def einsums(self, nodes: Sequence[_Node]) -> tuple[str, ...]:
        found: list[str] = []
        for node in nodes:
            if node.kind == "Compute" and not self.copies([node]):
                found.append(self.known(node, "einsum", tuple(self.facts.einsums), "Einsum"))
            for child in node.children:
                found += self.einsums(child)
        return tuple(found)

    def users(self, tensor: str, einsums: Sequence[str]) -> list[str]:
        every = self.facts.einsums
        return [
            name
            for name in einsums
            if any(u.tensor == tensor for u in (*every[name].operands, *every[name].outputs))
        ]

    def indexed(self, tensor: str, einsums: Sequence[str]) -> frozenset[str]:
        every = [self.facts.einsums[name] for name in einsums]
        used = [u for e in every for u in (*e.operands, *e.outputs) if u.tensor == tensor]
        return frozenset[str]().union(*(u.ranks for u in used))

    def tensors(self, node: _Node, below: Sequence[str]) -> list[str]:
        listed = node.fields.get("tensors")
        if not isinstance(listed, list) or not listed:
            raise MappingError(f"a storage needs a list of tensors, found {listed!r}")
        found = []
        for given in map(str, listed):
            known = given in self.facts.roots or given in self.facts.ranks
            tensor = self.facts.root(given if known else self.names.get(given, given))
            if tensor not in self.facts.ranks:
                near = closest(tensor, self.facts.ranks)
                raise MappingError(f"storage of an unknown tensor '{given}'{near}")
            if self.users(tensor, below):
                found.append(tensor)
        return found

    def component(self, node: _Node) -> str:
        levels = (*self.architecture.memories, REGISTERS)
        return self.known(node, "component", levels, "level")

    def dimension(self, node: _Node, rank: str, below: Sequence[str], rest: Sequence[_Node]) -> str:
        units = [
            self.known(n, "component", self.architecture.units, "unit")
            for n in rest
            if n.kind == "Compute"
        ]
        if len(units) != 1:
            raise MappingError("a spatial loop above a split has no unit of its own")
        unit = units[0]
        dimension = self.known(node, "name", self.architecture.dimensions(unit), "dimension")
        if self.architecture.shares(unit).get(dimension) == "operands":
            for inner in rest:
                if inner.kind != "Storage" or self.component(inner) != REGISTERS:
                    continue
                for tensor in self.tensors(inner, below):
                    if rank not in self.indexed(tensor, below):
                        raise MappingError(
                            f"{tensor} is kept in registers and does not depend on {rank}, which "
                            f"is spread over {node.fields['name']}: nothing else is shared there"
                        )
        return dimension

    def rank(self, node: _Node, below: Sequence[str]) -> str:
        given = node.fields.get("rank_variable")
        rank = str(given).upper()
        known = sorted({r for name in below for r in self.facts.einsums[name].ranks})
        if isinstance(given, list | set | dict) or rank not in known:
            near = closest(rank, known)
            raise MappingError(f"loop over an unknown rank variable '{given}'{near}")
        return rank

    def tile(self, node: _Node) -> int:
        tile = node.fields.get("tile_shape")
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
            raise MappingError(
                f"a loop over {node.fields.get('rank_variable')} needs a tile_shape of a whole "
                f"number, found {tile!r}"
            )
        if node.fields.get("initial_tile_shape") is not None:
            raise MappingError("a design cannot say 'initial_tile_shape'")
        return tile

    def known(self, node: _Node, key: str, known: Sequence[str], what: str) -> str:
        given = str(node.fields.get(key))
        name = given if given in known else self.names.get(given, given)
        if name not in known:
            raise MappingError(
                f"{node.kind.lower()}: no {what} '{given}'{closest(name, known)}; if it has "
                f"another name here, say so: {given}=NAME"
            )
        return name


class _Loader(yaml.SafeLoader):
    """Safe YAML, with AccelForge's tags as keys."""


def _tagged(loader: _Loader, kind: str, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(
            None, None, f"!{kind} needs keys and values", node.start_mark
        )
    fields = {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}
    return {"!": kind, **fields}


_Loader.add_multi_constructor("!", _tagged)


def _nodes(document: Any, source: str) -> tuple[_Node, ...]:
    body = document.get("mapping") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        raise EinfuseError(f"{source}: expected a mapping with 'mapping: nodes:'")
    return _listed(body.get("nodes"))


def _listed(given: Any) -> tuple[_Node, ...]:
    if not isinstance(given, list) or not given:
        raise MappingError(f"expected a list of nodes, found {given!r}")
    nodes: list[_Node] = []
    for number, entry in enumerate(given):
        if not isinstance(entry, dict) or "!" not in entry:
            raise MappingError(f"expected a node such as !Temporal, found {entry!r}")
        kind = entry["!"]
        if kind not in _KNOWN:
            raise MappingError(f"a design cannot say !{kind}{closest(kind, _KNOWN)}")
        fields = {key: value for key, value in entry.items() if key not in ("!", "nodes")}
        last = number == len(given) - 1
        if last != (kind in ("Compute", "Sequential", "Nested")):
            raise MappingError(
                f"!{kind}: expected a compute or a split at the end of the nodes, and nowhere else"
            )
        match kind:
            case "Sequential":
                children = _children(entry.get("nodes"))
                nodes.append(_Node(kind, fields, children))
            case "Nested":
                nodes += _listed(entry.get("nodes"))
            case _:
                nodes.append(_Node(kind, fields))
    return tuple(nodes)


def _children(given: Any) -> tuple[tuple[_Node, ...], ...]:
    if not isinstance(given, list) or not given:
        raise MappingError(f"!Sequential: expected a list of nodes, found {given!r}")
    return tuple(_listed([child]) for child in given)

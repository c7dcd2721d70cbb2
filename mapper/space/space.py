"""The map space: every mapping of a cascade on an architecture that the search considers.

A mapping (`space.structures`) is chosen in these steps; `count_space` counts the products.

1. A size for the inner factor of each split that the shape leaves open.
2. *Groups*: runs of Einsums in the cascade's order. Groups hand tensors on through the outermost
   memory; in a group, what is made and read stays at one *exchange* level.
3. The group's loops: every rank that all its Einsums may share (`space.fusion_rules`), in
   tiles; those that every tensor has come first, the others in any order. A loop may also go over
   a rank that makers of what stays inside lack: they compute it anew in every iteration.
4. *Blocks*: runs of a group's Einsums behind a barrier share loops over ranks that the group as a
   whole may not, in tiles. A run without such a loop is no block.
5. Homes: a tensor from outside feeds the units from any level, and may live at levels between,
   above all loops or right below a loop that it depends on. What a group exchanges lives right
   below the last loop that all who touch it depend on; a carried tensor above its iterative loop.
   What an Einsum makes point by point takes over the room of an operand that it is last to read.
   What Einsums under the same loops alone make and read, each word in one lane, may go from
   register to register instead, and needs no home (`einfuse.mapper.grouped.forwarding`).
6. Leaves: a unit that has the operations, at most one rank on each of its dimensions, as many
   lanes as share the extent evenly in as few waves as can be; the innermost loop in time is any,
   the others are in the order of the ranks. Of a unit with instances, and of the memories that
   each of them has, one is used.

A group may overlap its Einsums, one tile behind the other, if it has more tiles than the longest
offset and no carried value comes too late; it keeps copies of what is under way. Otherwise one
Einsum runs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations, product
from typing import Any

from einfuse.einsum import Cascade, CascadeError, bind, bind_known, closest, expect
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import INSTANCES, Architecture
from einfuse.mapper.nest.pieces import Leaf
from einfuse.mapper.nest.workload import Facts, facts

from .constraint_checks import check_constraints, find_units, parse_relations
from .constraints import Constraints
from .fusion_rules import Legality
from .relations import Relation
from .structures import Home, offsets, waits
from .tiling import tile_choices

_MEDIUM = 256  # of a rank: about the lanes of a dimension


@dataclass(frozen=True, slots=True)
class Structure:
    """A group without its sizes: blocks, loops, and levels of what several Einsums touch.

    ``faces`` are the levels (0: outermost) that feed the units with tensors from outside that
    several Einsums of the group touch; ``exchange`` is the level of what stays inside.
    """

    blocks: tuple[tuple[str, ...], ...]
    loops: tuple[str, ...]
    inner: tuple[tuple[str, ...], ...]
    exchange: int
    faces: tuple[tuple[str, int], ...]

    @property
    def einsums(self) -> tuple[str, ...]:
        """The Einsums, in order."""
        return tuple(name for block in self.blocks for name in block)


@dataclass(frozen=True, slots=True)
class Roles:
    """What the tensors of a group are to it: made and read inside only, or also from outside."""

    inside: tuple[str, ...]
    through: tuple[str, ...]
    outside: tuple[str, ...]
    touched_by: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class MapSpace:
    """The mappings of a cascade on an architecture at a shape, under constraints.

    Raises:
        ArchitectureError: no unit has an Einsum's operations.
        MappingError: the shape lacks a rank, or the constraints name what is not there or
            contradict each other.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> shape = {"B": 1, "H": 1, "E": 64, "F": 64, "M": 1024, "P": 1024}
    >>> space = MapSpace(load("attention/3-pass"), load_architecture("flat"), shape)
    >>> space.batch, space.units_of["GM"], len(list(space.splits()))
    (('B', 'H'), ('array_1d',), 1)
    """

    cascade: Cascade
    architecture: Architecture
    shape: Mapping[str, int]
    constraints: Constraints = field(default_factory=Constraints)
    batch: tuple[str, ...] | None = None

    facts: Facts = field(init=False, repr=False)
    legality: Legality = field(init=False, repr=False)
    values: Mapping[str, Any] = field(init=False, repr=False)
    lanes: Mapping[str, Mapping[str, float]] = field(init=False, repr=False)
    units_of: Mapping[str, tuple[str, ...]] = field(init=False, repr=False)
    relations: tuple[Relation, ...] = field(init=False, repr=False)
    _roles: dict[tuple[str, ...], Roles] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        expect(self.cascade, Cascade, "cascade", "a cascade (of einfuse.load_cascade)")
        made = "what einfuse.load_architecture returns"
        expect(self.architecture, Architecture, "architecture", made)
        expect(self.shape, Mapping, "shape", "rank -> size, a mapping")
        expect(self.constraints, Constraints, "constraints", "einfuse.Constraints")
        put = object.__setattr__
        put(self, "_roles", {})
        known = self.cascade.rank_names
        batch = tuple(r for r in ("B", "H") if r in self.shape and r not in known)
        put(self, "batch", batch if self.batch is None else self.batch)
        assert self.batch is not None
        for rank in self.shape:
            if rank not in known and rank not in self.batch:
                near = closest(rank, (*self.batch, *known))
                raise MappingError(f"{self.cascade.name}: no rank '{rank}'{near}")
        for rank in self.batch:
            if rank not in self.shape:
                raise MappingError(
                    f"rank {rank} has no size: give {rank}=... in the shape (--shape)"
                )
        put(self, "facts", facts(self.cascade, self.batch))
        put(self, "legality", Legality(self.facts))
        put(self, "values", self.architecture.values())
        architecture = self.architecture
        put(
            self,
            "lanes",
            {
                unit: {
                    d: self.values[f"{unit}.{d}"]
                    for d in architecture.dimensions(unit)
                    if d != INSTANCES
                }
                for unit in architecture.units
            },
        )
        given, known_facts = self.constraints, self.facts
        check_constraints(given, known_facts, architecture, self.batch)
        put(self, "relations", parse_relations(given, known_facts, self.values))
        units_of = {
            name: find_units(given, known_facts, architecture, self.lanes, name)
            for name in known_facts.einsums
        }
        put(self, "units_of", units_of)

    @property
    def pipelined(self) -> frozenset[str]:
        """The units that overlap the operations of a point: no mapping is better without."""
        able = {u for u, unit in self.architecture.file.units.items() if unit.pipelined}
        wanted = self.constraints.pipelined
        return frozenset(able if wanted is None else able & {*wanted})

    @property
    def einsums(self) -> tuple[str, ...]:
        """The Einsums that need a place, in order."""
        return tuple(self.facts.einsums)

    @property
    def memories(self) -> tuple[str, ...]:
        """The memory levels, outermost first."""
        return self.architecture.memories

    def splits(self) -> Iterator[dict[str, int]]:
        """Yield the sizes of every rank, for each choice of the open splits."""
        batch = {rank: int(self.shape[rank]) for rank in self.batch or ()}
        for sizes in self._split(self._given):
            yield {**sizes, **batch}

    @property
    def _given(self) -> dict[str, int]:
        return {r: n for r, n in self.shape.items() if r in self.cascade.rank_names}

    def _split(self, given: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Decide one open split after the other: ranks of one size tie them together."""
        known = bind_known(self.cascade, given, ragged=True)
        for split in self.cascade.splits:
            if split.inner in known or split.outer in known:
                continue
            if split.whole not in known:
                raise MappingError(
                    f"rank {split.whole} has no size: give {split.whole}=... in the shape"
                )
            found, contradiction = False, None
            for tile in self.tiles(split.inner, known[split.whole]):
                try:
                    for sizes in self._split({**given, split.inner: tile}):
                        found = True
                        yield sizes
                except CascadeError as error:  # no size of a split that it is tied to
                    contradiction = contradiction or error
            if contradiction is not None and not found:
                raise contradiction
            return
        sizes = bind(self.cascade, given, ragged=True)
        yield {rank: int(size) for rank, size in sizes.items()}

    def open_sizes(self, sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """The sizes that the shape leaves to the mapping."""
        fixed = bind_known(self.cascade, self._given, ragged=True)
        inner = [s.inner for s in self.cascade.splits]
        outer = {s.inner: s.outer for s in self.cascade.splits}
        return tuple(
            (rank, sizes[rank]) for rank in inner if rank not in fixed and outer[rank] not in fixed
        )

    def tiles(self, rank: str, size: int) -> tuple[int, ...]:
        """The tiles that a loop over a rank may have; a batch rank's are the whole and 1."""
        fixed = self.constraints.tiles.get(rank)
        if fixed is not None:
            return tuple(dict.fromkeys(min(tile, size) for tile in fixed))
        if rank in (self.batch or ()):
            return tuple(dict.fromkeys((size, 1)))
        return tile_choices(size, self.constraints.tile_choices)

    def loop_tiles(self, rank: str, size: int, einsums: tuple[str, ...]) -> tuple[int, ...]:
        """The tiles of a loop above some Einsums: 1 where it carries a tensor among them on.

        A loop that repeats those that lack its rank has more than one iteration.
        """
        if rank in self.legality.carried(einsums):
            return (1,)
        repeats = any(rank not in self.facts.einsums[name].ranks for name in einsums)
        return tuple(t for t in self.tiles(rank, size) if t < size or not repeats)

    def structures(self, einsums: tuple[str, ...]) -> Iterator[Structure]:
        """Yield the structures of a group; none if they cannot stand in one."""
        exchange, *faces = self.levels(einsums)
        every = [[(tensor, level) for level in levels] for tensor, levels in faces]
        for level in exchange[1]:
            for face in product(*every):
                yield from self.structures_at(einsums, level, face)

    def structures_at(
        self, einsums: tuple[str, ...], exchange: int, faces: tuple[tuple[str, int], ...]
    ) -> Iterator[Structure]:
        """Yield the structures of a group whose levels are decided."""
        if self.legality.torn(einsums) or not self._fusion_allowed(einsums):
            return
        shared = self.legality.shared(einsums)
        for repeated in self._repeated(einsums):
            common = tuple(r for r in self.legality.order if r in {*shared, *repeated})
            for blocks, inner in self._blockings(einsums, common):
                for loops in self._orders(common, einsums):
                    structure = Structure(blocks, loops, inner, exchange, faces)
                    if not self._keeps_whole(structure, repeated):
                        yield structure

    def levels(self, einsums: tuple[str, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Between which levels a group decides: of what stays inside (named ""), and of the rest.

        Those are the tensors from outside that several Einsums touch: what feeds the units.
        """
        roles = self.roles(einsums)
        exchanged = (*roles.inside, *roles.through)
        shared_tensors = [t for t in roles.outside if len(roles.touched_by[t]) > 1]
        exchange = self.exchange_levels(exchanged) if exchanged else (0,)
        return (("", exchange), *((t, self.face_levels(t)) for t in shared_tensors))

    def _repeated(self, einsums: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yield the sets of ranks whose loops repeat the Einsums that lack them: first, none."""
        allowed, inside = self.constraints.repeat, self.roles(einsums).inside
        ranks = [
            rank
            for rank in self.legality.repeatable(einsums, inside)
            if allowed is None or rank in allowed
        ]
        for count in range(len(ranks) + 1):
            yield from combinations(ranks, count)

    def _keeps_whole(self, structure: Structure, repeated: tuple[str, ...]) -> bool:
        """Whether something that a loop repeats is there through all of it: nothing is won then."""
        if not repeated:
            return False
        places = self._places(structure)
        return any(
            places[output.tensor][1] <= structure.loops.index(rank) + 1
            for rank in repeated
            for name in structure.einsums
            if rank not in self.facts.einsums[name].ranks
            for output in self.facts.einsums[name].outputs
        )

    def roles(self, einsums: tuple[str, ...]) -> Roles:
        """What each tensor is to a group; answers are kept."""
        if einsums not in self._roles:
            self._roles[einsums] = self._find_roles(einsums)
        return self._roles[einsums]

    def _find_roles(self, einsums: tuple[str, ...]) -> Roles:
        every = self.facts.einsums
        touched: dict[str, list[str]] = {}
        for name in einsums:
            for used in (*every[name].operands, *every[name].outputs):
                names = touched.setdefault(used.tensor, [])
                if name not in names:
                    names.append(name)
        made = {o.tensor for name in einsums for o in every[name].outputs}
        read = {o.tensor for name in einsums for o in every[name].operands}
        elsewhere = {o.tensor for n, e in every.items() if n not in einsums for o in e.operands}
        wanted = elsewhere | {self.facts.root(name) for name in self.cascade.outputs}
        return Roles(
            tuple(t for t in touched if t in made and t not in wanted),
            tuple(t for t in touched if t in made and t in wanted and t in read),
            tuple(t for t in touched if t not in made or (t in wanted and t not in read)),
            {t: tuple(names) for t, names in touched.items()},
        )

    def touched(self, name: str) -> tuple[str, ...]:
        """The tensors that an Einsum reads or writes."""
        einsum = self.facts.einsums[name]
        return tuple(dict.fromkeys(u.tensor for u in (*einsum.operands, *einsum.outputs)))

    def face_levels(self, tensor: str) -> tuple[int, ...]:
        """The levels that may feed the units with a tensor from outside its group."""
        allowed = self.constraints.keep.get(tensor)
        return tuple(
            number
            for number, level in enumerate(self.memories)
            if (number == 0 or self._holds(level, tensor)) and (not allowed or level in allowed)
        )

    def chains(
        self, tensor: str, face: int, depths: tuple[int, ...]
    ) -> Iterator[tuple[tuple[str, int], ...]]:
        """Yield the places of a tensor, outermost first, of which the last is at a level."""
        if face == 0:
            yield ()
            return
        between = [n for n in range(1, face) if self._holds(self.memories[n], tensor)]
        for used in product((False, True), repeat=len(between)):
            levels = [n for n, use in zip(between, used, strict=True) if use] + [face]
            for places in product(depths, repeat=len(levels)):
                if list(places) == sorted(places):
                    yield tuple((self.memories[n], d) for n, d in zip(levels, places, strict=True))

    def depths(self, tensor: str, path: tuple[str, ...]) -> tuple[int, ...]:
        """Where a tensor from outside may live: above all loops, or below one it depends on."""
        ranks = self.facts.ranks[tensor]
        found = [n + 1 for n, rank in enumerate(path) if rank in ranks]
        if tensor in self.facts.carried:
            first = [n for n, rank in enumerate(path) if rank in self.facts.iterative]
            found = [depth for depth in found if not first or depth <= first[0]]
        return (0, *found)

    def exchange_depth(self, tensor: str, path: tuple[str, ...], einsums: tuple[str, ...]) -> int:
        """Where a tensor that a group makes and reads lives."""
        common = frozenset(path)
        for name in einsums:
            for used in (*self.facts.einsums[name].operands, *self.facts.einsums[name].outputs):
                if used.tensor == tensor:
                    common &= used.ranks
        deepest = 0
        for depth, rank in enumerate(path, 1):
            if tensor in self.facts.carried and rank in self.facts.iterative:
                break
            if rank in common:
                deepest = depth
        return deepest

    def overlays(self, structure: Structure) -> dict[str, str]:
        """Which tensors inside a group take over the room of one that they are made from.

        That is so where an Einsum is the last to touch an operand, makes as many points of it as
        it reads, and both live at the same place.
        """
        roles = self.roles(structure.einsums)
        places = self._places(structure)
        found: dict[str, str] = {}
        for name in structure.einsums:
            einsum = self.facts.einsums[name]
            for output in einsum.outputs:
                for operand in einsum.operands:
                    made, read = output.tensor, operand.tensor
                    if (
                        made not in found
                        and read not in found.values()
                        and {made, read} <= set(roles.inside)
                        and not {made, read} & (self.facts.carried | {*self.constraints.double})
                        and roles.touched_by[read][-1] == name
                        and roles.touched_by[made][0] == name
                        and einsum.ranks == self.facts.ranks[made] == self.facts.ranks[read]
                        and places[made] == places[read]
                    ):
                        found[made] = read
        return found

    def _places(self, structure: Structure) -> dict[str, tuple[int | None, int]]:
        """Where each tensor would be exchanged: in which block (None: several), at what depth."""
        block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}
        found: dict[str, tuple[int | None, int]] = {}
        for tensor, names in self.roles(structure.einsums).touched_by.items():
            blocks = {block_of[name] for name in names}
            block = blocks.pop() if len(blocks) == 1 else None
            inner = () if block is None else structure.inner[block]
            found[tensor] = block, self.exchange_depth(tensor, (*structure.loops, *inner), names)
        return found

    def home(
        self, tensor: str, places: tuple[tuple[str, int], ...], overlaying: str | None = None
    ) -> Home:
        """A tensor at its places, twice if the constraints say so."""
        return Home(tensor, places, tensor in self.constraints.double, overlaying)

    def leaves(self, einsum: str, ranks: tuple[str, ...]) -> Iterator[Leaf]:
        """Yield the ways to run an Einsum over the ranks that the loops above leave it."""
        last_ranks: tuple[str | None, ...] = ranks or (None,)
        if einsum in self.constraints.innermost:
            wanted = self.constraints.innermost[einsum]
            last_ranks = (wanted if wanted in ranks else last_ranks[-1],)
        fixed = [r for r in self.constraints.parallel.get(einsum, ()) if r in ranks]
        for unit in self.units_of[einsum]:
            pipelined = unit in self.pipelined
            for chosen in self.spreads(einsum, unit, ranks):
                spatial = tuple(
                    (rank, dimension)
                    for rank, dimension in zip(chosen, self.lanes[unit], strict=True)
                    if rank is not None
                )
                if len(spatial) < len(fixed):
                    continue
                for innermost in last_ranks:
                    order = tuple(r for r in ranks if r != innermost)
                    last = () if innermost is None else (innermost,)
                    yield Leaf(einsum, unit, (*order, *last), spatial, pipelined)

    def spreads(
        self, einsum: str, unit: str, ranks: Sequence[str]
    ) -> Iterator[tuple[str | None, ...]]:
        """Yield the ranks that an Einsum may have on each dimension of a unit, or fewer."""
        dimensions = tuple(self.lanes[unit])
        fixed = self.constraints.parallel.get(einsum)
        slots = permutations((*ranks, *(None for _ in dimensions)), len(dimensions))
        for chosen in dict.fromkeys(slots):
            if fixed is None or all(
                rank is None or fixed.get(rank) == dimension
                for rank, dimension in zip(chosen, dimensions, strict=True)
            ):
                yield chosen

    def overlap_depth(self, einsums: tuple[str, ...]) -> int | None:
        """How many tiles a group has under way when it overlaps; None if it may not."""
        if len(einsums) == 1 or waits(einsums, self.facts):
            return None
        return max(offsets(einsums, self.facts).values())

    def _fusion_allowed(self, einsums: tuple[str, ...]) -> bool:
        own = set(einsums)
        torn = any(set(fused) & own and not set(fused) <= own for fused in self.constraints.fuse)
        joined = any({x, y} <= own for x, y in self.constraints.split)
        return not torn and not joined

    def exchange_levels(self, tensors: tuple[str, ...]) -> tuple[int, ...]:
        """The levels at which a group may keep what it makes and reads."""
        allowed = self.constraints.exchange
        return tuple(
            number
            for number, level in enumerate(self.memories)
            if number > 0
            and (allowed is None or level in allowed)
            and all(
                self._holds(level, t) and level in self.constraints.keep.get(t, (level,))
                for t in tensors
            )
        )

    def _holds(self, level: str, tensor: str) -> bool:
        holds = self.architecture.file.memories[level].holds
        return holds is None or tensor in holds

    def _blockings(
        self, einsums: tuple[str, ...], common: tuple[str, ...]
    ) -> Iterator[tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]]:
        """Yield the runs of a group's Einsums, and the ranks that each shares beyond the group."""
        if len(einsums) == 1:
            yield (einsums,), ((),)
            return
        often = {
            rank
            for rank in self.legality.order
            if sum(rank in self.facts.einsums[name].ranks for name in einsums) > 1
        }

        every: list[list[tuple[int, tuple[str, ...]]]] = []  # from each Einsum on: end, ranks
        for first in range(len(einsums)):
            every.append([])
            for last in range(len(einsums), first, -1):
                run = einsums[first:last]
                inner = tuple(
                    r for r in self.legality.shared(run) if r not in common and r in often
                )
                alone = len(run) == 1
                if (alone or inner) and self._keeps_recurrences(run, common, inner):
                    every[first].append((last, inner))
        ends = {len(einsums)}  # from where the others can be in blocks too
        for first in reversed(range(len(einsums))):
            every[first] = [(last, inner) for last, inner in every[first] if last in ends]
            ends |= {first} if every[first] else set()

        def runs(first: int) -> Iterator[list[tuple[tuple[str, ...], tuple[str, ...]]]]:
            if first == len(einsums):
                yield []
                return
            for last, inner in every[first]:
                yield from ([(einsums[first:last], inner), *others] for others in runs(last))

        for chosen in runs(0):
            yield tuple(run for run, _ in chosen), tuple(inner for _, inner in chosen)

    def _keeps_recurrences(
        self, run: tuple[str, ...], common: tuple[str, ...], inner: tuple[str, ...]
    ) -> bool:
        own = set(run)
        return all(
            rank in common or not members & own or (members <= own and rank in inner)
            for rank, members in self.legality.recurrences
        )

    def _orders(
        self, ranks: tuple[str, ...], einsums: tuple[str, ...]
    ) -> Iterator[tuple[str, ...]]:
        """Yield orders of loops; ranks on which the same tensors depend keep theirs.

        Of those that cost alike, the one that is asked for stands for all.
        """
        tensors = self.roles(einsums).touched_by
        signature = {
            rank: frozenset(t for t in tensors if rank in self.facts.ranks[t]) for rank in ranks
        }
        asked = [rank for rank in self.constraints.order if rank in ranks]
        carried = self.legality.carried(einsums)  # tensors live above their loops
        common = {r for r in ranks if len(signature[r]) == len(tensors) and r not in carried}
        late = next((n for n, rank in enumerate(asked) if rank not in common), len(asked))
        first = [*asked[:late], *(r for r in ranks if r in common and r not in asked)]
        others = [r for r in ranks if r not in first]
        place = {rank: n for n, rank in enumerate(others)}
        for order in permutations(others):
            alike = [
                (a, b)
                for n, a in enumerate(order)
                for b in order[n + 1 :]
                if signature[a] == signature[b] and not {a, b} & {*self.facts.iterative, *asked}
            ]
            kept = [rank for rank in (*first, *order) if rank in asked]
            if kept == asked and all(place[a] < place[b] for a, b in alike):
                yield (*first, *order)


def with_few_choices(space: MapSpace, sizes: Mapping[str, int]) -> MapSpace:
    """Return a small part of a space.

    It has two tiles for each rank and an innermost loop for each Einsum, over its largest rank;
    nothing is forwarded or repeated.

    Args:
        space: what its constraints say otherwise holds there too.
        sizes: the size of every rank.
    """
    tiles: dict[str, tuple[int, ...]] = {}
    for rank, size in sizes.items():
        every = space.tiles(rank, size)
        medium = max((tile for tile in every if tile <= _MEDIUM), default=every[-1])
        tiles[rank] = tuple(dict.fromkeys((medium, every[-1])))
    given = space.constraints
    innermost = {
        name: max(sorted(einsum.ranks), key=sizes.__getitem__)
        for name, einsum in space.facts.einsums.items()
        if einsum.ranks and name not in given.parallel
    }
    changed = {
        "tiles": tiles,
        "repeat": (),
        "forward": (),
        "innermost": {**innermost, **given.innermost},
    }
    return replace(space, constraints=space.constraints.model_copy(update=changed))

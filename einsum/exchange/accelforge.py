"""AccelForge's workload YAML, concise and verbose: `read_accelforge` and `write_accelforge`.

::

    workload:
      rank_sizes: {B: 1, M: 64, P: 64, H: 8, E: 64}
      bits_per_value: {All: 16}
      einsums:
      - QK[b, m, p, h] = Q[b, m, h, e] * K[b, M: p, h, e]

AccelForge costs how tensors are read and asks little about operators; ``M: p`` is the rank M of the
tensor, indexed by p. Its templates are read as far as `einfuse.einsum.exchange.template` goes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse

from .accelforge_writer import REDUCTIONS
from .sums_of_products import Ranks, cascade_text, identifier, load_yaml, section
from .template import render_template

_ACCESS = re.compile(r"([A-Za-z_]\w*)\s*(?:\(\w+\))?\s*\[([^\[\]]*)\]")
_LEFT = re.compile(rf"\s*{_ACCESS.pattern}\s*=(.*)", re.DOTALL)
_COPY = re.compile(r"copy\s*\(\s*([A-Za-z_]\w*\s*(?:\(\w+\))?\s*\[[^\[\]]*\])\s*\)")
_NAMED = re.compile(r"([A-Z]\w*)\s*[:=]\s*(.+)")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_AFFINE = re.compile(r"[\w\s+*()-]+")
_COMPARED = re.compile(r"(<=|>=|<|>)")
_PRODUCT = re.compile(r"[0-9]+(\s*\*\s*[0-9]+)*")
_WORKLOAD_KEYS = {
    "rank_sizes",
    "bits_per_value",
    "einsums",
    "iteration_space_shape",
    "persistent_tensors",
}
_EINSUM_KEYS = {
    "einsum",
    "name",
    "tensor_accesses",
    "iteration_space_shape",
    "rank_sizes",
    "renames",
    "is_copy_operation",
    "map_op",
    "reduce_op",
}
_MAPS = {"mul": "*", "add": "+"}


@dataclass(frozen=True, slots=True)
class Workload:
    """A cascade, and the bits of a value that AccelForge writes beside it, by its tensors' sets."""

    cascade: Cascade
    bits_per_value: tuple[tuple[str, int], ...] = ()


def read_accelforge(
    text: str,
    name: str = "cascade",
    source: str = "<accelforge>",
    settings: Mapping[str, str] | None = None,
) -> Workload:
    """Return the cascade of an AccelForge workload, with its rank sizes, and its bits per value.

    Renames, persistent tensors and names of Einsums speak to AccelForge's mapper and are left out.

    Args:
        text: YAML, concise or verbose Einsums.
        name: what the cascade is called.
        source: the file's name, for errors.
        settings: values of template variables (``{{N_TOKENS}}``).

    Raises:
        EinfuseError: no such file, or something that a cascade cannot hold.

    >>> file = '''
    ... workload:
    ...   rank_sizes: {M: 4, P: 4, E: 2}
    ...   bits_per_value: {All: 8}
    ...   einsums: ["QK[m, p] = Q[m, e] * K[M: p, e]"]
    ... '''
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> workload = read_accelforge(file)
    >>> render_einsum(workload.cascade.einsums[0]), workload.bits_per_value
    ('QK[m,p] = Q[m,e] * K[p,e]', (('All', 8),))
    """
    document = load_yaml(render_template(text, settings or {}, source), source)
    body = section(document, "workload", dict, source)
    for key in body.keys() - _WORKLOAD_KEYS:
        raise EinfuseError(f"{source}: a cascade cannot hold 'workload: {key}'")
    reader = _Reader(source, _sizes(body.get("rank_sizes") or {}, source))
    everywhere = [
        comparison
        for shape in _shapes(body.get("iteration_space_shape"), source)
        for comparison in reader.bounds(shape)
    ]
    entries = list(_flat(section(body, "einsums", list, source)))
    for entry in entries:
        reader.learn(_sizes(entry.get("rank_sizes") or {}, source))
        for shape in _shapes(entry.get("iteration_space_shape"), source):
            reader.bounds(shape)
    lines = [reader.line(entry, everywhere) for entry in entries]
    translated = cascade_text(reader.ranks, reader.tensors, lines)
    bits = _sizes(body.get("bits_per_value") or {}, source) | reader.bits
    return Workload(parse(translated, name, f"{source}, translated"), tuple(bits.items()))


class _Reader:
    """The ranks and tensors of a file, and its Einsums as lines of a cascade."""

    def __init__(self, source: str, sizes: Mapping[str, int]) -> None:
        self.source = source
        self.ranks = Ranks()
        self.tensors: dict[str, Sequence[str]] = {}
        self.given = dict(sizes)
        self.bits: dict[str, int] = {}
        for rank in sizes:
            if rank != rank.upper():
                raise EinfuseError(f"{source}: a cascade's ranks are upper case, found '{rank}'")
            self._know(identifier(rank, "a rank", source))

    def learn(self, sizes: Mapping[str, int]) -> None:
        """Take in sizes that stand beside one Einsum."""
        for rank, size in sizes.items():
            if self.given.get(rank, size) != size:
                raise EinfuseError(
                    f"{self.source}: rank {rank} has size {self.given[rank]} here and {size} there"
                )
            self.given[rank] = size

    def line(self, entry: Mapping[str, Any], everywhere: Sequence[str]) -> tuple[str, str]:
        """Return the tensor that an Einsum writes, and the Einsum as a cascade's line."""
        for key in entry.keys() - _EINSUM_KEYS:
            raise EinfuseError(f"{self.source}: a cascade cannot hold 'einsums: {key}'")
        if "einsum" in entry:
            return self._concise(entry, everywhere)
        return self._verbose(entry, everywhere)

    def _concise(self, entry: Mapping[str, Any], everywhere: Sequence[str]) -> tuple[str, str]:
        text = str(entry["einsum"])
        where = f"{self.source}: '{text.strip()}'"
        found = _LEFT.fullmatch(text)
        if found is None:
            raise EinfuseError(f"{where}: expected TENSOR[indices] = expression")
        filters = self._filters(entry, everywhere)
        right = _ACCESS.sub(
            lambda m: self._access(m[1], _projection(m[2], where), where, filters),
            _copied(" ".join(found[3].split())),
        )
        left = self._access(found[1], _projection(found[2], where), where, [])
        self._check_filters(filters, where)
        return found[1], f"{left} = {right}{self._folding(entry, left, right, where)}"

    def _verbose(self, entry: Mapping[str, Any], everywhere: Sequence[str]) -> tuple[str, str]:
        where = f"{self.source}: Einsum {entry.get('name', 'without a name')}"
        accesses = section(entry, "tensor_accesses", list, where)
        for access in accesses:
            if not isinstance(access, dict) or "name" not in access:
                raise EinfuseError(f"{where}: expected name and projection, found {access!r}")
            for key in access.keys() - {"name", "projection", "output", "bits_per_value"}:
                raise EinfuseError(f"{where}: a cascade cannot hold 'tensor_accesses: {key}'")
            if "bits_per_value" in access:
                own = {access["name"]: access["bits_per_value"]}
                self.bits |= _sizes(own, where)
        written = [access for access in accesses if access.get("output")]
        read = [access for access in accesses if not access.get("output")]
        if len(written) != 1 or not read:
            raise EinfuseError(f"{where}: expected one output and some inputs")
        sign = self._operator(entry, "map_op", _MAPS, "mul", where)
        filters = self._filters(entry, everywhere)
        parts = []
        for access in read:
            projection = _listed(access.get("projection"), where)
            parts.append(self._access(access["name"], projection, where, filters))
        right = f" {sign} ".join(parts)
        target = str(written[0]["name"])
        left = self._access(target, _listed(written[0].get("projection"), where), where, [])
        self._check_filters(filters, where)
        return target, f"{left} = {right}{self._folding(entry, left, right, where)}"

    def _operator(
        self, entry: Mapping[str, Any], key: str, known: Mapping[str, str], usual: str, where: str
    ) -> str:
        found = str(entry.get(key, usual))
        if found not in known:
            raise EinfuseError(
                f"{where}: a cascade cannot hold {key} '{found}' (known: {', '.join(known)})"
            )
        return known[found]

    def _folding(self, entry: Mapping[str, Any], left: str, right: str, where: str) -> str:
        operator = self._operator(entry, "reduce_op", REDUCTIONS, "add", where)
        if operator == "+":
            return ""
        kept = set(_VARIABLE.findall(left.split("[", 1)[1]))
        read = [v for m in _ACCESS.finditer(right) for v in _VARIABLE.findall(m[2])]
        folded = [v for v in dict.fromkeys(read) if v == v.lower() and v not in kept]
        return f" :: {operator}({','.join(folded)})" if folded else ""

    def _access(
        self,
        name: str,
        projection: Sequence[tuple[str, str]],
        where: str,
        filters: list[tuple[str, str]],
    ) -> str:
        tensor = identifier(name, "a tensor", where)
        ranks = [rank for rank, _ in projection]
        self.tensors.setdefault(tensor, ranks)
        if len(self.tensors[tensor]) != len(ranks):
            raise EinfuseError(
                f"{where}: {tensor} has ranks [{', '.join(self.tensors[tensor])}], found "
                f"{len(ranks)} indices"
            )
        if set(ranks) == set(self.tensors[tensor]):
            projection = sorted(projection, key=lambda p: self.tensors[tensor].index(p[0]))
        indices = []
        for rank, text in projection:
            index = self._index(rank, text, where)
            for filter in [f for f in filters if f[0] in _VARIABLE.findall(index)]:
                index += f"{' &' if ':' in index else ':'} {filter[1]}"
                filters.remove(filter)
            indices.append(index)
        return f"{tensor}[{','.join(indices)}]"

    def _index(self, rank: str, text: str, where: str) -> str:
        text = text.strip()
        if not _AFFINE.fullmatch(text):
            raise EinfuseError(f"{where}: expected an affine index such as 'p + r', found '{text}'")
        index = _VARIABLE.sub(lambda m: m[0].lower(), text)
        for variable in _VARIABLE.findall(index):
            self._know(variable.upper())
        self._know(rank)
        if _VARIABLE.fullmatch(index) and index.upper() != rank:
            own, other = self.given.get(index.upper()), self.given.get(rank)
            if own is not None and other is not None and own < other:
                return f"{index}+0"
            if own is None or other is None:
                self.ranks.unite(index, rank)
        return index.replace(" ", "")

    def _know(self, rank: str) -> None:
        self.ranks.add(rank)
        if rank in self.given:
            self.ranks.sizes.setdefault(rank, self.given[rank])

    # Iteration spaces.

    def bounds(self, text: str) -> list[str]:
        """Return the comparisons of ``0 <= m < 8``; an upper bound is a rank's size at least."""
        parts = [part.strip() for part in _COMPARED.split(str(text))]
        if len(parts) < 3 or not all(_AFFINE.fullmatch(part) for part in parts[::2]):
            raise EinfuseError(f"{self.source}: expected bounds such as '0 <= m < 8': '{text}'")
        triples = [(parts[k], parts[k + 1], parts[k + 2]) for k in range(0, len(parts) - 2, 2)]
        comparisons = []
        for left, sign, right in triples:
            if _PRODUCT.fullmatch(right) and _VARIABLE.fullmatch(left) and sign in ("<", "<="):
                rank, size = left.upper(), _product(right) + (sign == "<=")
                self.given[rank] = max(size, self.given.get(rank, 0))
            comparisons.append(f"{left.lower()}{sign}{right.lower()}".replace(" ", ""))
        return comparisons

    def _filters(
        self, entry: Mapping[str, Any], everywhere: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Return (variable, comparison) for what the sizes of the ranks do not say already."""
        own = [
            comparison
            for shape in _shapes(entry.get("iteration_space_shape"), self.source)
            for comparison in self.bounds(shape)
        ]
        found = []
        for comparison in dict.fromkeys([*own, *everywhere]):
            left, sign, right = _COMPARED.split(comparison)
            if (left, sign) == ("0", "<="):
                continue
            if _PRODUCT.fullmatch(right) and sign in ("<", "<="):
                size = self.given.get(left.upper())
                if size is not None and size <= _product(right) + (sign == "<="):
                    continue
            names = _VARIABLE.findall(comparison)
            if not names:
                raise EinfuseError(f"{self.source}: expected a rank variable in '{comparison}'")
            found.append((names[0], comparison))
        return found

    def _check_filters(self, filters: Sequence[tuple[str, str]], where: str) -> None:
        for variable, comparison in filters:
            raise EinfuseError(f"{where}: '{comparison}' bounds {variable}, which no input has")


def _sizes(found: object, source: str) -> dict[str, int]:
    if not isinstance(found, dict):
        raise EinfuseError(f"{source}: expected sizes by name, found {found!r}")
    sizes = {}
    for name, size in found.items():
        if isinstance(size, bool) or not _PRODUCT.fullmatch(str(size)) or _product(str(size)) < 1:
            raise EinfuseError(f"{source}: expected a whole size of {name}, found {size!r}")
        sizes[str(name)] = _product(str(size))
    return sizes


def _product(text: str) -> int:
    return math.prod(map(int, text.split("*")))


def _shapes(found: object, source: str) -> Iterator[str]:
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, list | None):
        raise EinfuseError(f"{source}: expected bounds such as '0 <= m < 8', found {found!r}")
    yield from map(str, found or ())


def _copied(right: str) -> str:
    """Return what ``copy(X[m])`` copies, or the text as it is."""
    found = _COPY.fullmatch(right)
    return found[1] if found else right


def _flat(entries: Sequence[object]) -> Iterator[Mapping[str, Any]]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _flat(entry)
        elif isinstance(entry, dict):
            yield entry
        else:
            yield {"einsum": entry}


def _projection(text: str, where: str) -> list[tuple[str, str]]:
    projection = []
    for part in text.split(","):
        named = _NAMED.fullmatch(part.strip())
        if named is None and not _VARIABLE.fullmatch(part.strip()):
            raise EinfuseError(f"{where}: expected 'm' or 'M: index', found '{part.strip()}'")
        projection.append((named[1], named[2]) if named else (part.strip().upper(), part.strip()))
    return _checked(projection, where)


def _listed(projection: object, where: str) -> list[tuple[str, str]]:
    match projection:
        case list():
            return _projection(",".join(map(str, projection)), where)
        case dict():
            return _checked([(str(r), str(i)) for r, i in projection.items()], where)
        case _:
            raise EinfuseError(f"{where}: expected a projection, found {projection!r}")


def _checked(projection: list[tuple[str, str]], where: str) -> list[tuple[str, str]]:
    for rank, _ in projection:
        if rank != rank.upper() or not _VARIABLE.fullmatch(rank):
            raise EinfuseError(f"{where}: a cascade's ranks are upper case, found '{rank}'")
    return projection

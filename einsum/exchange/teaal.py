"""TeAAL's YAML (Nayak et al., MICRO 2023): `read_teaal` and `write_teaal`.

::

    einsum:
      declaration: {A: [K, M], B: [K, N], Z: [M, N]}
      expressions: ["Z[m, n] = A[k, m] * B[k, n]"]

Its expressions are sums of products, or ``take(A[k], B[k], 1)``: the operand of that number where
every operand is nonzero. A cascade says the latter with factors ``abs(sign(A[k]))``, which
are 1 where ``A`` is nonzero and else 0.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from einfuse.einsum.language.affine import Linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import CascadeWarning, EinfuseError
from einfuse.einsum.language.expression import Access, Call, Expression
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind_symbolic

from .sums_of_products import Ranks, Writer, cascade_text, identifier, load_yaml, section

_ACCESS = re.compile(r"([A-Za-z_]\w*)\s*\[([^\[\]]*)\]")
_TAKE = re.compile(r"take\s*\((.*),\s*([0-9]+)\s*\)")
_SUM = re.compile(r"sum\s*\(([^()]*)\)\s*\.\s*\((.*)\)")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_SCALAR = re.compile(r"[A-Za-z_]\w*")
_TERM = re.compile(r"(?:[0-9]+\s*\*\s*)?[A-Za-z_]\w*")


def read_teaal(text: str, name: str = "cascade", source: str = "<teaal>") -> Cascade:
    """Return the cascade of the ``einsum`` section of a TeAAL file.

    What belongs to the mapping and the machine (``mapping``, ``architecture``, ``bindings``,
    ``format``) is no part of a cascade: a `CascadeWarning` names what is left out.

    Args:
        text: YAML.
        name: what the cascade is called.
        source: the file's name, for errors.

    Raises:
        EinfuseError: no such file, or an expression that a cascade cannot hold.

    >>> file = '''
    ... einsum:
    ...   declaration: {A: [K, M], B: [K, N], Z: [M, N]}
    ...   expressions: ["Z[m, n] = A[k, m] * B[k, n]"]
    ... '''
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> print(*map(render_einsum, read_teaal(file).einsums))
    Z[m,n] = A[k,m] * B[k,n]
    """
    document = load_yaml(text, source)
    rest = [str(key) for key in document if key != "einsum"]
    if rest:
        message = f"no part of a cascade, left out: {', '.join(rest)}"
        warnings.warn_explicit(message, CascadeWarning, source, 1)
    body = section(document, "einsum", dict, source)
    declared = section(body, "declaration", dict, source)
    key = "expression" if "expressions" not in body and "expression" in body else "expressions"
    expressions = section(body, key, list, source)
    for unknown in body.keys() - {"declaration", key}:
        raise EinfuseError(f"{source}: a cascade cannot hold 'einsum: {unknown}'")
    reader = _Reader(source, declared)
    lines = [reader.line(expression) for expression in expressions]
    return parse(cascade_text(reader.ranks, reader.tensors, lines), name, f"{source}, translated")


def write_teaal(cascade: Cascade, shape: Mapping[str, int] | None = None) -> str:
    """Return the ``einsum`` section of a TeAAL file.

    Args:
        cascade: sums of products at affine indices.
        shape: sizes of ranks that stand in indices (``m1*M0+m0``), where the text leaves them open.

    Raises:
        CascadeError: names what TeAAL cannot express (loops, maxima, functions, filters, ...).

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank K, M\\ninput A[K,M], B[K]\\nZ[m] = A[k,m] * B[k]")
    >>> print(write_teaal(cascade), end="")
    einsum:
      declaration:
        A: [K, M]
        B: [K]
        Z: [M]
      expressions:
        - Z[m] = A[k, m] * B[k]
    """
    sizes = {r: int(n) for r, n in bind_symbolic(cascade, shape).items() if n.is_Integer}
    writer = Writer("TeAAL", cascade, sizes)
    with writer.located():
        expressions = [_expression(writer, einsum) for einsum in writer.einsums()]
    declared = [f"    {t.name}: [{', '.join(t.ranks)}]" for t in cascade.tensors]
    written = [f"    - {expression}" for expression in expressions]
    return "\n".join(["einsum:", "  declaration:", *declared, "  expressions:", *written]) + "\n"


class _Reader:
    """The declarations of a file, and its expressions as lines of a cascade."""

    def __init__(self, source: str, declared: Mapping[object, object]) -> None:
        self.source = source
        self.ranks = Ranks()
        self.tensors: dict[str, Sequence[str]] = {}
        for name, ranks in declared.items():
            tensor = identifier(name, "a tensor", f"{source}: declaration")
            if not isinstance(ranks, list):
                raise EinfuseError(f"{source}: expected the ranks of {tensor} as a list")
            where = f"{source}: declaration of {tensor}"
            self.tensors[tensor] = [self._rank(rank, where) for rank in ranks]

    def _rank(self, rank: object, where: str) -> str:
        name = identifier(rank, "a rank", where)
        if name != name.upper():
            raise EinfuseError(f"{where}: a rank is upper case, found '{name}'")
        self.ranks.add(name)
        return name

    def line(self, text: object) -> tuple[str, str]:
        """Return the tensor that an expression writes, and the expression as a cascade's line."""
        if not isinstance(text, str):
            raise EinfuseError(f"{self.source}: expected an expression, found {text!r}")
        where = f"{self.source}: '{text.strip()}'"
        left, equals, right = text.partition("=")
        target = _ACCESS.fullmatch(left.strip())
        if not equals or target is None:
            raise EinfuseError(f"{where}: expected TENSOR[indices] = expression")
        written = self._access(left, where)
        right = self._summed(right.strip(), target[2], where)
        terms = (self._term(term, where) for term in _split(right, "+"))
        return target[1], f"{written} = {' + '.join(terms)}"

    def _summed(self, right: str, left: str, where: str) -> str:
        """Return what ``sum(K).(...)`` sums, if it names the ranks that the left side lacks."""
        found = _SUM.fullmatch(right)
        if found is None:
            return right
        named = {rank.strip() for rank in found[1].split(",") if rank.strip()}
        indices = "".join(access[2] + "," for access in _ACCESS.finditer(found[2]))
        used, kept = set(re.findall(r"[a-z_]\w*", indices)), set(re.findall(r"[a-z_]\w*", left))
        if {variable.upper() for variable in used - kept} != named:
            raise EinfuseError(
                f"{where}: sum over {', '.join(sorted(named))}, but what the left side lacks is "
                f"{', '.join(sorted(v.upper() for v in used - kept)) or 'nothing'}"
            )
        return found[2]

    def _term(self, term: str, where: str) -> str:
        take = _TAKE.fullmatch(term.strip())
        if take is None:
            return " * ".join(self._factor(factor, where) for factor in _split(term, "*"))
        operands = [self._factor(operand, where) for operand in _split(take[1], ",")]
        chosen = int(take[2])
        if chosen >= len(operands):
            raise EinfuseError(f"{where}: take has no operand number {chosen}")
        kept = (o if n == chosen else f"abs(sign({o}))" for n, o in enumerate(operands))
        return " * ".join(kept)

    def _factor(self, text: str, where: str) -> str:
        text = text.strip()
        if _NUMBER.fullmatch(text):
            return text
        if _SCALAR.fullmatch(text):
            self.tensors.setdefault(identifier(text, "a scalar", where), [])
            return f"{text}[]"
        return self._access(text, where)

    def _access(self, text: str, where: str) -> str:
        access = _ACCESS.fullmatch(text.strip())
        if access is None:
            raise EinfuseError(f"{where}: a cascade cannot hold '{text.strip()}' from TeAAL")
        tensor = access[1]
        if tensor not in self.tensors:
            raise EinfuseError(f"{where}: tensor {tensor} is not declared")
        indices = [index.strip() for index in access[2].split(",") if index.strip()]
        ranks = self.tensors[tensor]
        if len(indices) != len(ranks):
            raise EinfuseError(
                f"{where}: {tensor} has ranks [{', '.join(ranks)}], found {len(indices)} indices"
            )
        return f"{tensor}[{','.join(map(self._index, indices, ranks, [where] * len(ranks)))}]"

    def _index(self, text: str, rank: str, where: str) -> str:
        for part in text.split("+"):
            variable = part.split("*")[-1].strip()
            if not _TERM.fullmatch(part.strip()) or variable != variable.lower():
                raise EinfuseError(
                    f"{where}: expected an index such as 'k' or '2 * q + s', found '{text}'"
                )
            self.ranks.add(variable.upper())
        if _SCALAR.fullmatch(text):
            self.ranks.unite(text, rank)
        return text.replace(" ", "")


def _split(text: str, sign: str) -> Iterator[str]:
    """Yield the parts between signs that stand outside of brackets."""
    depth, start = 0, 0
    for place, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == sign and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _expression(writer: Writer, einsum: Einsum) -> str:
    terms = [_written_term(writer, term) for term in writer.terms(einsum)]
    return f"{_written_access(writer, einsum.output)} = {' + '.join(terms)}"


def _written_term(writer: Writer, factors: Sequence[Expression]) -> str:
    tests = [_tested(factor) for factor in factors]
    if not any(tests):
        return " * ".join(_written_access(writer, writer.plain(factor)) for factor in factors)
    chosen = [place for place, test in enumerate(tests) if test is None]
    if len(chosen) != 1:
        raise writer.refuse("a take of several operands", factors[0])
    operands = (test or writer.plain(f) for test, f in zip(tests, factors, strict=True))
    written = ", ".join(_written_access(writer, operand) for operand in operands)
    return f"take({written}, {chosen[0]})"


def _tested(factor: Expression) -> Access | None:
    """Return X where a factor is ``abs(sign(X))``: 1 where X is nonzero, else 0."""
    match factor:
        case Call("abs", (Call("sign", (Access() as operand,)),)):
            return operand
        case _:
            return None


def _written_access(writer: Writer, access: Access) -> str:
    indices = []
    for index in access.indices:
        form = writer.affine(index, access)
        if form.constant or not form.coefficients or min(form.coefficients.values()) < 0:
            raise writer.refuse(
                f"an index of {access.tensor} with a constant or a minus", index.expression
            )
        indices.append(_written_index(form))
    return f"{access.tensor}[{', '.join(indices)}]"


def _written_index(form: Linear) -> str:
    return " + ".join(v if c == 1 else f"{c} * {v}" for v, c in form.coefficients.items())

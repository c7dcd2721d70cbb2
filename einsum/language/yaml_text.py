"""YAML read safely: nothing built but plain values, nothing guessed, nothing that grows.

On top of `yaml.SafeLoader` it refuses what silently means something else (a key given twice, a
number in base 60 or in octal) and aliases that expand beyond a limit, before anything is built.
"""

from __future__ import annotations

from typing import Any

import yaml

from .errors import EinfuseError

_VALUES = 100_000  # with all aliases written out
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_yaml(
    text: str,
    where: str,
    *,
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
    error: type[EinfuseError] = EinfuseError,
) -> Any:
    """Return the value of a YAML text; the error says what is wrong with it, and where.

    >>> parse_yaml("{a: 1, b: [x, 2.5]}", "here")
    {'a': 1, 'b': ['x', 2.5]}
    >>> parse_yaml("{a: 1, a: 2}", "here")
    Traceback (most recent call last):
    einfuse.einsum.language.errors.EinfuseError: here:1:8: the key 'a' is given twice
    """
    reader = None
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check(node, {}, [])
        return reader.construct_document(node)
    except yaml.YAMLError as found:
        mark = getattr(found, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(found, "problem", None) or str(found).split("\n")[0]
        problem = problem if isinstance(found, _RefusalError) else f"not YAML: {problem}"
        raise error(f"{where}{place}: {problem}") from None
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValueError as found:  # of a date, or a number of thousands of digits
        raise error(f"{where}: not a value: {str(found).split(';')[0]}") from None
    finally:
        if reader is not None:
            reader.dispose()


class _RefusalError(yaml.MarkedYAMLError):
    """YAML that is not taken."""


def _check(node: yaml.Node, sizes: dict[int, int], above: list[int]) -> int:
    """Return how many values a node is with its aliases written out; refuse too many."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in above:
        raise _refused(node, "an alias that contains itself")
    above.append(id(node))
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        for key, value in node.value:
            size += _check(key, sizes, above) + _check(value, sizes, above)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, sizes, above) for item in node.value)
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
        _check_number(node)
    above.pop()
    if size > _VALUES:
        raise _refused(node, f"more than {_VALUES:,} values, with its aliases written out")
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise _refused(key, f"the key '{key.value}' is given twice")
            seen.add((key.tag, key.value))


def _check_number(node: yaml.ScalarNode) -> None:
    text = node.value.lstrip("+-")
    if ":" in text:
        raise _refused(node, f"{node.value} would be read in base 60: write a number, or quote it")
    if len(text) > 1 and text[0] == "0" and text[1].isdigit() and node.tag == _NUMBERS[0]:
        raise _refused(node, f"{node.value} would be read in octal: leave the leading 0 out")


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return _RefusalError(problem=problem, problem_mark=node.start_mark)

"""YAML files, and architectures that say only what differs from one that they extend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from einfuse.einsum import parse_yaml
from einfuse.mapper.errors import ArchitectureError


def extended(content: Any, where: str, find: Callable[[str | Path], Path]) -> Any:
    """Return a file's content over that of the one which it ``extends``, key by key, if any.

    Args:
        content: of the file.
        where: its path; the other is looked up beside it first.
        find: a shipped name -> its file.

    Raises:
        ArchitectureError: the other is no architecture, or they extend each other in a circle.
    """
    seen = [where]
    content = _rooted(content, Path(where).parent)
    while isinstance(content, dict) and "extends" in content:
        name = str(content["extends"])
        beside = Path(seen[-1]).parent / name
        path = find(beside if beside.is_file() else name)
        if str(path) in seen:
            raise ArchitectureError(f"{' extends '.join([*seen, str(path)])}, in a circle")
        seen.append(str(path))
        base = _rooted(read_yaml(path), path.parent)
        if not isinstance(base, dict):
            raise ArchitectureError(f"{where}: extends {path}, which is no architecture")
        content = _over(base, {key: value for key, value in content.items() if key != "extends"})
    return content


def _rooted(content: Any, folder: Path) -> Any:
    """Return a file's content with a table of costs beside it named by its whole path."""
    name = content.get("technology") if isinstance(content, dict) else None
    if isinstance(name, str) and name.endswith(".csv") and (folder / name).is_file():
        return content | {"technology": str((folder / name).resolve())}
    return content


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: _over(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in own.items()
    }


def read_yaml(path: Path) -> Any:
    """Read a YAML file safely; ArchitectureError says what is wrong with it, and where."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path), error=ArchitectureError)
    except UnicodeDecodeError:
        raise ArchitectureError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ArchitectureError(f"{path}: cannot be read: {error.strerror}") from None

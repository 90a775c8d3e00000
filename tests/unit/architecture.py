"""The architecture as read from the sources: files, rooms (folders and loose modules) and the imports between them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "ghostcacher_connector": ROOT / "ghostcacher_connector",
    "ghostcacher_router": ROOT / "router" / "src" / "ghostcacher_router",
    "ghostcacher_simulator": ROOT / "router" / "src" / "ghostcacher_simulator",
    "ghostcacher_cli": ROOT / "router" / "src" / "ghostcacher_cli",
    "ghostcacher": ROOT / "sdk" / "python" / "src" / "ghostcacher",
}
SPLIT_ROOMS = {"core", "engines"}
"""Folders of the connector whose sub-folders are rooms of their own."""
INNER_ROOMS = {"ghostcacher_router.http.protocol"}
"""Folders that are rooms of their own within another room."""


@cache
def sources() -> Mapping[str, Path]:
    """Return the path of every module of the packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def name_of(path: Path) -> str:
    """Return a path as shown in messages, relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str:
    """Return the room of a module: ``core.index``, ``pull``, ``ghostcacher_router.placement``; "" for a package itself.

    Rooms of the connector go without its name, since most rules are about them.
    """
    for inner in INNER_ROOMS:
        if module == inner or module.startswith(inner + "."):
            return inner
    package, *rest = module.split(".")
    depth = 2 if package == "ghostcacher_connector" and rest and rest[0] in SPLIT_ROOMS else 1
    room = ".".join(rest[:depth])
    if package == "ghostcacher_connector":
        return room
    return f"{package}.{room}" if room else package


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports, anywhere in it and for types, too, with the line.

    ``from package import name`` yields the module ``package.name`` where there is one, else the package.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in sources() else str(node.module), node.lineno


@cache
def file_arrows() -> Mapping[str, frozenset[str]]:
    """Return, for each module of ours, the modules of ours that it imports."""
    return {
        module: frozenset(name for name, _ in imports_of(path) if name in sources() and name != module)
        for module, path in sources().items()
    }


def circle_in(arrows: Mapping[str, Iterable[str]]) -> list[str] | None:
    """Return one circle of a graph, its first node repeated at the end; None when there is none."""
    done: set[str] = set()
    for start in arrows:
        trail: list[str] = []
        stack = [(start, iter(arrows.get(start, ())))] if start not in done else []
        while stack:
            node, targets = stack[-1]
            if not trail or trail[-1] != node:
                trail.append(node)
            target = next((each for each in targets if each not in done), None)
            if target is None:
                done.add(node)
                stack.pop()
                trail.pop()
            elif target in trail:
                return [*trail[trail.index(target) :], target]
            else:
                stack.append((target, iter(arrows.get(target, ()))))
    return None

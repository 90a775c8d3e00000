"""Documents say what is so: names and files that they cite exist, and the code map names every room."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ghostcacher_cli import main
from ghostcacher_cli.analyze import arguments as analyze
from ghostcacher_cli.simulate import arguments as simulate
from ghostcacher_cli.up import arguments as up
from ghostcacher_router.config import RouterSettings, load_settings
from ghostcacher_router.epp.settings import PickerSettings
from tests.unit.architecture import PACKAGES, ROOT, room_of, sources

DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
HAND_WRITTEN = [path for path in DOCUMENTS if path.parent != DOCS / "reference"]
COMMAND = re.compile(r"(?: {4,})?(?:[A-Z_]+=\S+ )*ghostcacher ([a-z].*)")
STEP = re.compile(r"`([a-z_0-9/]+\.py)` `([A-Za-z_.]+)`")
FILE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|lua|md|svg))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CITED = re.compile(r"\b((?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|lua))\b|\b((?:[\w-]+/)*[\w-]+\.md)\b")


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the classes, functions and methods of a file: ``Class``, ``Class.method``, ``function``."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{each.name}" for each in inner)
    return frozenset(found)


@cache
def file_names() -> frozenset[str]:
    """Return the names of the project's own files of code."""
    folders = (*PACKAGES.values(), ROOT / "tests", ROOT / "benchmarks", ROOT / "deploy", DOCS)
    return frozenset(path.name for folder in folders for end in ("py", "lua") for path in folder.rglob(f"*.{end}"))


def files_called(name: str, *folders: Path) -> list[Path]:
    """Return the files of that relative path in the folders, or in a package or the repository."""
    return [path for folder in (*folders, *PACKAGES.values(), ROOT) if (path := folder / name).is_file()]


def test_lives_name_what_exists() -> None:
    """Each step of the lives names a file and something in it."""
    steps = STEP.findall((DOCS / "LIVES.md").read_text())
    assert len(steps) > 30
    wrong = [
        f"{file} {name}" for file, name in steps if not any(name in names_in(path) for path in files_called(file, DOCS))
    ]
    assert not wrong, wrong


def test_configuration_files_of_routers_are_taken(tmp_path: Path) -> None:
    """What pages show as a file of settings is one."""
    found = [text for document in DOCUMENTS for text in TOML.findall(document.read_text())]
    assert found
    for text in found:
        (tmp_path / "router.toml").write_text(text)
        load_settings(RouterSettings, {}, tmp_path / "router.toml", {})


def commands_in(document: Path) -> list[list[str]]:
    """Return the words of each `ghostcacher ...` of a document's blocks of code."""
    lines = document.read_text().replace("\\\n", " ").splitlines()
    found = [match[1].split(" > ")[0] for line in lines if (match := COMMAND.match(line))]
    return [shlex.split(text, comments=True) for text in found if "..." not in text]


@pytest.mark.parametrize("document", HAND_WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_understood(document: Path) -> None:
    """Each command that a page shows has options that there are, with values that they take."""
    parsers: dict[str, Callable[[list[str]], object]] = {
        "analyze": analyze.parse,
        "doctor": main._doctor_parser().parse_args,
        "epp": lambda words: main._options_of(PickerSettings, "epp", words, {}),
        "router": lambda words: main.router_options(words, {}),
        "simulate": simulate.parse,
        "status": main._fleet_parser("status", "").parse_args,
        "top": main._fleet_parser("top", "").parse_args,
        "up": lambda words: up.parse(words, {}),
        "version": list,
    }
    for command, *words in commands_in(document):
        parsers[command](words)


def test_commands_are_found() -> None:
    """As many as there are at the least."""
    found = [words[0] for document in HAND_WRITTEN for words in commands_in(document)]
    assert len(found) > 30
    assert {"analyze", "doctor", "epp", "router", "simulate", "status", "top", "up"} <= set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_cited_files_exist(document: Path) -> None:
    """Whatever stands in a document as a file's path, or as a link, is there."""
    text = document.read_text()
    wrong = [name for name in FILE.findall(text) if not files_called(name, document.parent)]
    wrong += [name for name in LINK.findall(text) if not (document.parent / name).exists()]
    assert not wrong, wrong


@pytest.mark.parametrize("module", sorted(sources()))
def test_cited_files_in_docstrings_exist(module: str) -> None:
    """A file that a docstring or comment names (`reader.py`, `nixl/reader.py`, `docs/DESIGN.md`) exists."""
    path = sources()[module]
    known = file_names()
    wrong = []
    for code, document in CITED.findall("\n".join(prose_of(path))):
        fine = code in known if code and "/" not in code else bool(files_called(code or document, *path.parents[:4]))
        if not fine:
            wrong.append(code or document)
    assert not wrong, wrong


def prose_of(path: Path) -> list[str]:
    """Return the docstrings and comments of a file."""
    text = path.read_text()
    comments = re.findall(r"(?:^|\s)#\s(.*)", text)
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [*comments, *strings]


def test_code_map_is_the_rooms() -> None:
    """A room that docs/ARCHITECTURE.md does not name cannot be found by people, and one that is gone misleads them."""
    code_map = (DOCS / "ARCHITECTURE.md").read_text().partition("## Code map")[2].partition("### Beside")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", code_map, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([a-z_.]+)`", cell)}
    rooms = {room_of(module) for module in sources() if module not in PACKAGES} - {"engines"}
    short = {room.partition(".")[2] if room.partition(".")[0] in PACKAGES else room for room in rooms}
    assert named - {"core"} == short - {"core", "core.types", "core.errors"}

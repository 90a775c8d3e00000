"""The arrows of the design: who may import whom, read from the sources. Sizes of files, too."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONNECTOR = ROOT / "ghostcacher_connector"
ROUTER = ROOT / "router" / "src" / "ghostcacher_router"
FOLDERS = (CONNECTOR, ROUTER, ROOT / "tests", ROOT / "benchmarks", ROOT / "engine_patches")

LINES_WANTED = 300
LINES_MAX = 400

FOUNDATION = {
    "types",
    "errors",
    "config",
    "conversion",
    "settings",
    "schema",
    "fingerprint",
    "model_files",
    "metrics",
    "",
}
"""What any part may import; "" is the package itself, for its version."""

MAY_IMPORT = {
    "types": {"types"},
    "errors": {"errors"},
    "conversion": {"errors"},
    "settings": {"errors", "conversion"},
    "config": {"errors", "settings"},
    "schema": {"types", "errors"},
    "fingerprint": {"errors"},
    "model_files": {"errors", "fingerprint"},
    "metrics": {"types", "metrics"},
    "slots": FOUNDATION,
    "index": FOUNDATION | {"index"},
    "transfer": FOUNDATION | {"transfer", "slots"},
}
"""Part of the connector -> the parts that it may import. What is not listed puts parts together, and may import all
of them but `engines`."""

HEAVY = {"torch", "vllm", "nixl", "sglang", "transformers"}
ROUTER_MAY_IMPORT = {"types", "schema", "settings", "config", "conversion", "index", "errors", ""}


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def part_of(module: str) -> str | None:
    """Return the part of the connector that a module belongs to; None when it is not ours."""
    package, _, rest = module.partition(".")
    if package != CONNECTOR.name:
        return None
    first = rest.partition(".")[0]
    exists = (CONNECTOR / first).is_dir() or (CONNECTOR / f"{first}.py").is_file()
    return first if first and exists else ""


@pytest.mark.parametrize("path", sources(CONNECTOR), ids=name_of)
def test_connector_imports_follow_the_arrows(path: Path) -> None:
    """engines -> {index, transfer, slots} -> types; nothing imports engines; the three do not know each other."""
    part = path.relative_to(CONNECTOR).with_suffix("").parts[0]
    wrong = []
    for module, line in imports_of(path):
        target = part_of(module)
        if target is None:
            continue
        allowed = MAY_IMPORT.get(part)
        if (target == "engines" and part != "engines") or (allowed is not None and target not in allowed | {part, ""}):
            wrong.append(f"line {line}: {part} must not import {module}")
    assert not wrong, wrong


@pytest.mark.parametrize("path", sources(CONNECTOR), ids=name_of)
def test_engine_libraries_only_under_engines(path: Path) -> None:
    """vLLM and SGLang are imported under engines/ alone; torch there and, late, where device memory is copied."""
    part = path.relative_to(CONNECTOR).parts[0]
    if part == "engines":
        return
    found = {module.partition(".")[0] for module, _ in imports_of(path)}
    assert not found & {"vllm", "sglang", "transformers"}
    assert not found & {"nixl"} or part == "transfer"
    assert not found & {"torch"} or part == "transfer"


@pytest.mark.parametrize("path", sources(ROUTER), ids=name_of)
def test_router_shares_little(path: Path) -> None:
    """The router knows types, schema, config and index of the connector, and no engine library at all."""
    for module, line in imports_of(path):
        assert module.partition(".")[0] not in HEAVY, f"line {line}: {module}"
        target = part_of(module)
        assert target is None or target in ROUTER_MAY_IMPORT, f"line {line}: {module}"


@pytest.mark.parametrize("path", sources(CONNECTOR, ROUTER), ids=name_of)
def test_nothing_unpickles(path: Path) -> None:
    """No module that could decode a peer's bytes as code is imported."""
    found = {module.partition(".")[0] for module, _ in imports_of(path)}
    assert not found & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("path", sources(*FOLDERS), ids=name_of)
def test_file_size(path: Path) -> None:
    """A file that outgrows 300 lines usually holds two ideas: a warning; beyond 400 it fails."""
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX, f"{name_of(path)}: {lines} lines"
    if lines > LINES_WANTED:
        warnings.warn(UserWarning(f"{name_of(path)}: {lines} lines, expected at most {LINES_WANTED}"), stacklevel=1)


def test_rules_name_parts_that_exist() -> None:
    """A rule about a part that is gone would guard nothing."""
    for part in MAY_IMPORT:
        assert (CONNECTOR / part).is_dir() or (CONNECTOR / f"{part}.py").is_file(), part

"""Which libraries may be imported where, read from the sources."""

from __future__ import annotations

import sys

import pytest

from tests.unit.architecture import imports_of, room_of, sources

HEAVY = {"torch", "vllm", "nixl", "sglang", "transformers"}


@pytest.mark.parametrize("module", sorted(sources()))
def test_engine_libraries_only_where_they_belong(module: str) -> None:
    """vLLM and SGLang are imported under engines/ alone; NIXL and torch there and where memory is moved."""
    room = room_of(module)
    found = {name.partition(".")[0] for name, _ in imports_of(sources()[module])} & HEAVY
    if room.startswith("engines"):
        return
    assert found <= ({"nixl", "torch"} if room == "transfer" else set()), found


CLIENT_LIBRARIES = {"httpx", "msgspec"}


@pytest.mark.parametrize("module", sorted(name for name in sources() if name.startswith("ghostcacher.")))
def test_client_stands_alone(module: str) -> None:
    """It is installed without the rest: it imports itself, two libraries and what Python brings."""
    found = {name.partition(".")[0] for name, _ in imports_of(sources()[module])}
    assert found <= {"ghostcacher", *CLIENT_LIBRARIES, *sys.stdlib_module_names}


@pytest.mark.parametrize("module", sorted(sources()))
def test_nothing_unpickles(module: str) -> None:
    """No module that could decode a peer's bytes as code is imported."""
    found = {name.partition(".")[0] for name, _ in imports_of(sources()[module])}
    assert not found & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}

"""The lists of what ACL users need, against the scripts that each program runs, and against the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghostcacher_connector import core
from ghostcacher_connector.core.redis.permissions import CLUSTER, DOCTOR, PROGRAMS, ROUTER, WORKER, acl_rules

FOLDER = Path(str(core.__path__[0]))
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "operating" / "transports-and-security.md"
DIRECT = {"eval", "evalsha"}

DIRECTORY_READ = ["index/workers", "index/namespaces", "redis/now"]
RUNS = {
    "worker": [
        *DIRECTORY_READ,
        *("index/enter", "index/hold", "index/leave", "index/apply", "index/report", "index/reports"),
        *("index/lookup", "index/line_up"),
        *("coordination/publish", "coordination/small_entries", "coordination/put_values"),
    ],
    "router": [
        *DIRECTORY_READ,
        "index/depths",
        *(f"coordination/{path.stem}" for path in FOLDER.glob("coordination/scripts/*.lua") if path.stem != "publish"),
    ],
    "doctor": [*DIRECTORY_READ, "index/gone", "index/report", "index/reports"],
}
"""Which scripts each program runs."""
MORE = {"worker": {"unlink"}, "router": {"unlink", "xread"}, "doctor": {"ping", "info", "exists"}}
"""Which commands it sends without a script."""


def commands_of(name: str) -> set[str]:
    folder, script = name.split("/")
    text = (FOLDER / folder / "scripts" / f"{script}.lua").read_text()
    found = {word.lower() for word in re.findall(r"(?:redis\.p?call|try)\('([A-Z]+)'", text)}
    found |= {word.lower() for word in re.findall(r"in_chunks\('([A-Z]+)'", text)}
    return found | ({"hstrlen", "hmget"} if "lock_fields" in text else set())


@pytest.mark.parametrize("program", PROGRAMS)
def test_lists_are_what_the_scripts_run(program: str) -> None:
    """Nothing is missing, and nothing is allowed that nobody needs."""
    needed = DIRECT | MORE[program]
    for name in RUNS[program]:
        needed |= commands_of(name)
    assert set(PROGRAMS[program]) == needed


def test_every_script_is_run_by_somebody() -> None:
    """A script that no list knows would not be checked."""
    scripts = {f"{path.parts[-3]}/{path.stem}" for path in FOLDER.glob("*/scripts/*.lua")} - {"redis/prelude"}
    assert scripts == {name for names in RUNS.values() for name in names}


def test_document_says_the_same() -> None:
    """Who copies the commands from the document gets these users."""
    text = " ".join(DOCUMENT.read_text().split()).replace("\\ ", "")
    for user, commands in (("gc-worker", WORKER), ("gc-router", ROUTER), ("gc-doctor", DOCTOR)):
        assert f"ACL SETUSER {user} on >PASSWORD {' '.join(acl_rules(commands))}" in text
    assert " ".join(f"`+{command}`" for command in CLUSTER) in text

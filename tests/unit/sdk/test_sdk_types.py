"""The clients' types of the admin API are those of its schema, and both clients have the version of the router."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from ghostcacher import client
from ghostcacher.client import admin_types, dashboard_types
from ghostcacher_connector import __version__
from ghostcacher_connector.core import admin_api, dashboard_api
from tests.unit.architecture import ROOT

GENERATOR = ROOT / "sdk" / "generate_types.py"


def test_types_are_those_of_the_schema() -> None:
    """Else: make reference."""
    done = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ANSWERS = ["Status", "Stats", "Workers", "Explanation", "Flushed", "Prefetched", "Drain"]
ANSWERS += ["History", "Prefixes", "Locks", "Links"]


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_router_sends_the_client_reads(name: str) -> None:
    """Every field, with its default where it has one."""
    ours, theirs = (
        (getattr(admin_api, name), getattr(admin_types, name))
        if hasattr(admin_api, name)
        else (getattr(dashboard_api, name), getattr(dashboard_types, name))
    )
    fields = [[(field.name, field.required) for field in msgspec.structs.fields(kind)] for kind in (ours, theirs)]
    assert fields[0] == fields[1]


def test_versions_agree() -> None:
    package = json.loads((ROOT / "sdk" / "typescript" / "package.json").read_text())
    assert (client.__version__, package["version"]) == (__version__, __version__)

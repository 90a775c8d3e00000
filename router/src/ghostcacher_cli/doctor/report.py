"""What a check found, as lines for people or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from ghostcacher_cli.terminal.text import printable

EXIT_FINE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class Status(str, Enum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Check(NamedTuple):
    """One line of the doctor."""

    name: str
    """What was looked at."""
    status: Status
    """How it is."""
    text: str
    """What was seen."""
    fix: str = ""
    """How to put it right; never empty unless the status is OK."""


def ok(name: str, text: str) -> Check:
    return Check(name, Status.OK, text)


def warn(name: str, text: str, fix: str) -> Check:
    assert fix
    return Check(name, Status.WARN, text, fix)


def fail(name: str, text: str, fix: str) -> Check:
    assert fix
    return Check(name, Status.FAIL, text, fix)


def render(checks: Iterable[Check]) -> Iterable[str]:
    """Yield a line for each check, and under it how to fix it. Text from the network is made printable."""
    for check in checks:
        yield printable(f"{check.status.value:<4} {check.name}: {check.text}")
        if check.fix:
            yield printable(f"     fix: {check.fix}")


def render_json(checks: Sequence[Check]) -> str:
    """Return ``{"ok": bool, "checks": [{"name", "status", "text", "fix"}]}``."""
    rows = [check._asdict() | {"status": check.status.value} for check in checks]
    return json.dumps({"ok": exit_code(checks) == EXIT_FINE, "checks": rows}, indent=2)


def exit_code(checks: Iterable[Check]) -> int:
    """Return 0 when nothing failed; warnings do not count."""
    return EXIT_FAILED if any(check.status is Status.FAIL for check in checks) else EXIT_FINE

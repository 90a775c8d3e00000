"""The doctor as a process of its own, and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Outcome:
    """What the doctor printed, and its exit code."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.printed = done.stdout + done.stderr
        self.checks: dict[str, dict[str, Any]] = {}
        if done.stdout.startswith("{"):
            self.checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    def status(self, name: str) -> str:
        return str(self.checks[name]["status"])

    def bad(self) -> list[str]:
        return [name for name, check in self.checks.items() if check["status"] == "FAIL"]


def doctor(*arguments: str, timeout_s: float = 60.0, as_json: bool = True, **environ: str) -> Outcome:
    command = [sys.executable, "-m", "ghostcacher_cli.main", "doctor", "--timeout", str(timeout_s), *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/router/src", **environ}
    return Outcome(
        subprocess.run(
            [*command, "--json"] if as_json else command,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=ROOT,
            env=environment,
        )
    )

"""Prometheus' own programs, for tests of rules, queries and dashboards: found, run, and asked over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.process.guarded import GuardedProcess
from tests.support.index_parts import wait_until

REQUIRED = "GHOSTCACHER_REQUIRE_PROMETHEUS"
"""Set to 1 where a test without these programs is to fail: in CI."""
PATIENCE_S = 60.0


def program(name: str) -> str:
    """Return where a program of Prometheus is: beside this Python, or on PATH. Skips the test where it is not."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        why = f"{name} is not installed: `make setup-prometheus`, or Debian's package prometheus"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


def promtool(*words: str | Path) -> str:
    """Run promtool; return what it says. Raises AssertionError with it when promtool is not content."""
    done = subprocess.run(
        [program("promtool"), *map(os.fspath, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Prometheus:
    """A running server. url: its base URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of the HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=PATIENCE_S) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def targets(self) -> Mapping[str, str]:
        """Return the health of each target, by its URL: "up", or "unknown" before the first scrape."""
        return {
            target["scrapeUrl"]: target["health"] for target in self.get("targets", state="active")["activeTargets"]
        }

    @property
    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=PATIENCE_S):  # noqa: S310
                return True
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]], rules: Path | None = None) -> Iterator[Prometheus]:
    """Run a server that scrapes each second.

    folder: for its data and log. targets: host:port of pages to scrape at /metrics, by job. rules: a file of rules.
    """
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(pages)}]} for job, pages in targets.items()
        ],
    }
    path = folder / "prometheus.json"
    path.write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    process = GuardedProcess(command, log=folder / "prometheus.log", grace_s=5.0)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(lambda: server.ready, PATIENCE_S, "Prometheus to be ready")
        yield server
    finally:
        process.stop()

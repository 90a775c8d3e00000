"""One fleet of two vLLM versions, as while it is upgraded: this Python's engine beside one of another Python.

`make test-matrix` names the other Python (GHOSTCACHER_OTHER_PYTHON). Elsewhere it is the same, and the engines share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_cli.doctor import Status
from ghostcacher_cli.doctor.fleet_checks import check_fingerprints
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.engines.common.versions import installed_version
from ghostcacher_connector.engines.vllm.support import DISTRIBUTIONS
from tests.integration.connector.enginesim import SimEngine, make_model_dir
from tests.integration.connector.prefix_numbers import expected_output
from tests.support.sim_engine_program import LEASE_S, MARK, PROMPT, SETTINGS, SETTLE_S

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "tests.support.sim_engine_program"
OTHER_PYTHON = os.environ.get("GHOSTCACHER_OTHER_PYTHON") or sys.executable


def version_of(python: str) -> str:
    """Return the version of the vLLM that a Python has."""
    if python == sys.executable:
        return installed_version("vllm", DISTRIBUTIONS)
    code = (
        "from ghostcacher_connector.engines.common.versions import installed_version\n"
        f"print(installed_version('vllm', {DISTRIBUTIONS}))"
    )
    found = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[SimEngine, Any, str, bool]]:
    """An engine that has computed the prompt, what became of the other, Redis' URL, and whether they should share."""
    share = version_of(OTHER_PYTHON) == version_of(sys.executable)
    model = make_model_dir(tmp_path / "model")
    with RedisServer(tcp=True) as redis:
        here = SimEngine("here", model, {"redis_url": redis.url, "lease_ttl_s": LEASE_S, **SETTINGS})
        here.add("r", PROMPT)
        here.run(timeout_s=SETTLE_S)
        deadline = time.monotonic() + SETTLE_S
        while not here.all_published():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        there = subprocess.Popen(
            [
                OTHER_PYTHON,
                "-m",
                "tests.support.sim_engine_program",
                "there",
                model,
                redis.url,
                "share" if share else "apart",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "router" / "src")))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert there.stdin is not None
        assert there.stdout is not None
        try:
            lines = (line for line in there.stdout if line.startswith(MARK))
            yield here, json.loads(next(lines).removeprefix(MARK)), redis.url, share
        finally:
            there.stdin.close()
            there.wait(SETTLE_S)
            here.close()
    assert there.returncode == 0


def test_engines_of_two_versions_serve_apart_and_the_doctor_names_the_field(
    fleet: tuple[SimEngine, Any, str, bool],
) -> None:
    """Neither crashes, both answer right, no block goes from one version to another, and equal versions share."""
    here, there, url, share = fleet
    assert there["outputs"] == here.outputs("r") == expected_output(PROMPT, 4)
    assert (here.wrong, there["wrong"]) == ([], [])
    assert (there["hits"] > 0) is share
    records = RedisIndex(url, timeout_s=10.0).workers()
    assert {record.worker for record in records} == {"here", "there"}
    assert len({record.namespace for record in records}) == (1 if share else 2)
    checks = list(check_fingerprints(records))
    if share:
        assert [check.status for check in checks] == [Status.OK]
    else:
        (bad,) = [check for check in checks if check.status is Status.FAIL]
        assert "engine_version" in bad.text
        for one in (OTHER_PYTHON, sys.executable):
            assert version_of(one) in bad.text

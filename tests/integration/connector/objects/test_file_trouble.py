"""Processes that die while they write objects, and disks that are full or read-only: real ones."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.sweeper import PARTIAL_S_MAX, Sweeper
from tests.support.index_parts import wait_until
from tests.support.object_program import prompt
from tests.support.object_tiers import opened, right, rows_of

PROGRAM = [sys.executable, "-m", "tests.support.object_program"]
KILLS = 4


def kill_while_it_writes(folder: Path) -> int:
    """Start a process that writes, kill it (-9) while a file is not whole; return how many prompts it had queued."""
    process = subprocess.Popen([*PROGRAM, "write", str(folder)], stdout=subprocess.PIPE, text=True)
    partial = folder / "tmp"
    try:
        wait_until(lambda: partial.exists() and any(partial.iterdir()), 60, "it writes")
    finally:
        process.kill()
        printed, _ = process.communicate()
    return len(printed.splitlines())


def test_a_process_killed_while_it_writes_leaves_nothing_wrong(tmp_path: Path) -> None:
    """Several times, in one folder: what has its name is whole, and what nobody noted is found when it is written."""
    queued = [kill_while_it_writes(tmp_path) for _ in range(KILLS)]
    store = FileStore(tmp_path)
    names = {one.name for one in store.walk("v1/objects/", 10_000)}
    recorder = Recorder()
    prompts = [prompt(number) for number in range(max(queued) + 3)]
    with opened(store, recorder=recorder) as tier:
        known = tier.catalogue.object_count
        for one in prompts:
            while not tier.write(one, rows_of(one), RunFacts(0, 1)):
                time.sleep(0.01)
    writes = recorder.drain()["gc_object_writes_total"]
    assert writes.get("existed", 0) == len(names) - known
    with opened(store) as tier:
        assert [right(tier, one) for one in prompts] == [len(one) for one in prompts]


def test_what_a_killed_process_leaves_half_written_is_deleted_in_time(tmp_path: Path) -> None:
    partial = tmp_path / "tmp"
    while not (partial.exists() and any(partial.iterdir())):
        kill_while_it_writes(tmp_path)
    later = time.time() + PARTIAL_S_MAX
    for now, left in ((later - 120, True), (later + 120, False)):
        Sweeper(FileStore(tmp_path), Recorder(), ttl_s=1e6, bytes_max=1 << 40, wall=lambda now=now: now).sweep()  # type: ignore[misc]
        assert any(partial.iterdir()) is left


def run(command: list[str], **options: Any) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def check_full(result: dict[str, Any]) -> None:
    """What did not fit was given up at its first try; what had been written is still right."""
    assert result["sums"]["gc_object_writes_total"] == {"failed": 1}
    assert result["sums"]["gc_object_errors_total"]["write\x1ffull"] == 1
    assert result["right"] == [8] * result["fitting"]


def own_disk(script: str, *arguments: str) -> list[str]:
    """Return a command that runs a script in which $1 is a folder where file systems may be mounted for it alone."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh", *arguments]
    trial = [*command[:6], 'mount -t tmpfs -o size=1m none "$1"', "sh", arguments[0]]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    return command


def test_a_disk_that_is_full_costs_what_does_not_fit(tmp_path: Path) -> None:
    """Three objects of 8 MiB fit."""
    script = 'mount -t tmpfs -o size=26m none "$1"; shift; exec "$@"'
    result = run(own_disk(script, str(tmp_path), *PROGRAM, "full", str(tmp_path)))
    check_full(result)
    assert result["fitting"] == 3


def test_a_limit_on_files_is_a_disk_that_is_full(tmp_path: Path) -> None:
    """RLIMIT_FSIZE, as a quota: the first object is too large already."""
    limit = 4 << 20
    result = run(
        [*PROGRAM, "full", str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    check_full(result)
    assert result["fitting"] == 0
    assert not any((tmp_path / "tmp").iterdir())


def test_a_disk_that_is_read_only_is_read(tmp_path: Path) -> None:
    with opened(FileStore(tmp_path)) as tier:
        assert tier.write(prompt(0), rows_of(prompt(0)), RunFacts(0, 1))
    script = 'mount --bind -o ro "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
    result = run(own_disk(script, str(tmp_path), *PROGRAM, "read-only", str(tmp_path)))
    assert (result["right"], result["wrote"]) == (8, False)
    assert result["sums"]["gc_object_writes_total"] == {"failed": 1}
    assert result["sums"]["gc_object_errors_total"]["write\x1frefused"] == 1

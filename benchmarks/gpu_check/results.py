"""What a stage found, as a file of its own, and all of it as a table."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.harness.report import table

Kind = Literal["right", "goal"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    kind: "right" must hold wherever it is run; "goal" is about speed on a GPU, and says nothing on a CPU.
    """

    what: str
    found: str
    wanted: str
    ok: bool
    kind: Kind


class Result(msgspec.Struct, frozen=True):
    """What one stage found.

    numbers: everything measured, by name; seconds and bytes. seconds: how long the stage took, engines not counted.
    hardware: where it ran. at: when it ended, seconds since 1970.
    """

    stage: str
    device: str
    checks: list[Check]
    numbers: dict[str, Any]
    seconds: float
    hardware: str
    at: float


def save(result: Result, folder: Path) -> None:
    """Write a result in one rename: a run that is cut short leaves no half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{result.stage}.{os.getpid()}"
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    scratch.rename(_path(folder, result.stage))


def load(folder: Path, stage: str, device: str) -> Result | None:
    """Return what an earlier run found on such a device, or None."""
    path = _path(folder, stage)
    if not path.exists():
        return None
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    return result if result.device == device else None


def report(results: list[Result]) -> str:
    """Return every check as a table, and what they ran on."""
    rows = [
        [result.stage, check.what, check.found, check.wanted, _verdict(check, result.device)]
        for result in results
        for check in result.checks
    ]
    where = sorted({f"{result.hardware}, {time.strftime('%Y-%m-%d', time.gmtime(result.at))}" for result in results})
    return "\n".join([table(["stage", "what", "found", "wanted", ""], rows), *where])


def all_right(results: list[Result]) -> bool:
    """Say whether everything holds that must; goals of speed count on a GPU only."""
    return all(check.ok for result in results for check in result.checks if _counts(check, result.device))


def hardware(device: str) -> str:
    """Name what the engines ran on, and with."""
    import torch  # noqa: PLC0415 - slow to load

    name = torch.cuda.get_device_name(0) if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def numbers_of(folder: Path, stage: str, device: str) -> dict[str, Any]:
    """Return the numbers of a stage that must have run before; raises FileNotFoundError naming it."""
    result = load(folder, stage, device)
    if result is None:
        raise FileNotFoundError(f"stage {stage}: expected its result in {folder}; run it first")
    return json.loads(json.dumps(result.numbers))  # type: ignore[no-any-return]


def _counts(check: Check, device: str) -> bool:
    return check.kind == "right" or device == "cuda"


def _verdict(check: Check, device: str) -> str:
    if not _counts(check, device):
        return "-"
    if check.kind == "right":
        return "right" if check.ok else "WRONG"
    return "met" if check.ok else "not met"


def _path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.json"

"""What the end-to-end tests of SGLang have in common: when they run, and how their engines are started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.harness import Completion, compare
from benchmarks.harness.sglang import sglang_python
from tests.e2e.fleet import Fleet

REQUIRED = "GHOSTCACHER_REQUIRE_SGLANG"
"""Set to 1 (CI does): what cannot run fails, instead of being skipped."""

TOLERANCE = 1e-3
"""Of a log-probability in float32, however the batch is cut: 1e-5 is usual. One wrong page moves it by 0.1 and more."""


def installed() -> bool:
    """Say whether SGLang can be imported where its tests look for it."""
    python = sglang_python()
    probe = [str(python), "-c", "import importlib.metadata as m; m.version('sglang'); m.version('ghostcacher')"]
    return python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def engine_marks(timeout_s: float) -> list[pytest.MarkDecorator]:
    """Return the marks of a module that starts SGLang engines."""
    marks = [pytest.mark.engine, pytest.mark.timeout(timeout_s)]
    if os.environ.get(REQUIRED) != "1" and not installed():
        reason = f"SGLang is not installed for {sglang_python()}: make setup-sglang says why"
        marks.append(pytest.mark.skip(reason=reason))
    return marks


def engine(**changes: Any) -> Mapping[str, Any]:
    """Return changes to an engine's options that make it one of SGLang."""
    return {"engine": "sglang", **changes}


def difference(answer: Completion, expected: Completion) -> str:
    """Return what is wrong with an answer; empty when nothing is."""
    found = compare(answer, expected)
    return "" if found.same_tokens and found.logprob_max <= TOLERANCE else f"{found}: {answer} is not {expected}"


def assert_right(fleet: Fleet, name: str, answer: Completion, prompt: list[int]) -> None:
    """Assert that an answer is the one that the engine computes without any cache."""
    alone = fleet.recompute(name, prompt, max_tokens=len(answer.tokens))
    assert alone.cached_tokens == 0
    assert answer.tokens
    assert not difference(answer, alone)

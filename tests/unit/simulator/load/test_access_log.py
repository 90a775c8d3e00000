"""The access log of a router as a load: lines that the router's own code writes, read back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from ghostcacher_connector.core.log_format import JsonFormatter
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.http.access_log import access, log_request
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.types import Reason
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.load.trace_lines import BadTrace

RULES = b"rules " * 700
"""4,200 bytes: four whole KiBs, of 256 tokens each."""


class Logged:
    """A log file, written as a router writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handler = logging.FileHandler(path)
        self._handler.setFormatter(JsonFormatter())

    def log(
        self,
        text: bytes | None,
        *,
        status: int = 200,
        took_ms: float = 0.0,
        tokens: int | None = None,
        prompts: bool = True,
    ) -> None:
        """Log a request. text: of its prompt; None: it has none."""
        prompt = text and hash_prompt(text, (), [(SectionType.USER, len(text))], preamble=b"", seed=5, tokens=tokens)
        placement = SimpleNamespace(prompt=prompt or None, forecast=None, ttft_ms=None, reason=Reason.ONLY)
        access.addHandler(self._handler)
        access.setLevel(logging.INFO)
        try:
            log_request("::1", None, status, b"r", worker="w0", placement=placement, took_ms=took_ms, prompts=prompts)  # type: ignore[arg-type]
        finally:
            access.removeHandler(self._handler)
            access.setLevel(logging.NOTSET)

    def add(self, **fields: object) -> None:
        """Add a line of anybody else."""
        with self.path.open("a") as file:
            file.write(json.dumps(fields) + "\n")

    def load(self, block_tokens: int = 256) -> Load:
        return read_trace(self.path, block_tokens=block_tokens, answer_tokens=7)


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "router.log")


def test_prompts_share_what_their_beginnings_share(logged: Logged) -> None:
    """Whole KiBs, as blocks and as text; the rest of a prompt is its own, also where it is equal by chance."""
    logged.log(RULES + b"x" * 3_000)
    logged.log(RULES + b"y" * 900)
    logged.log(RULES + b"y" * 900)
    first, second, third = logged.load().requests
    assert [request.prompt.tokens for request in (first, second, third)] == [1_800, 1_275, 1_275]
    assert [len(request.prompt.blocks) for request in (first, second, third)] == [7, 4, 4]
    assert first.prompt.blocks[:4] == second.prompt.blocks == third.prompt.blocks
    assert first.text()[:4_096] == second.text()[:4_096]
    assert second.text() != third.text()
    assert first.prompt.answer_tokens == 7


def test_blocks_of_several_kib_end_where_the_digests_do(logged: Logged) -> None:
    """With blocks of 512 tokens both share two: what is equal of a third one is no whole block."""
    logged.log(RULES + b"a" * 5_000)
    logged.log(RULES + b"a" * 1_100 + b"b" * 3_900)
    first, second = logged.load(512).requests
    shared = [one == other for one, other in zip(first.prompt.blocks, second.prompt.blocks, strict=True)]
    assert shared == [True, True, False, False]


def test_requests_come_when_they_came_and_not_when_they_ended(logged: Logged) -> None:
    """The first line is of the request that came last: it took no time."""
    at = "2026-01-02T03:04:05.000+00:00"
    common = {"logger": access.name, "status": 200, "prompt_bytes": 400, "prompt_tokens": None, "prefix": []}
    logged.add(time=at, took_ms=0.0, **common)
    logged.add(time=at, took_ms=2_500.0, **common | {"prompt_tokens": 33})
    requests = logged.load().requests
    assert [(each.arrival_s, each.prompt.tokens) for each in requests] == [(0.0, 33), (2.5, 100)]


def test_lines_that_are_no_request_of_a_prompt_are_passed_over(logged: Logged) -> None:
    logged.add(logger="ghostcacher_router.app", time="now", message="it begins")
    logged.log(None)
    logged.log(RULES, status=503)
    logged.log(RULES)
    assert len(logged.load().requests) == 1


def test_log_without_digests_is_refused_with_what_writes_them(logged: Logged) -> None:
    logged.log(RULES, prompts=False)
    with pytest.raises(BadTrace, match=r"router.log, line 1: prefix: expected digests .* access_log_prompts logs them"):
        logged.load()


def test_blocks_that_are_no_whole_kib_are_refused(logged: Logged) -> None:
    logged.log(RULES)
    with pytest.raises(BadTrace, match="expected blocks of a multiple of 256 tokens for an access log, got 128"):
        logged.load(128)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("time", "yesterday", "time: expected such as 2026-01-02T03:04:05.678.00:00, got 'yesterday'"),
        ("prefix", [7], r"prefix\[0\]: expected `str`, got `int`"),
        ("prompt_bytes", -1, "prompt_bytes: expected `int` >= 0"),
    ],
)
def test_wrong_value_is_named(logged: Logged, field: str, value: object, said: str) -> None:
    good = {"logger": access.name, "time": "2026-01-02T03:04:05Z", "status": 200, "prompt_bytes": 9, "prefix": []}
    logged.add(**good | {field: value})
    with pytest.raises(BadTrace, match=f"line 1: {said}"):
        logged.load()

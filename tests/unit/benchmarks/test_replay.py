"""Replays of traces: what is read from files, and that a run ends with a table and is always alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import routing_traces
from benchmarks.replay.fleet import Sizes
from benchmarks.replay.policies import entrants
from benchmarks.replay.requests import BLOCK_TOKENS, PROMPT_TOKENS_MAX, from_documents, from_file
from benchmarks.routing_traces import Result, replay, verdict
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.virtual_time import run_virtual

ROWS = [
    {"timestamp": 1_000, "input_length": 1_100, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 9_000, "input_length": 1_600, "output_length": 0, "hash_ids": [7, 8, 10, 11]},
    {"timestamp": 15_000, "input_length": 40_000, "output_length": 9, "hash_ids": list(range(79))},
]

SHORT_ROW = '{"timestamp": 0, "input_length": 1025, "output_length": 1, "hash_ids": [1, 2]}\n'
EMPTY_ROW = '{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}\n'


def mooncake(folder: Path) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_equal_ids_are_equal_text_and_equal_blocks(tmp_path: Path) -> None:
    """Prompts share what their ids share, as blocks and as text; too long ones are cut; speed shortens pauses."""
    first, second, third = from_file(mooncake(tmp_path), 10, speed=2.0)
    assert first.prompt.blocks == second.prompt.blocks[:2]
    assert len(first.text()) == 4 * 1_100
    assert first.text()[: 4 * 1_024] == second.text()[: 4 * 1_024]
    assert first.text()[4 * 1_024 :] != second.text()[4 * 1_024 : 4 * 1_100]
    assert (third.prompt.tokens, len(third.prompt.blocks)) == (PROMPT_TOKENS_MAX, 64)
    assert first.arrival_s == 0.0
    assert 2.5 <= second.arrival_s <= 5.5
    assert (first.prompt.answer_tokens, second.prompt.answer_tokens) == (5, 1)


def test_prompts_of_a_csv_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8"]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    first, second = from_file(path, 10, speed=1.0)
    assert (first.prompt.tokens, second.prompt.answer_tokens) == (4_808, 8)
    assert second.arrival_s == pytest.approx(0.052, abs=1e-5)
    assert not set(first.prompt.blocks) & set(second.prompt.blocks)


@pytest.mark.parametrize("text", ["{}\n", "no JSON\n", '{"timestamp": "x"}\n', "[1]\n", SHORT_ROW, EMPTY_ROW])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.jsonl: expected JSON lines"):
        from_file(path, 10, speed=1.0)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(ConfigError, match="expected at least one request"):
        from_file(path, 10, speed=1.0)


def test_questions_share_their_document_alone() -> None:
    requests = from_documents(2, 4, count=20, rate_per_s=5.0)
    assert len({request.prompt.blocks for request in requests}) == 2
    assert len({request.text() for request in requests}) == 20


@pytest.mark.parametrize("text", ["60", "60:", "x:16", "0:16", "60:-1"])
def test_a_wrong_description_of_documents_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert routing_traces.main(["--documents", text]) == 1
    assert f"--documents: expected N:BLOCKS, such as 60:16, got {text!r}" in capsys.readouterr().err


def test_runs_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All policies on a small trace: a line for each, and the same lines again."""
    argv = ["--trace", str(mooncake(tmp_path)), "--routers", "2"]
    tables = []
    for _ in range(2):
        assert routing_traces.main(argv) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "GhostCacher, 2 routers" in tables[0]
    assert len(tables[0].splitlines()) == 2 + 11


def test_documents_that_just_fit_are_spread_as_they_fit() -> None:
    """Of twelve documents each engine has room for four. Nobody gets a fifth: it would be computed again and again."""
    ours = next(entrant for entrant in entrants(1) if entrant.name == "GhostCacher")
    found = run_virtual(replay(ours, from_documents(12, 64, count=200, rate_per_s=5.0), Sizes(3, 320, 10_000.0)))
    assert found.computed_tokens < 3 * 12 * 64 * BLOCK_TOKENS


def test_routers_that_know_nothing_of_each_other_send_each_document_to_one_engine() -> None:
    """Four routers before plain engines compute less than twice of what one router alone has them compute."""
    requests, sizes = from_documents(60, 16, count=900, rate_per_s=6.0), Sizes(3, 320, 10_000.0)
    one, four = (
        run_virtual(replay(entrant, requests, sizes))
        for entrant in entrants(4)
        if entrant.name.removeprefix("GhostCacher, ") in ("plain engines", "4 routers, plain engines")
    )
    assert four.computed_tokens < 2.0 * one.computed_tokens


def test_check_names_who_is_too_much_worse(capsys: pytest.CaptureFixture[str]) -> None:
    """Ways of ours fail the check when they are slower than the best simple policy, and not than each other."""
    simple, *_, sharing, plain = entrants(4)

    def status(simple_s: float, sharing_s: float, plain_s: float) -> int:
        means = [(simple, simple_s), (sharing, sharing_s), (plain, plain_s)]
        return verdict([Result(entrant, [mean_s], 1, 1, 0) for entrant, mean_s in means])

    assert status(1.0, 0.5, 1.3) == 1
    assert f"{plain.name}: expected at most 1.25 times the mean of {simple.name}" in capsys.readouterr().out
    assert status(1.0, 0.5, 1.2) == 0
    assert status(1.3, 1.0, 1.0) == 0

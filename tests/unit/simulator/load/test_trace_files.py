"""Traces of each format: what a line becomes, and what is said of a line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.requests import BLOCK_TOKENS
from ghostcacher_simulator.load.trace_files import read_trace
from ghostcacher_simulator.load.trace_lines import BadTrace

ROWS = [
    {"timestamp": 1_000, "input_length": 1_100, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 9_000, "input_length": 1_600, "output_length": 0, "hash_ids": [7, 8, 10, 11]},
    {"timestamp": 15_000, "input_length": 40_000, "output_length": 9, "hash_ids": list(range(79))},
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Session ID,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def json_lines(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_equal_ids_are_equal_text_and_equal_blocks(tmp_path: Path) -> None:
    """Prompts share what their ids share, as blocks and as text; too long ones are cut; speed shortens pauses."""
    load = read_trace(json_lines(tmp_path, ROWS), speed=2.0, tokens_max=32_768)
    first, second, third = load.requests
    assert first.prompt.blocks == second.prompt.blocks[:2]
    assert len(first.text()) == 4 * 1_100
    assert first.text()[: 4 * 1_024] == second.text()[: 4 * 1_024]
    assert first.text()[4 * 1_024 :] != second.text()[4 * 1_024 : 4 * 1_100]
    assert (third.prompt.tokens, len(third.prompt.blocks)) == (32_768, 64)
    assert [request.arrival_s for request in load.requests] == [0.0, 4.0, 7.0]
    assert (first.prompt.answer_tokens, second.prompt.answer_tokens) == (5, 1)
    assert (load.name, load.block_tokens, load.prompt_tokens) == ("trace.jsonl", BLOCK_TOKENS, 1_100 + 1_600 + 32_768)


def test_arrivals_that_a_trace_has_rounded_are_spread_over_the_step(tmp_path: Path) -> None:
    """Ten requests at each of three times, 3 s apart: all at other times, none of them a step late, in order."""
    rows = [ROWS[0] | {"timestamp": 3_000 * (number // 10)} for number in range(30)]
    arrivals = [request.arrival_s for request in read_trace(json_lines(tmp_path, rows)).requests]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 30
    assert all(arrivals[10 * step] < 3.0 * (step + 1) for step in range(3))
    assert arrivals[-1] < 9.0


def test_part_of_a_trace_begins_at_its_own_beginning(tmp_path: Path) -> None:
    (request,) = read_trace(json_lines(tmp_path, ROWS), first=1, count=1).requests
    assert (request.arrival_s, request.prompt.tokens) == (0.0, 1_600)
    with pytest.raises(BadTrace, match=r"expected at least one request from 3 on, got none"):
        read_trace(json_lines(tmp_path, ROWS), first=3)


def test_turns_of_a_session_go_on_from_the_history(tmp_path: Path) -> None:
    """A turn's prompt is all before it, the answer included, and what it adds; delays count from the turn before."""
    rows = [
        {"session_id": "a", "timestamp": 500, "input_length": 600, "output_length": 100},
        {"session_id": "b", "timestamp": 700, "input_length": 600, "output_length": 100},
        {"session_id": "a", "delay": 2_000, "input_length": 400, "output_length": 100},
    ]
    first, other, second = read_trace(json_lines(tmp_path, rows)).requests
    assert (second.prompt.tokens, second.arrival_s, second.session) == (1_100, 2.0, "a")
    assert second.prompt.blocks[0] == first.prompt.blocks[0] != other.prompt.blocks[0]


def test_prompts_of_azure_share_nothing(tmp_path: Path) -> None:
    lines = "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    first, second = read_trace(csv_file(tmp_path, AZURE + lines)).requests
    assert (first.prompt.tokens, second.prompt.answer_tokens) == (4_808, 8)
    assert second.arrival_s == pytest.approx(0.052, abs=1e-5)
    assert not set(first.prompt.blocks) & set(second.prompt.blocks)


def test_prompts_of_a_burstgpt_session_begin_alike(tmp_path: Path) -> None:
    """The whole prompt is given: the longer one goes on from the shorter. Without a session nothing is shared."""
    lines = "5,s1,ChatGPT,600,20,620,x\n6,,GPT-4,700,0,700,x\n9.5,s1,ChatGPT,1300,20,1320,x\n"
    first, alone, second = read_trace(csv_file(tmp_path, BURST + lines)).requests
    assert (second.prompt.tokens, second.arrival_s, second.session, alone.session) == (1_300, 4.5, "s1", None)
    assert second.prompt.blocks[0] == first.prompt.blocks[0] != alone.prompt.blocks[0]
    assert alone.prompt.answer_tokens == 1


GOOD = ROWS[0]
WRONG_JSON = {
    "no object": (["x"], r"line 2: expected `object`, got `array`"),
    "no length": ({"timestamp": 1}, r"line 2: object missing required field `input_length`$"),
    "a request": (
        {"messages": []},
        r"line 2: object missing .*; the line is a request's body, .* `ghostcacher analyze`",
    ),
    "text for a length": (GOOD | {"input_length": "x"}, r"line 2: input_length: expected `int`, got `str`"),
    "length 0": (GOOD | {"input_length": 0}, r"line 2: input_length: expected `int` >= 1"),
    "negative answer": (GOOD | {"output_length": -1}, r"line 2: output_length: expected `int` >= 0"),
    "negative time": (GOOD | {"timestamp": -1}, r"line 2: timestamp: expected `float` >= 0.0"),
    "null hash": (GOOD | {"hash_ids": [1, None, 3]}, r"line 2: hash_ids\[1\]: expected"),
    "too few hashes": (GOOD | {"hash_ids": [1, 2]}, r"line 2: hash_ids: expected 3 for input_length 1100 .*, got 2"),
    "too many hashes": (GOOD | {"hash_ids": [1] * 4}, r"line 2: hash_ids: expected 3 for input_length 1100 .*, got 4"),
    "no time": ({"input_length": 5, "output_length": 1}, r"line 2: timestamp: expected milliseconds, or a delay"),
    "first delay": ({"session_id": 1, "delay": 5, "input_length": 5, "output_length": 1}, r"line 2: timestamp: exp"),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_line_of_json_is_named(tmp_path: Path, case: str) -> None:
    row, said = WRONG_JSON[case]
    with pytest.raises(BadTrace, match=rf"^trace .*trace\.jsonl, {said}"):
        read_trace(json_lines(tmp_path, [GOOD, row]))


WRONG_CSV = {
    "other columns": ("a,b\n1,2\n", r"line 1: expected the columns TIMESTAMP, .* or Timestamp, .*, got a, b"),
    "nothing": ("", r"line 1: expected the columns"),
    "no time": (AZURE + "yesterday,5,6\n", r"line 2: TIMESTAMP: expected such as .*, got 'yesterday'"),
    "no number": (AZURE + "2023-11-16 18:17:03,5,6\n2023-11-16 18:17:03,x,6\n", r"line 3: ContextTokens: .* 'x'"),
    "no prompt": (AZURE + "2023-11-16 18:17:03,0,6\n", r"line 2: ContextTokens: expected a whole number from 1"),
    "a sign": (AZURE + "2023-11-16 18:17:03,5,-6\n", r"line 2: GeneratedTokens: expected a whole number from 0"),
    "a column more": (AZURE + "2023-11-16 18:17:03,5,6,7\n", r"line 2: expected 3 columns, got 4"),
    "endless time": (BURST + "inf,,m,5,6,11,x\n", r"line 2: Timestamp: expected seconds from 0, got 'inf'"),
    "text": (BURST + "1,,m,5.5,6,11,x\n", r"line 2: Request tokens: expected a whole number from 1 to \d+, got '5.5'"),
}


@pytest.mark.parametrize("case", WRONG_CSV)
def test_wrong_line_of_a_csv_is_named(tmp_path: Path, case: str) -> None:
    text, said = WRONG_CSV[case]
    with pytest.raises(BadTrace, match=rf"^trace .*trace\.csv, {said}"):
        read_trace(csv_file(tmp_path, text))


@pytest.mark.parametrize("content", [b"no JSON\n", b"\xff\xfe\n"])
def test_what_is_no_json_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadTrace, match=r"other\.jsonl, line 1: expected one JSON object"):
        read_trace(path)


def test_csv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(AZURE.encode() + b"\xff,5,6\n")
    with pytest.raises(BadTrace, match=r"trace\.csv, line 1|trace\.csv, line 2: expected UTF-8"):
        read_trace(path)


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="expected at least one request, got none"):
        read_trace(json_lines(tmp_path, []))
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        read_trace(tmp_path / "nowhere.jsonl")

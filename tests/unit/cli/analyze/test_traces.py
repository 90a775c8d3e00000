"""A file as sequences of blocks: who shares what, and what is said of a file that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_cli.analyze import traces
from ghostcacher_cli.analyze.formats import BadLine
from ghostcacher_cli.analyze.traces import Trace, read_trace
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType


def trace_of(folder: Path, lines: list[Any], block_tokens: int | None = None, bytes_per_token: float = 4.0) -> Trace:
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_trace(path, block_tokens, bytes_per_token)


def blocks(trace: Trace) -> list[list[int]]:
    return [list(trace.blocks_of(request)) for request in range(trace.requests)]


def test_text_shares_whole_blocks_from_the_beginning(tmp_path: Path) -> None:
    """A block is shared while all before it is equal; the rest of a prompt that fills none is a block of nobody."""
    lines = [{"prompt": text} for text in ("aaaabbbbcc", "aaaabbbbcd", "aaaaxxxx", "yyyybbbb", "aaa")]
    trace = trace_of(tmp_path, lines, block_tokens=2, bytes_per_token=2)
    # Each text begins with the one byte that says that it is text.
    assert blocks(trace) == [[0, 1], [0, 1], [0, 2], [3, 4], [0]]
    assert list(trace.prompt_tokens) == [6, 6, 4, 4, 2]
    assert list(trace.tokens_of) == [2, 2, 2, 2, 2]
    assert list(trace.depth_of) == [0, 1, 1, 0, 1]
    assert list(trace.first_seen) == [0, 0, 2, 3, 3]


def test_requests_to_two_models_share_no_block(tmp_path: Path) -> None:
    lines = [{"model": model, "prompt": "a" * 40} for model in ("m", "other", "m")]
    first, second, third = blocks(trace_of(tmp_path, lines, 2))
    assert first == third
    assert not set(first) & set(second)


def test_equal_hashes_behind_others_are_other_blocks(tmp_path: Path) -> None:
    """A hash may be of a block's own content: the block is that and all before it. The last one may be shorter."""
    lines = [{"hash_ids": [1, 2], "input_length": 14}, {"hash_ids": [3, 2]}, {"hash_ids": [1, 2], "input_length": 14}]
    trace = trace_of(tmp_path, lines, block_tokens=8)
    assert blocks(trace) == [[0, 1], [2, 3], [0, 1]]
    assert list(trace.tokens_of) == [8, 6, 8, 8]
    assert list(trace.prompt_tokens) == [14, 16, 14]


def test_token_ids_are_cut_by_tokens_whatever_text_takes(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [{"prompt": [1, 2, 3, 4, 5]}, {"prompt": [1, 2, 3, 9]}], 2, bytes_per_token=7.5)
    assert blocks(trace) == [[0, 1], [0, 2]]
    assert list(trace.prompt_tokens) == [5, 4]


def test_usual_blocks_are_those_of_the_kind(tmp_path: Path) -> None:
    assert trace_of(tmp_path, [{"prompt": "x"}]).block_tokens == 16
    assert trace_of(tmp_path, [{"hash_ids": [1]}]).block_tokens == 512


def test_sections_of_blocks_are_those_of_the_request(tmp_path: Path) -> None:
    """Where nothing tells, a block is part of a session."""
    messages = [{"role": "system", "content": "s" * 40}, {"role": "user", "content": "u" * 40}]
    # The system message takes 48 bytes, frames and role included: six blocks, the last of which ends with it.
    chat = trace_of(tmp_path, [{"messages": messages}], 8, 1)
    assert list(map(SectionType, chat.section_of)) == [SectionType.SYS] * 6 + [SectionType.USER] * 5
    assert list(trace_of(tmp_path, [{"hash_ids": [1]}]).section_of) == [SectionType.SESSION]


def test_times_are_the_files_or_one_a_second(tmp_path: Path) -> None:
    timed = trace_of(tmp_path, [{"hash_ids": [1], "timestamp": 500}, {"hash_ids": [1], "timestamp": 500}])
    assert (list(timed.arrived_s), timed.timed) == ([0.5, 0.5], True)
    untimed = trace_of(tmp_path, [{"hash_ids": [1]}, {"hash_ids": [1]}])
    assert (list(untimed.arrived_s), untimed.timed) == ([0.0, 1.0], False)


def test_lines_are_found_again_by_their_offsets(tmp_path: Path) -> None:
    """Blank lines are passed over; what was read is told."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'\n{"prompt": "x"}\r\n  \n{"prompt": "y"}')
    told: list[int] = []
    trace = read_trace(path, None, 4.0, told.append)
    data = path.read_bytes()
    assert [data[offset:].splitlines()[0] for offset in trace.offsets] == [b'{"prompt": "x"}', b'{"prompt": "y"}']
    assert told[-1] == len(data)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "x"}, {"prompt": 5}], "line 2: Invalid type for 'prompt'"),
        (
            [{"hash_ids": [1], "input_length": 513}],
            "line 1: input_length: expected 1 to 512 for 1 hash_ids of 512 tokens each (--block-size), got 513",
        ),
        ([{"hash_ids": [1, 2], "input_length": 512}], "expected 513 to 1024 for 2 hash_ids"),
        (
            [{"hash_ids": [1], "timestamp": 5}, {"hash_ids": [1]}],
            "line 2: timestamp: expected a number of milliseconds, as in the first line, got none",
        ),
        (
            [{"hash_ids": [1], "timestamp": 5}, {"hash_ids": [1], "timestamp": 4}],
            "line 2: timestamp: expected no less than in the line before, 5, got 4",
        ),
        ([], "line 1: expected a request in JSON, the file is empty"),
    ],
)  # fmt: skip
def test_wrong_line_is_named_by_file_and_number(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(BadLine) as refused:
        trace_of(tmp_path, lines)
    assert str(refused.value).startswith(f"{tmp_path / 'requests.jsonl'}, line ")
    assert said in str(refused.value)


def test_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line ends is not read into memory."""
    monkeypatch.setattr(traces, "LINE_BYTES_MAX", 20)
    with pytest.raises(BadLine, match="line 2: expected at most"):
        trace_of(tmp_path, [{"prompt": "x"}, {"prompt": "x" * 50}])


def test_more_blocks_than_there_are_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "BLOCKS_MAX", 3)
    with pytest.raises(BadLine, match="line 2: expected at most 3 blocks in a file: give larger ones"):
        trace_of(tmp_path, [{"hash_ids": [1, 2]}, {"hash_ids": [1, 2]}])


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"FILE: .* cannot be read: "):
        read_trace(tmp_path / name, None, 4.0)


@given(st.lists(st.text("ab", max_size=12), min_size=1), st.integers(1, 3))
def test_two_prompts_share_the_blocks_that_they_begin_with(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block_tokens: int
) -> None:
    """For all pairs: as many as whole blocks fit into what they have in common."""
    folder = tmp_path_factory.mktemp("texts")
    trace = trace_of(folder, [{"prompt": [ord(char) for char in text]} for text in texts], block_tokens)
    found = blocks(trace)
    for text, mine in zip(texts, found, strict=True):
        assert len(mine) == len(text) // block_tokens
        for other, theirs in zip(texts, found, strict=True):
            same = next((at for at in range(len(text)) if text[at] != other[at : at + 1]), len(text))
            expected = same // block_tokens
            assert mine[:expected] == theirs[:expected]
            assert not set(mine[expected:]) & set(theirs[expected:])

"""The tree of what requests share, and how its branches begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given

from ghostcacher_cli.analyze.previews import Previews, readable
from ghostcacher_cli.analyze.shared_prefixes import shared_prefixes
from ghostcacher_cli.analyze.stack_distance import hit_curve
from ghostcacher_cli.analyze.traces import read_trace
from ghostcacher_connector.core.errors import ConfigError
from tests.unit.cli.analyze.support import prompts, trace_of


@given(prompts)
def test_all_branches_together_save_what_an_endless_cache_does(requests: list[list[int]]) -> None:
    trace = trace_of(requests)
    found = shared_prefixes(trace, 1000)
    assert sum(each.saves_tokens for each in found) == hit_curve(trace.blocks, trace.starts, trace.tokens_of).most
    assert all(each.requests > 1 for each in found)


def test_branches_that_save_most_are_listed_as_a_tree() -> None:
    """In the order of the tree, each below the listed ones that it goes on from."""
    trace = trace_of([[0, 1, 2], [0, 1, 2], [0, 1, 3, 3], [0, 1, 3, 3], [4, 4], [4, 4], [4, 4], [0, 5]])
    found = shared_prefixes(trace, 4)
    assert [(each.start_tokens, each.tokens, each.requests, each.level) for each in found] == [
        (0, 11, 5, 0),
        (10, 12, 4, 1),
        (20, 27, 2, 2),
        (0, 23, 3, 0),
    ]
    assert found[0].saves_tokens == 44
    assert shared_prefixes(trace, 0) == []


def previews_of(path: Path, lines: list[object], block_tokens: int) -> list[str]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = read_trace(path, block_tokens, 1.0)
    previews = Previews(path, trace, 1.0)
    return [previews.beginning_of(block) for block in range(len(trace.tokens_of))]


def test_beginnings_are_read_again_from_the_file(tmp_path: Path) -> None:
    """Text in the order of the template, token ids and hashes, each from where the block begins."""
    path = tmp_path / "requests.jsonl"
    assert previews_of(path, [{"hash_ids": [7, "f0"]}], 512) == ["block 7", "block f0"]
    assert previews_of(path, [{"prompt": [5, 6, 7, 8]}], 3) == ["5 6 7 8"]
    chat = {"system": "short\nanswers", "messages": [{"role": "user", "content": "caf\u00e9"}]}
    assert previews_of(path, [chat], 8)[:2] == [
        "system: short answers user: caf\u00e9",
        "short answers user: caf\u00e9",
    ]
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Previews(path, trace_of([[1]]), 1.0).beginning_of(0)


def test_beginnings_do_nothing_to_a_terminal() -> None:
    """Neither escape sequences nor a character that was cut are printed."""
    assert readable("\xe9".encode()[1:] + b"red \x1b[31m\x07 text" + "\xe9".encode()[:1]) == "red ? text"

"""The best order: depth first saves all that can be saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from ghostcacher_cli.analyze.send_order import curve_of_order, depth_first, write_in_order
from ghostcacher_cli.analyze.stack_distance import hit_curve
from ghostcacher_cli.analyze.traces import read_trace
from ghostcacher_connector.core.errors import ConfigError
from tests.unit.cli.analyze.support import longest, prompts, trace_of


@given(prompts)
def test_cache_of_one_prompt_saves_all_in_the_best_order(requests: list[list[int]]) -> None:
    """Nothing that any cache could save is lost, and no size saves less than in the file's order."""
    trace = trace_of(requests)
    order = depth_first(trace)
    assert sorted(order) == list(range(len(requests)))
    best, given_order = curve_of_order(trace, order), hit_curve(trace.blocks, trace.starts, trace.tokens_of)
    assert best.most == given_order.most == best.at(longest(trace))
    assert all(best.at(size) >= given_order.at(size) for size in range(given_order.enough + 1))


def test_order_keeps_to_the_file_where_the_tree_lets_it() -> None:
    """What begins alike comes together, behind the first of it; equal prompts stay as they were."""
    trace = trace_of([[0, 1], [5], [0, 2], [0], [5], [0, 1, 1]])
    assert depth_first(trace) == [3, 0, 5, 2, 1, 4]
    assert depth_first(trace_of([[number] for number in range(600)])) == list(range(600))


def test_lines_are_written_in_order(tmp_path: Path) -> None:
    """As they are, each with a line end; no file is overwritten."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"hash_ids": [1]}\n\n{"hash_ids":[2]}\r\n{"hash_ids": [1, 3]}')
    trace = read_trace(source, None, 4.0)
    write_in_order(source, target, trace, depth_first(trace))
    assert target.read_text().splitlines() == ['{"hash_ids": [1]}', '{"hash_ids": [1, 3]}', '{"hash_ids":[2]}']
    with pytest.raises(ConfigError, match=r"--write-order: .*out.jsonl exists: name a new file"):
        write_in_order(source, target, trace, [0])
    with pytest.raises(ConfigError, match=r"--write-order: .* cannot be written: "):
        write_in_order(source, tmp_path / "no" / "out.jsonl", trace, [0])

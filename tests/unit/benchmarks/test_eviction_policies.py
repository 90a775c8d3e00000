"""The table of eviction policies: its bound, its rivals and what it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.eviction.caches import S3Fifo, Tier, WTinyLfu, bound, hit_ratio
from benchmarks.eviction.loads import Load, Prompt, documents, sessions, with_scan
from benchmarks.policies import arguments, capacities_of, loads_of
from ghostcacher_connector.core.errors import ConfigError


def load_of(*prompts: list[int]) -> Load:
    return Load("load", [Prompt(float(number), blocks) for number, blocks in enumerate(prompts)])


def test_block_behind_a_gap_is_no_hit() -> None:
    load = load_of([1, 2], [9], [1, 2])
    tier = Tier("lru", 2)
    assert [tier.serve(prompt) for prompt in load.prompts] == [0, 0, 1]


def test_bound_keeps_what_is_used_next() -> None:
    """One place: 1 is worth keeping over 2, which never comes again."""
    assert bound(load_of([1], [2], [1], [3], [1]), 1) == pytest.approx(2 / 5)


@pytest.mark.parametrize("made", [documents(20, 4, 200), sessions(200), with_scan(documents(20, 4, 100), 2, 4)])
@pytest.mark.parametrize("make", [S3Fifo, WTinyLfu, lambda size: Tier("hit-density", size)])
def test_no_cache_exceeds_the_bound_and_all_reach_it_with_room_for_everything(made: Load, make) -> None:  # type: ignore[no-untyped-def]
    assert hit_ratio(make(40), made) <= bound(made, 40)
    assert hit_ratio(make(10_000), made) == bound(made, 10_000) > 0


def test_part_of_a_trace_is_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": 1000 * n, "hash_ids": [n]}) + "\n" for n in range(5)))
    (load,) = loads_of(arguments(["--trace", f"{trace}:1:3"]))
    assert load.prompts == [Prompt(1.0, [1]), Prompt(2.0, [2])]


@pytest.mark.parametrize("argument", ["missing.jsonl", "file:a:b", "file:1"])
def test_wrong_trace_is_refused_by_name(argument: str) -> None:
    with pytest.raises(ConfigError, match="trace"):
        loads_of(arguments(["--trace", argument]))


def test_wrong_capacities_are_refused() -> None:
    with pytest.raises(ConfigError, match="--capacities: expected numbers of blocks"):
        capacities_of(arguments(["--capacities", "10,many"]))

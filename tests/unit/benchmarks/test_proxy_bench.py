"""The proxy benchmark, as far as it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.client import parse_metrics
from benchmarks.proxy.bodies import MARK, chat_body, corpus, escaped, fitted
from benchmarks.proxy.connectors import CHAINS_MAX, HASHES_MAX, SEEN, Chains, Seen, affordable, hash_count, parse_seen
from benchmarks.proxy.insight import Insight, insight
from benchmarks.proxy.measure import DIRECT, SCENARIOS, Memory, Result, chosen_scenarios, scenario_table
from benchmarks.proxy.proxies import NGINX, OURS, SGLANG, nginx_peer, our_router, rust_peer
from benchmarks.proxy.running import Answered

ANSWERED = Answered(1000, 1.0, 0, 0, 0, 0, 0, 1000, 1000, 0.1, 150.0, 200.0, 300.0, 150.0, 300.0)


@pytest.mark.parametrize("size", [0, 1, 7, 100, 5000])
def test_fitted_text_has_the_size_in_json(size: int) -> None:
    """Escapes count as they are written, and none is cut in two."""
    text = fitted('\tif "a\\b":\n' * 100, size)
    assert len(escaped(text)) == size


@pytest.mark.parametrize("size", [2048, 32 << 10])
def test_chat_body_has_its_size_and_one_mark(size: int) -> None:
    """A body is valid JSON of exactly the size asked for, with one place for a number."""
    body = chat_body(corpus(), 7, size, stream=True)
    request = json.loads(body)
    assert len(body) == size
    assert body.count(MARK.encode()) == 1
    assert request["stream"] is True
    assert request["messages"][1]["content"].startswith(MARK)
    assert len(request["messages"][0]["content"]) > size // 2


@pytest.mark.parametrize(
    ("sizes", "kinds", "names"),
    [
        ([], [], [scenario.name for scenario in SCENARIOS]),
        ([2, 256], ["plain"], ["plain 2 KiB", "plain 256 KiB"]),
        ([32], [], ["plain 32 KiB", "streamed 32 KiB"]),
        ([3], ["plain"], []),
    ],
)
def test_scenarios_are_chosen_by_size_and_kind(sizes: list[int], kinds: list[str], names: list[str]) -> None:
    """What is not named is not left out."""
    assert [scenario.name for scenario in chosen_scenarios(sizes, kinds)] == names


def test_chat_body_of_one_project_begins_alike_in_all_sizes() -> None:
    """The longer prompt of a project goes on where the shorter one ends."""
    short, long = (chat_body(corpus(), 3, size, stream=False) for size in (2048, 8192))
    assert short[:1500] == long[:1500]


def test_chat_body_too_small_says_how_small() -> None:
    """A size without room for the fixed parts is refused."""
    with pytest.raises(ValueError, match="expected at least"):
        chat_body(corpus(), 0, 64, stream=False)


def test_parse_seen_leaves_out_what_is_cut() -> None:
    """Records come back as they were written, a cut one not at all."""
    record = SEEN.pack(3, 7, 2048, 1, b"req-1")
    assert parse_seen(record + record[:10]) == [Seen(3, 7, 2048, 1, "req-1")]


def test_chains_of_one_project_share_seven_eighths() -> None:
    """Two prompts of a project have the same hashes up to their questions, and then no more."""
    chains = Chains()
    (first, common), (second, _) = (chains.of(Seen(0, 5, 32 << 10, 0, name)) for name in "ab")
    assert (len(first.hashes), common) == (64, 56)
    assert first.hashes[:56] == second.hashes[:56]
    assert not set(first.hashes[56:]) & set(second.hashes[56:])
    assert first.block_counts == second.block_counts == tuple(range(8, 513, 8))


def test_affordable_is_bounded_by_hashes_and_by_chains() -> None:
    """Requests without an id are nobody's; of the others a turn tells a bounded part."""
    small = [Seen(0, 1, 2048, 0, "" if number % 2 else "id") for number in range(2000)]
    large = [Seen(0, 1, 256 << 10, 0, "id")] * 100
    assert len(affordable(small)) == CHAINS_MAX
    assert all(each.request_id for each in affordable(small))
    assert sum(map(hash_count, affordable(large))) == HASHES_MAX


def test_scenario_table_compares_with_nginx_and_with_no_proxy() -> None:
    """CPU is shown over nginx's, latency less the direct one, and a missed target is named."""

    def result(name: str, cpu_s: float, p50: float) -> Result:
        paced = Answered(100, 1.0, 0, 0, 0, 0, 0, 100, 100, 0.1, p50, p50, p50, p50, p50)
        return Result(name, SCENARIOS[0], ANSWERED, cpu_s, paced, 1 << 20, None)

    text = scenario_table([result(DIRECT, 0, 100), result(NGINX, 0.02, 150), result(OURS, 0.08, 400)])
    ours = text.splitlines()[-1].split()
    assert ours[:5] == [OURS, "80.0", "4.00", "75", "MISSED"]
    assert ours[6] == "300"


def test_insight_counts_what_happened_between_two_readings() -> None:
    """Of a histogram and of picks by reason, what was there before is taken off."""
    page = """\
# TYPE gc_request_latency_ms histogram
gc_request_latency_ms_bucket{{le="0.1"}} {}
gc_request_latency_ms_bucket{{le="2.0"}} {}
gc_request_latency_ms_bucket{{le="+Inf"}} {}
# TYPE gc_router_picks_total counter
gc_router_picks_total{{reason="forecast"}} {}
gc_router_picks_total{{reason="hash"}} 7
"""
    before, after = (parse_metrics(page.format(*values)) for values in ((50, 50, 50, 1), (140, 149, 150, 101)))
    assert insight(before, after) == Insight(0.1, 2.0, {"forecast": 1.0})


def test_memory_growth_counts_the_second_half() -> None:
    """What fills caches at first is not growth."""
    assert Memory(OURS, 1000, 0, before=10, middle=500, after=600).growth_per_million == 200_000


def test_rust_peer_missing_says_how_to_get_it(tmp_path: Path) -> None:
    """A peer that is not installed has no command, and a hint."""
    peer = rust_peer(SGLANG, tmp_path, 1, 2, [3])
    assert peer.command is None
    assert "--install-peers" in peer.hint


def test_nginx_conf_names_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx runs in the foreground with a configuration of its own."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/sbin/nginx")
    peer = nginx_peer(tmp_path, 8000, [1001, 1002])
    conf = (tmp_path / "nginx.conf").read_text()
    assert peer.command is not None
    assert "server 127.0.0.1:1001; server 127.0.0.1:1002;" in conf
    assert "daemon off;" in conf


def test_our_router_takes_urls_or_redis() -> None:
    """Without a Redis the workers are named on the command line, with one they are not."""
    alone, indexed = our_router(1, [2], None).command, our_router(1, [2], "unix:///r").command
    assert alone is not None
    assert indexed is not None
    assert alone[-3:] == ["--no-redis", "--worker", "http://127.0.0.1:2"]
    assert indexed[-2:] == ["--redis-url", "unix:///r"]

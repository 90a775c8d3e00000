"""What a client gets when a prefix was pulled, against what the same engine computes on its own."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.harness import Client, ensure_model, run_concurrently
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from ghostcacher_connector.metrics.catalog import METRICS, Kind
from tests.e2e.fleet import (
    BLOCK_TOKENS,
    TOLERANCE,
    Fleet,
    assert_different,
    assert_same,
    running,
    until,
)
from tests.support.doctor_program import doctor

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CHUNK_TOKENS = 512
EXTENSION = ("--worker-extension-cls", "tests.support.weight_extension.WeightExtension")
CHUNKED = ("--max-num-batched-tokens", str(CHUNK_TOKENS), "--max-num-seqs", "32")
"""Longer prompts are computed in several steps, on both sides; each takes long enough to be looked at meanwhile."""

HANG_UPS = 16


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    """a: found as an installed plugin; b: by module path; stranger: another model with the same configuration."""
    installed = [point.value for point in entry_points(group="vllm.general_plugins")]
    if not any(value.startswith("ghostcacher_connector.") for value in installed):
        pytest.fail("the ghostcacher package is not installed here: pip install --no-deps -e .", pytrace=False)
    engines = {
        "a": {"module_path": False, "extra_args": (*CHUNKED, *EXTENSION)},
        "b": {"extra_args": (*CHUNKED, *EXTENSION)},
        "stranger": {"model": str(ensure_model("tiny", seed=1))},
    }
    with running(model, engines, log_dir=log_dir) as fleet:
        fleet.prime("b", "a")
        fleet.prime("a", "b")
        yield fleet


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 40, 63, 64, 65, 127, 129, 500, 1000, 2049])
def test_pulled_prefix_gives_the_answer_of_a_full_recompute(fleet: Fleet, tokens: int) -> None:
    """Whatever the prompt's length is to the block boundary, pulling changes no token and no log-probability."""
    prompt = fleet.document(tokens)
    computed = fleet.compute("a", prompt)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(prompt, max_tokens=8)

    blocks = (tokens - 1) // BLOCK_TOKENS
    assert pulled.cached_tokens in ({0, None} if blocks == 0 else {blocks * BLOCK_TOKENS})
    assert counters.hits() == blocks
    assert counters.misses() == 0
    assert counters.grown("gc_rdma_transfers_total", outcome="done") == (1 if blocks else 0)
    assert_same(pulled, fleet.client("b").complete(prompt, max_tokens=8, pull=False))  # from b's own cache now
    fleet.assert_right("b", pulled, prompt)
    assert_same(pulled, computed, tolerance=TOLERANCE)


def test_prompt_longer_than_what_is_shared_pulls_and_computes_the_rest_in_chunks(fleet: Fleet) -> None:
    """A pulled prefix of 16 blocks is continued by 700 tokens of the engine's own, in steps of 512."""
    shared, tail = fleet.document(16 * BLOCK_TOKENS), fleet.document(700)
    fleet.compute("a", shared)
    counters = fleet.counters("b")

    pulled = fleet.client("b").complete(shared + tail, max_tokens=8)

    assert pulled.cached_tokens == len(shared)
    assert counters.hits() == 16
    assert counters.reasons() == {"not_indexed": 1211 // BLOCK_TOKENS - 16}
    assert_same(pulled, fleet.recompute("b", shared + tail), tolerance=TOLERANCE)


def test_generated_tokens_are_shared_too(fleet: Fleet) -> None:
    """A conversation that goes on at another engine pulls what was generated, not only what was asked."""
    prompt = fleet.document(BLOCK_TOKENS + 8)
    before = fleet.entries("b")
    first = fleet.client("b").complete(prompt, max_tokens=3 * BLOCK_TOKENS, ignore_eos=True)
    blocks = (len(prompt) + len(first.tokens) - 1) // BLOCK_TOKENS
    fleet.wait_published("b", before, blocks)
    turn = [*prompt, *first.tokens, *fleet.document(5)]
    counters = fleet.counters("a")

    pulled = fleet.client("a").complete(turn, max_tokens=8)

    assert counters.hits() == blocks == 4
    assert pulled.cached_tokens == blocks * BLOCK_TOKENS
    assert_same(pulled, fleet.client("b").complete(turn, max_tokens=8, pull=False), tolerance=TOLERANCE)
    assert_same(pulled, fleet.recompute("a", turn), tolerance=TOLERANCE)


def test_concurrent_requests_on_busy_engines_answer_as_alone(fleet: Fleet) -> None:
    """Sixty requests over shared documents, to both engines at once and among long generations, are all right.

    Each engine holds two of the documents, and none the last.
    """
    documents = [fleet.document(400) for _ in range(5)]
    prompts = [document[:cut] for document in documents for cut in (130, 257, 400)]
    expected = [fleet.recompute("b", prompt) for prompt in prompts]
    for number, document in enumerate(documents[:-1]):  # else both may compute all of them, side by side
        fleet.compute("ab"[number % 2], document)
    before = {name: fleet.counters(name) for name in "ab"}
    work = [(name, number) for number in range(len(prompts)) for name in ("abba" if number % 2 else "baab")]

    def ask(item: tuple[str, int]) -> None:
        name, number = item
        assert_same(fleet.client(name).complete(prompts[number], max_tokens=8), expected[number], tolerance=TOLERANCE)

    def keep_busy(name: str) -> None:
        fleet.client(name).complete(fleet.document(20), max_tokens=150, ignore_eos=True, pull=False)

    jobs = [(keep_busy, name) for name in "ab"] + [(ask, item) for item in work]
    run_concurrently(lambda job: job[0](job[1]), jobs, concurrency=8)

    assert sum(counters.hits() for counters in before.values()) >= 20


def test_prefix_that_is_being_computed_is_pulled_as_far_as_it_is_done(fleet: Fleet) -> None:
    """Asking one engine for a document while the other is in the midst of it gives no half-computed block."""
    tokens = 6 * CHUNK_TOKENS
    pulled_tokens: list[int] = []
    # The faster the machine, the more seldom b asks in time.
    while len(pulled_tokens) < 4 or not any(0 < pulled < tokens for pulled in pulled_tokens):
        assert len(pulled_tokens) < 16, f"never in the midst: {pulled_tokens} of {tokens}"
        prompt = fleet.document(tokens + 1)
        before = fleet.entries("a")
        with ThreadPoolExecutor(1) as owner:
            computed = owner.submit(fleet.client("a").complete, prompt, max_tokens=2, pull=False)
            fleet.wait_published("a", before, 1)  # else b is as far as a when it asks, and there is never anything
            answers = []
            while not answers or not computed.done():
                asked = prompt[: len(prompt) - len(answers)]
                answers.append((asked, fleet.client("b").complete(asked, max_tokens=4)))
                fleet.client("b").reset_prefix_cache()
        pulled_tokens.append(answers[0][1].cached_tokens or 0)
        for asked, answer in answers:
            assert_same(answer, fleet.recompute("b", asked, max_tokens=4), tolerance=TOLERANCE)


def test_client_that_goes_away_around_a_pull_leaves_no_block_behind(fleet: Fleet) -> None:
    """Requests that are given up before, during and after their pull free every block, and the next one is right."""
    prompt = fleet.document(40 * BLOCK_TOKENS + 1)
    fleet.compute("a", prompt)
    client, counters = fleet.client("b"), fleet.counters("b")

    for attempt in range(HANG_UPS):
        _ask_and_hang_up(client, prompt, after_s=attempt * 0.01 if attempt < HANG_UPS - 2 else None)
        client.reset_prefix_cache()  # refused while any block is in use

    until(lambda: client.metrics().sum("vllm:num_requests_running") == 0, "no request running")
    assert client.metrics().sum("vllm:kv_cache_usage_perc") == 0.0
    generated = counters.grown("vllm:generation_tokens_total")
    assert generated < HANG_UPS * 100, "the requests ran to their ends: nobody hung up"
    pulled = client.complete(prompt, max_tokens=8)
    assert pulled.cached_tokens == 40 * BLOCK_TOKENS
    counters.reach("gc_cache_hits_total", 40)
    fleet.assert_right("b", pulled, prompt)


def _ask_and_hang_up(client: Client, prompt: list[int], *, after_s: float | None) -> None:
    """Send a streaming request and break the connection: so long after, or None: after the first token."""
    body = {"model": client.model, "prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": True}
    where = urlsplit(client.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    if after_s is None:
        assert connection.getresponse().readline().startswith(b"data: ")
    else:
        assert connection.sock is not None
        connection.sock.settimeout(max(after_s, 0.001))
        with contextlib.suppress(TimeoutError):
            connection.sock.recv(1)
    connection.close()


def test_plugin_without_module_path_pulls_and_publishes(fleet: Fleet) -> None:
    """The engine that found the connector as an installed plugin reads from its peer as well as it is read."""
    prompt = fleet.document(5 * BLOCK_TOKENS)
    fleet.compute("b", prompt)
    counters = fleet.counters("a")

    pulled = fleet.client("a").complete(prompt, max_tokens=8)

    assert counters.hits() == 4
    fleet.assert_right("a", pulled, prompt)


def test_cache_salt_keeps_blocks_apart(fleet: Fleet) -> None:
    """A prompt under another salt shares nothing; under the same salt it is shared."""
    prompt = fleet.document(4 * BLOCK_TOKENS)
    before = fleet.entries("a")
    fleet.client("a").complete(prompt, max_tokens=1, cache_salt="tenant-1")
    fleet.wait_published("a", before, 4)
    counters = fleet.counters("b")

    fleet.client("b").complete(prompt, max_tokens=2, cache_salt="tenant-2")
    assert counters.hits() == 0
    pulled = fleet.client("b").complete(prompt, max_tokens=8, cache_salt="tenant-1")
    assert counters.hits() == 3
    fleet.assert_right("b", pulled, prompt)


def test_other_weights_share_nothing(fleet: Fleet) -> None:
    """A model that differs in nothing but its weights lives in the same Redis and never hits."""
    prompt = fleet.document(6 * BLOCK_TOKENS)
    ours = fleet.compute("a", prompt)
    counters = fleet.counters("stranger")

    answer = fleet.client("stranger").complete(prompt, max_tokens=8)

    assert counters.hits() == 0
    assert fleet.client("stranger").metrics().sum("gc_rdma_transfers_total") == 0
    record, other = fleet.record("stranger"), fleet.record("a")
    assert record is not None
    assert other is not None
    assert record.namespace != other.namespace
    differing = {key for key, value in record.fingerprint.items() if other.fingerprint[key] != value}
    assert differing >= {"weights_digest"}
    fleet.assert_right("stranger", answer, prompt)
    assert_different(answer, ours)


def test_every_metric_is_on_the_engines_own_page(fleet: Fleet) -> None:
    """Every metric of the catalog whose labels are known in advance is exported by vLLM's /metrics."""
    page = fleet.client("b").metrics()
    wanted = [metric for metric in METRICS.values() if metric.known_keys()]
    missing = [
        metric.name
        for metric in wanted
        if not page.has(f"{metric.name}_count" if metric.kind is Kind.HISTOGRAM else metric.name)
    ]
    assert wanted
    assert not missing
    assert page.sum("gc_peers_live") == 1
    assert page.sum("gc_cache_hits_total") > 0


def test_doctor_finds_every_pair_of_engines_well(fleet: Fleet) -> None:
    """On real engines, whose blocks are larger than those of other tests: all is read, and every pull is timed."""
    outcome = doctor("--redis-url", fleet.redis.url)
    assert outcome.code == 0, outcome.printed
    for name in ("link a:0 <- b:0", "link b:0 <- a:0", "read a:0", "read b:0", "read stranger:0"):
        assert outcome.status(name) == "OK", outcome.printed
        assert "GB/s" in outcome.checks[name]["text"], outcome.printed


def test_changed_weights_are_shared_with_those_who_have_them_alone(fleet: Fleet) -> None:
    """A harmless call costs nothing. Changed weights leave the fleet, and meet whoever is given the same ones."""

    def change(name: str, factor: str) -> None:
        assert int(fleet.client(name).call_ranks("scale_norms", factor)[0]) > 0
        fleet.client(name).reset_prefix_cache()

    def epoch(name: str) -> str:
        return str(fleet.worker(name).fingerprint["weights_epoch"])

    def hits(reader: str, owner: str) -> float:
        prompt = fleet.document(6 * BLOCK_TOKENS + 1)
        computed = fleet.compute(owner, prompt)
        counters = fleet.counters(reader)
        answer = fleet.client(reader).complete(prompt, max_tokens=8)
        found = counters.hits()
        fleet.assert_right(reader, answer, prompt)
        fleet.assert_right(owner, computed, prompt)
        if found == 0:
            assert_different(answer, computed)
        return found

    assert fleet.client("a").call_ranks("say", "nothing") == ["nothing"]
    assert hits("b", "a") == 6
    change("a", "2")
    assert hits("b", "a") == 0
    assert hits("a", "b") == 0
    assert epoch("a") != epoch("b") == WEIGHTS_AS_STARTED
    change("b", "2")
    fleet.prime("b", "a")
    fleet.prime("a", "b")
    assert epoch("a") == epoch("b") != WEIGHTS_AS_STARTED
    assert hits("b", "a") == hits("a", "b") == 6
    for name in "ab":
        change(name, "0.5")
    fleet.prime("b", "a")
    assert epoch("a") == epoch("b") == WEIGHTS_AS_STARTED
    assert hits("b", "a") == 6

"""Answers from pulled pages are those of a full recompute, in all the ways in which SGLang cuts its work.

Engine a: pages of 16, chunked prefill, no overlap. Engine b: the same pages, overlap schedule; it reads by a's relay,
which stops with a.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import Completion, ensure_model, run_concurrently
from benchmarks.harness.client import ServerError
from benchmarks.harness.sglang import SglangClient
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from tests.e2e.fleet import REQUEST_TIMEOUT_S, Fleet, running, until
from tests.e2e.sglang import assert_right, engine, engine_marks

pytestmark = engine_marks(600)

PAGE = 16
PATIENCE_S = 60.0
"""Of a pull of b, and of the lease of an owner that is stopped: longer than a test needs."""


@pytest.fixture(scope="module")
def fleet(model: Path, log_dir: Path) -> Iterator[Fleet]:
    by_relay = {"transports": ["relay"], "pull_timeout_s": PATIENCE_S}
    engines = {
        "a": engine(chunk_tokens=256, connector={"relay_listen": "127.0.0.1:0"}),
        "b": engine(chunk_tokens=256, overlap=True, connector=by_relay),
    }
    with running(model, engines, log_dir=log_dir, connector={"lease_ttl_s": PATIENCE_S}) as fleet:
        fleet.prime("b", "a")
        fleet.prime("a", "b")
        yield fleet


@pytest.mark.parametrize(("reader", "owner"), [("b", "a"), ("a", "b")])
@pytest.mark.parametrize("tokens", [PAGE + 1, 10 * PAGE, 1000])
def test_pulled_prefix_gives_the_answer_of_a_recompute(fleet: Fleet, reader: str, owner: str, tokens: int) -> None:
    """All full pages but that of the last token are pulled, and the log-probabilities are those of an engine alone."""
    prompt = fleet.document(tokens)
    fleet.compute(owner, prompt)
    counters = fleet.counters(reader)

    pulled = fleet.client(reader).complete(prompt, max_tokens=8)

    assert pulled.cached_tokens == (tokens - 1) // PAGE * PAGE
    assert counters.hits() == (tokens - 1) // PAGE
    assert_right(fleet, reader, pulled, prompt)


def test_local_head_and_pulled_tail_make_one_prefix(fleet: Fleet) -> None:
    """What is in the engine's own tree is not pulled; what follows it is."""
    prompt = fleet.document(600)
    fleet.compute("b", prompt[:200])
    fleet.compute("a", prompt)
    counters = fleet.counters("b")

    answer = fleet.client("b").complete(prompt, max_tokens=8)

    assert counters.hits() == (599 // PAGE) - (200 // PAGE)
    assert_right(fleet, "b", answer, prompt)


def test_generated_pages_are_shared_too(fleet: Fleet) -> None:
    """The second turn of a conversation finds the first one's answer at another worker."""
    prompt = fleet.document(100)
    before = fleet.entries("a")
    first = fleet.client("a").complete(prompt, max_tokens=60)
    fleet.wait_published("a", before, 150 // PAGE)
    turn = [*prompt, *first.tokens[:-1], *fleet.document(40)]
    counters = fleet.counters("b")

    answer = fleet.client("b").complete(turn, max_tokens=8)

    assert counters.hits() >= 150 // PAGE
    assert_right(fleet, "b", answer, turn)


def test_pulls_of_many_requests_at_once_are_right(fleet: Fleet) -> None:
    """Requests that are batched together pull, compute and decode without disturbing each other."""
    prompts = [fleet.document(300 + 37 * number) for number in range(8)]
    for prompt in prompts:
        fleet.compute("a", prompt)
    counters = fleet.counters("b")

    answers = run_concurrently(
        lambda prompt: fleet.client("b").complete(prompt, max_tokens=12), prompts, concurrency=len(prompts)
    )

    assert counters.hits() == sum((len(prompt) - 1) // PAGE for prompt in prompts)
    for answer, prompt in zip(answers, prompts, strict=True):
        assert_right(fleet, "b", answer, prompt)


def test_owner_that_is_stopped_holds_up_only_who_asks_for_its_pages(fleet: Fleet) -> None:
    """Requests that come later are answered meanwhile; when the owner goes on, the first one has its pages."""
    prompt = fleet.document(20 * PAGE + 1)
    fleet.compute("a", prompt)
    others = [fleet.document(100) for _ in range(3)]
    counters = fleet.counters("b")
    pulled: list[Completion] = []
    thread = threading.Thread(target=lambda: pulled.append(fleet.client("b").complete(prompt, max_tokens=8)))

    fleet.engines["a"].pause()
    try:
        thread.start()
        answers = []
        for other in others:
            answers.append(fleet.client("b").complete(other, max_tokens=8))
            assert not pulled
    finally:
        fleet.engines["a"].resume()
    thread.join()

    assert counters.hits() == 20
    for answer, asked in zip([*pulled, *answers], [prompt, *others], strict=True):
        assert_right(fleet, "b", answer, asked)


def test_salted_prompt_shares_with_its_salt_alone(fleet: Fleet) -> None:
    """extra_key is part of a page's name: pages under another one are not found."""
    prompt = fleet.document(200)
    fleet.client("a").complete(prompt, max_tokens=2, cache_salt="one")
    before = fleet.counters("b")
    other = fleet.client("b").complete(prompt, max_tokens=2, cache_salt="two")
    assert other.cached_tokens == 0
    assert before.hits() == 0
    same = fleet.client("b").complete(prompt, max_tokens=2, cache_salt="one")
    assert same.cached_tokens == 199 // PAGE * PAGE


def test_aborts_during_lookups_and_loads_leave_the_engine_whole(fleet: Fleet) -> None:
    """Clients that hang up while their prompts are pulled: nothing leaks (SGLang checks), later answers are right."""
    prompts = [fleet.document(1500) for _ in range(4)]
    for prompt in prompts:
        fleet.compute("a", prompt)

    threads = [threading.Thread(target=hang_up, args=(fleet, "b", prompt)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for prompt in prompts:
        assert_right(fleet, "b", fleet.client("b").complete(prompt, max_tokens=4), prompt)


def hang_up(fleet: Fleet, name: str, prompt: list[int]) -> None:
    """Send a request, and close the connection a moment later."""
    host, port = fleet.engines[name].url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=REQUEST_TIMEOUT_S)
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    threading.Event().wait(0.02)
    connection.close()


def test_flush_withdraws_everything_and_what_was_read_before_is_refused(fleet: Fleet) -> None:
    """After /flush_cache the index holds nothing of the engine; entries that lag behind are refused by the seal."""
    prompt = fleet.document(400)
    fleet.compute("a", prompt)
    kept = fleet.entries("a")
    counters = fleet.counters("b")

    until(lambda: flushed(fleet, "a"), "a flush of an idle engine")
    until(lambda: not fleet.entries("a"), "the entries of a to be withdrawn")
    fleet.raw(lambda client: client.hset(fleet.blocks_key("a"), mapping=kept))
    answer = fleet.client("b").complete(prompt, max_tokens=8)

    assert counters.hits() == 0
    assert counters.reasons().get("stale_generation", 0) > 0
    assert_right(fleet, "b", answer, prompt)


def flushed(fleet: Fleet, name: str) -> bool:
    before = len(fleet.entries(name))
    fleet.client(name).flush()
    return before > 0


def emptied(client: SglangClient) -> bool:
    """Have an engine forget its cached prefixes; return False while it has requests."""
    try:
        client.flush()
    except ServerError:
        return False
    return True


def test_without_redis_requests_are_computed(fleet: Fleet) -> None:
    """A worker whose index is away answers as one alone, and shares again when it is back."""
    prompt = fleet.document(200)
    fleet.redis.pause()
    try:
        answer = fleet.client("b").complete(prompt, max_tokens=4)
    finally:
        fleet.redis.resume()
    assert_right(fleet, "b", answer, prompt)
    fleet.prime("b", "a")


def test_changed_weights_are_shared_with_those_who_have_them_alone(fleet: Fleet, model: Path) -> None:
    """Given to one engine, they share with nobody; given to both, with each other; given back, with the start again."""

    def hits(reader: str, owner: str) -> float:
        prompt = fleet.document(6 * PAGE + 1)
        computed = fleet.compute(owner, prompt)
        counters = fleet.counters(reader)
        answer = fleet.client(reader).complete(prompt, max_tokens=8)
        found = counters.hits()
        assert_right(fleet, reader, answer, prompt)
        assert_right(fleet, owner, computed, prompt)
        return found

    def change(name: str, folder: Path, *, flush: bool = True) -> None:
        client = fleet.client(name)
        assert isinstance(client, SglangClient)
        # The last request may have its answer, and still be one that runs: SGLang would not flush its cache then.
        until(lambda: emptied(client), f"{name} to have no request")
        client.update_weights(str(folder), flush=flush)

    def epoch(name: str) -> str:
        return str(fleet.worker(name).fingerprint["weights_epoch"])

    other = ensure_model("tiny", seed=1)
    change("a", model)
    assert hits("b", "a") == 6
    change("a", other)
    assert hits("b", "a") == 0
    assert hits("a", "b") == 0
    assert epoch("a") != epoch("b") == WEIGHTS_AS_STARTED
    change("b", other)
    fleet.prime("b", "a")
    fleet.prime("a", "b")
    assert epoch("a") == epoch("b") != WEIGHTS_AS_STARTED
    assert hits("b", "a") == hits("a", "b") == 6
    for name in "ab":
        change(name, model)
    fleet.prime("b", "a")
    assert epoch("a") == epoch("b") == WEIGHTS_AS_STARTED
    assert hits("b", "a") == 6

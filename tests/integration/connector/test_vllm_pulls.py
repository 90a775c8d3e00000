"""Pulls of several requests under vLLM's real scheduler: shared, cancelled, weighed, and accounted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import Location, MissReason, PrefixHit, Tier
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.vllm.scheduling.matching import LOOKUP_WAIT_MAX_S, Matcher
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder, summary
from ghostcacher_connector.pull.accounting import PullReport
from ghostcacher_connector.pull.cache_groups import ONE_GROUP
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import PENDING
from ghostcacher_connector.transfer.base import PullOutcome
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import BLOCK_TOKENS, SimEngine
from tests.integration.connector.prefix_numbers import expected_output, tokens_of
from tests.integration.connector.simfleet import Gate
from tests.support.index_parts import FakeClock, chain, wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0
BLOCKS = 5
PROMPT_TOKENS = BLOCKS * BLOCK_TOKENS + 1


def meet(make: Make, *prompts: list[int], settings: dict[str, Any] | None = None) -> tuple[SimEngine, SimEngine]:
    """Return an engine whose published cache holds the prompts, and one that reaches it."""
    a, b = make("a"), make("b", settings=settings)
    for engine in (a, b):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    for number, prompt in enumerate(prompts):
        a.add(f"r{number}", prompt)
    a.run()
    wait_until(a.all_published, WAIT_S)
    return a, b


def phase(engine: SimEngine, request_id: str) -> Phase:
    found: Phase = engine.connector._scheduler._tracked[request_id].phase
    return found


def step_until(engine: SimEngine, condition: Callable[[], bool]) -> None:
    def stepped() -> bool:
        engine.step()
        return condition()

    wait_until(stepped, WAIT_S)


def test_requests_of_one_prompt_share_one_pull(make: Make) -> None:
    """As vLLM has them with n=4: one pulls, the others wait for it, and find the blocks in their own engine's cache."""
    prompt = tokens_of(1, PROMPT_TOKENS)
    _, b = meet(make, prompt)
    gate = Gate(b)
    for number in range(4):
        b.add(f"r{number}", prompt)
    step_until(b, lambda: b.counted("gc_joined_pulls_total") == 3)
    gate.open()
    b.run()
    assert b.counted("gc_pulls_total") == 1
    assert b.counted("gc_joined_pulls_total") == 3
    assert b.counted("gc_cache_hits_total") == BLOCKS
    assert b.counted("gc_cache_misses_total") == 0
    assert [b.outputs(f"r{number}") for number in range(4)] == 4 * [expected_output(prompt, 4)]
    assert b.wrong == []


def test_requests_that_share_little_do_not_wait_for_each_other(make: Make) -> None:
    """A block in common is not worth waiting for all the others of another prompt."""
    first = tokens_of(1, PROMPT_TOKENS)
    second = first[:BLOCK_TOKENS] + tokens_of(2, PROMPT_TOKENS - BLOCK_TOKENS)
    _, b = meet(make, first, second)
    b.add("r0", first)
    b.add("r1", second)
    b.run()
    assert b.counted("gc_pulls_total") == 2
    assert b.counted("gc_joined_pulls_total") == 0


def test_aborted_pull_is_taken_over_and_counted_as_cancelled(make: Make) -> None:
    """The request that pulls is aborted: one of those that wait for it pulls in its place, the other waits on."""
    prompt = tokens_of(1, PROMPT_TOKENS)
    _, b = meet(make, prompt)
    gate = Gate(b)
    b.add("r0", prompt)
    step_until(b, lambda: phase(b, "r0") is Phase.LOADING)
    for number in (1, 2):
        b.add(f"r{number}", prompt)
    step_until(b, lambda: b.counted("gc_joined_pulls_total") == 2)
    b.abort("r0")
    step_until(b, lambda: Phase.LOADING in {phase(b, "r1"), phase(b, "r2")})
    assert {phase(b, "r1"), phase(b, "r2")} == {Phase.LOADING, Phase.PLANNED}
    gate.open()
    b.run()
    assert b.counted("gc_pulls_total", outcome="cancelled", reason="cancelled") == 1
    assert b.counted("gc_pulls_total", outcome="done") == 1
    assert b.counted("gc_rdma_transfers_total") == 2
    assert [b.outputs(f"r{number}") for number in (1, 2)] == 2 * [expected_output(prompt, 4)]
    assert b.free_blocks() == 31
    assert b.connector._scheduler._forecaster._ahead == {}


def test_failed_pull_holds_nobody_up(make: Make) -> None:
    """The holder turns out to be another incarnation: every request is computed, and right, beside the first one."""
    prompt = tokens_of(1, PROMPT_TOKENS)
    a, b = meet(make, prompt)
    a.worker._worker._table.renew_incarnation()
    gate = Gate(b)
    counts = [300, 4, 4]
    for number, count in enumerate(counts):
        b.add(f"r{number}", prompt, max_tokens=count)
    step_until(b, lambda: b.counted("gc_joined_pulls_total") == 2)
    gate.open()
    step_until(b, lambda: b.requests["r1"].is_finished() and b.requests["r2"].is_finished())
    assert not b.requests["r0"].is_finished()
    b.run()
    assert b.counted("gc_joined_pulls_total") == 2
    assert b.counted("gc_cache_hits_total") == 0
    assert [b.outputs(f"r{number}") for number in range(3)] == [expected_output(prompt, count) for count in counts]


def test_prompt_that_is_reused_while_its_request_waits_is_looked_up_after_all(make: Make) -> None:
    """All of it was here when the request arrived, and nothing when it was its turn."""
    prompt = tokens_of(1, PROMPT_TOKENS)
    _, b = meet(make, prompt)
    b.add("r0", prompt)
    b.run()
    b.add("r1", prompt)
    assert phase(b, "r1") is Phase.HELD
    assert b.scheduler.reset_prefix_cache()
    b.run()
    assert b.counted("gc_pulls_total", outcome="done") == 2
    assert b.outputs("r1") == expected_output(prompt, 4)


@pytest.mark.parametrize("ahead", [False, True])
def test_pull_behind_another_one_is_weighed_with_its_wait(make: Make, ahead: bool) -> None:
    """Pulling takes 0.6 of the time of computing: it is worth it on a free link, and not behind another pull."""
    prompts = [tokens_of(seed, PROMPT_TOKENS) for seed in range(2)]
    _, b = meet(make, *prompts, settings={"pull": "auto"})
    half = b.connector._scheduler
    forecaster = half._forecaster
    prompt_bytes = BLOCKS * half._fleet.record.ranks[0].bytes_per_slot
    for _ in range(500):
        forecaster.observe_step(64, 64.0)  # 1 token/s
        forecaster.observe_pull("a", 1 << 20, (1 << 20) / prompt_bytes * 0.6 * BLOCKS * BLOCK_TOKENS)
    gate = Gate(b)
    if ahead:
        b.add("r0", prompts[0])
        step_until(b, lambda: phase(b, "r0") is Phase.LOADING)
    b.add("r1", prompts[1])
    step_until(b, lambda: "r1" not in half._tracked or phase(b, "r1") in {Phase.LOADING, Phase.SETTLED})
    gate.open()
    b.run()
    assert b.counted("gc_cache_misses_total", reason="slower_than_recompute") == (BLOCKS if ahead else 0)
    assert b.counted("gc_pulls_total", outcome="done") == 1


@pytest.mark.parametrize(("ranks", "waits"), [(1, True), (2, False)])
def test_rank_in_lockstep_never_waits_for_the_index(make: Make, ranks: int, waits: bool) -> None:
    """A mixture of experts' data-parallel ranks step together: one that waits would hold up all the others."""

    def adapt(config: Any) -> None:
        config.parallel_config.data_parallel_size = ranks

    engine = make("a", adapt=adapt)
    lookups = engine.connector._scheduler._matcher._lookups
    waited: list[float] = []
    poll = lookups.poll

    def spy(request_id: str, *, wait_s: float = 0.0) -> Any:
        waited.append(wait_s)
        return poll(request_id, wait_s=wait_s)

    lookups.poll = spy
    engine.add("r", tokens_of(1, PROMPT_TOKENS))
    engine.run()
    assert waited
    assert any(waited) is waits


class Bench:
    """vLLM's matcher, of an engine that computes so many tokens a second, with a lookup that never ends."""

    def __init__(self, tokens_per_s: float) -> None:
        self.clock, self.recorder = FakeClock(), Recorder()
        lookups: Any = SimpleNamespace(
            start=lambda *_, **__: None,
            poll=lambda *_, **__: PENDING,
            forget=lambda _: None,
            groups=ONE_GROUP,
        )
        self.matcher = Matcher(
            Settings(pull="always"),
            lookups,
            Forecaster(tokens_per_s),
            self.recorder,
            block_tokens=16,
            block_bytes=1024,
            clock=self.clock,
        )
        self.tracked = self.request("r")

    def request(self, name: str) -> Tracked:
        request: Any = SimpleNamespace(
            request_id=name,
            block_hashes=chain(BLOCKS),
            num_tokens=BLOCKS * 16 + 1,
            num_preemptions=0,
            num_computed_tokens=0,
            status=RequestStatus.WAITING,
            lora_request=None,
            mm_features=[],
            prompt_embeds=None,
            resumable=False,
            kv_transfer_params=None,
            skip_reading_prefix_cache=False,
        )
        return Tracked(request=request)

    def planned(self, name: str) -> Tracked:
        """Return a request of which a peer has all blocks."""
        hit = PrefixHit("peer", b"i" * 16, BLOCKS, tuple(Location(Tier.DEVICE, slot, 1) for slot in range(BLOCKS)))
        tracked = self.request(name)
        tracked.pullable, tracked.hits = BLOCKS, [hit]
        assert self.matcher._decide(tracked, 0) == BLOCKS
        return tracked

    def pull(self, tracked: Tracked) -> None:
        """Ask for a request's blocks, and allocate slots for them."""
        assert self.matcher.match(tracked, 0) == BLOCKS * 16
        self.matcher.allocated(tracked, [list(range(BLOCKS))], BLOCKS * 16)
        tracked.request.status = RequestStatus.WAITING_FOR_REMOTE_KVS

    def misses(self, reason: MissReason) -> float:
        return summary(self.recorder.drain()).get(f"gc_cache_misses_total{{reason={reason.value}}}", 0)


def test_request_waits_for_pulls_of_others_no_longer_than_one_may_take() -> None:
    """Neither for one after the other, nor for one that should be over by now."""
    bench = Bench(1000.0)  # a pull may take 5 s
    first, second, third, late = (bench.planned(name) for name in ("first", "second", "third", "late"))
    bench.pull(first)
    assert [bench.matcher.match(tracked, 0) for tracked in (second, third)] == [None, None]
    bench.clock.advance(3.0)
    first.request.status = RequestStatus.WAITING
    bench.pull(second)
    assert bench.matcher.match(third, 0) is None
    bench.clock.advance(2.5)
    assert bench.matcher.match(third, 0) == BLOCKS * 16
    assert bench.matcher.match(late, 0) is None
    bench.clock.advance(3.0)
    assert bench.matcher.match(bench.planned("later"), 0) == BLOCKS * 16


def test_whoever_asks_is_passed_over_until_loaded_requests_run() -> None:
    """They hold slots. Who comes behind one that was passed over is passed over, too, until the step is scheduled."""
    bench = Bench(1000.0)
    loaded, preempted, newcomer = bench.planned("loaded"), bench.request("preempted"), bench.request("newcomer")
    bench.pull(loaded)
    assert bench.matcher.match(preempted, 0) == 0  # Nobody waits for a pull that may take seconds.
    loaded.request.num_computed_tokens = BLOCKS * 16
    bench.matcher.received("loaded", loaded)
    assert bench.matcher.match(preempted, 0) is None  # vLLM has not looked at it yet.
    loaded.request.status = RequestStatus.WAITING
    assert bench.matcher.match(preempted, 0) is None
    loaded.request.status = RequestStatus.RUNNING
    assert bench.matcher.match(newcomer, 0) is None
    bench.matcher.take_orders()
    assert [bench.matcher.match(tracked, 0) for tracked in (preempted, newcomer)] == [0, 0]


@pytest.mark.parametrize("end", ["aborted", "nothing usable"])
def test_nobody_is_passed_over_for_a_loaded_request_that_holds_no_slots(end: str) -> None:
    bench = Bench(1000.0)
    loaded, other = bench.planned("loaded"), bench.request("other")
    bench.pull(loaded)
    bench.matcher.received("loaded", loaded)
    assert bench.matcher.match(other, 0) is None
    bench.matcher.take_orders()
    if end == "aborted":
        bench.matcher.forget(loaded)
    else:
        loaded.request.status = RequestStatus.WAITING
        assert bench.matcher.match(loaded, 0) == 0  # It has given its slots back, and is asked for like any other.
    assert bench.matcher.match(other, 0) == 0


@pytest.mark.parametrize(
    ("tokens_per_s", "wait_s"), [(100_000.0, 0.05), (20.0, 0.1 * BLOCKS * 16 / 20.0), (1.0, LOOKUP_WAIT_MAX_S)]
)
def test_lookup_may_take_a_tenth_of_what_computing_takes(tokens_per_s: float, wait_s: float) -> None:
    """Never less than the setting; a long prompt is not computed because Redis took a moment longer."""
    bench = Bench(tokens_per_s)
    bench.matcher.ask(bench.tracked, None)
    bench.clock.advance(wait_s - 0.001)
    assert bench.matcher.match(bench.tracked, 0) is None
    bench.clock.advance(0.002)
    assert bench.matcher.match(bench.tracked, 0) == 0
    assert bench.misses(MissReason.LOOKUP_DEADLINE) == BLOCKS


def test_what_a_preempted_request_computes_again_is_a_miss_with_a_reason() -> None:
    """It is pulled for once only; each preemption counts once, however often vLLM asks."""
    bench = Bench(1000.0)
    tracked = bench.planned("r")
    tracked.phase = Phase.SETTLED
    assert bench.matcher.match(tracked, 0) == 0
    assert bench.misses(MissReason.PREEMPTED) == 0
    tracked.request.num_preemptions = 1
    assert [bench.matcher.match(tracked, 16) for _ in range(2)] == [0, 0]
    assert bench.misses(MissReason.PREEMPTED) == BLOCKS - 1


@pytest.mark.parametrize(("usable", "proven"), [((), 0), ((6,), 6), ((6, 3), 3), ((0, 6), 0)])
def test_pull_proves_what_it_has_brought_to_every_rank(usable: tuple[int, ...], proven: int) -> None:
    """The least that any rank can use counts, and nothing where no rank has said how its share ended."""
    bench = Bench(1000.0)
    outcome = PullOutcome.DONE
    bench.matcher.reported([PullReport("r", outcome, 6, count, 6, 1, 1.0, "nixl", "peer", None) for count in usable])
    assert bench.matcher.received("r", bench.tracked) == proven
    assert bench.matcher.received("r", bench.tracked) == 0

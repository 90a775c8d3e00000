"""Runs of small fleets: where prompts are found, what is pulled, what a death costs, how each request ends."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ghostcacher_connector.core.types import SectionType
from ghostcacher_simulator.load.requests import Load, Request
from ghostcacher_simulator.machines.workers import FleetSpec, HostTier
from ghostcacher_simulator.replay.policies import entrants
from ghostcacher_simulator.replay.replay import SETTLE_S, Ending, Replay, Run, Served, replay
from ghostcacher_simulator.replay.workers import Pulled
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.simulator.replay.support import BLOCK, entrant, fleet, load


def run(key: str, requests: Load, spec: FleetSpec) -> Run:
    return run_virtual(replay(entrant(key), requests, spec))


def where(served: Served) -> tuple[int, int, int, int]:
    return served.local_tokens, served.loaded_tokens, served.pulled_tokens, served.computed_tokens


def test_tokens_of_every_prompt_are_accounted_for() -> None:
    """Round robin, with pulls: the second worker pulls what the first has computed; the third request finds it."""
    found = run("round-robin-pulls", load((0, "a"), (5, "a"), (10, "a")), fleet(2))
    assert [where(each) for each in found.served] == [(0, 0, 0, 810), (0, 0, 800, 10), (800, 0, 0, 10)]
    assert (found.computed_tokens, found.pulls, found.stale_blocks) == (830, 1, 0)
    first, second, _ = found.served
    assert first.ttft_s == pytest.approx(0.81 + 0.006)
    assert second.ttft_s == pytest.approx(0.8 + 0.01 + 0.006)
    assert first.itl_s == pytest.approx(0.006 + 0.00025)


def test_plain_workers_share_nothing() -> None:
    found = run("round-robin", load((0, "a"), (5, "a"), (10, "a")), fleet(2))
    assert [where(each) for each in found.served] == [(0, 0, 0, 810), (0, 0, 0, 810), (800, 0, 0, 10)]


def test_router_sends_a_prompt_to_where_it_is() -> None:
    found = run("ghostcacher", load(*((5.0 * number, "a") for number in range(4))), fleet(3))
    assert len({each.worker for each in found.served}) == 1
    assert found.computed_tokens == 810 + 3 * 10


def test_hashing_keeps_conversations_together_and_spreads_them() -> None:
    """All prompts begin alike: what tells them apart is the conversation."""
    prompts = load(*((3.0 * number, "a") for number in range(16)))
    talks = [request._replace(session=f"talk {number % 8}") for number, request in enumerate(prompts.requests)]
    found = run("hashing", prompts._replace(requests=talks), fleet(2))
    places = {(each.request.session, each.worker) for each in found.served}
    assert len(places) == 8
    assert {worker for _, worker in places} == {"w0", "w1"}


def test_host_tier_keeps_what_the_cache_evicts() -> None:
    """A cache for one prompt: with a tier the first prompt is loaded when it comes again, and computed without."""
    prompts = load((0, "a"), (5, "b"), (10, "c"), (15, "a"))
    tier = HostTier(blocks=40, bytes_per_s=100_000.0)
    without, with_tier = (run("prefix", prompts, fleet(1, kv_blocks=12, host=host)) for host in (None, tier))
    assert where(without.served[-1]) == (0, 0, 0, 810)
    assert where(with_tier.served[-1]) == (0, 800, 0, 10)
    assert with_tier.served[-1].ttft_s == pytest.approx(0.08 + 0.01 + 0.006)


def test_peers_read_the_host_tier() -> None:
    """What has gone from the first worker's cache to its host memory is pulled from there."""
    prompts = load((0, "a"), (5, "x"), (10, "b"), (15, "y"), (20, "z"), (25, "a"))
    found = run("round-robin-pulls", prompts, fleet(2, kv_blocks=12, host=HostTier(40, 100_000.0)))
    assert found.served[-1].worker != found.served[0].worker
    assert where(found.served[-1]) == (0, 0, 800, 10)


def test_full_tier_gives_up_the_end_of_a_prompt_before_its_beginning() -> None:
    """As the retention has it: of eight blocks a tier of four keeps the leading ones, which serve a prompt."""
    found = run("prefix", load((0, "a"), (5, "b"), (10, "a")), fleet(1, kv_blocks=9, host=HostTier(4, 100_000.0)))
    assert where(found.served[-1]) == (0, 400, 0, 410)


def test_last_message_is_never_in_a_tier() -> None:
    """Blocks of the section USER do not leave the engine, as with real tiers."""
    requests = load((0, "a"), (5, "b"), (10, "a"))
    marked = [
        request._replace(section_ends=((SectionType.DOC, 5 * BLOCK), (SectionType.USER, request.prompt.tokens)))
        for request in requests.requests
    ]
    found = run("prefix", requests._replace(requests=marked), fleet(1, kv_blocks=12, host=HostTier(40, 1e5)))
    assert found.served[-1].loaded_tokens + found.served[-1].local_tokens == 5 * BLOCK


def test_clients_send_one_request_after_the_other() -> None:
    """Whatever the load says of times: two are under way, and each waits for its own answer alone."""

    async def main() -> tuple[Run, int]:
        going = Replay(entrant("round-robin"), load(*((0.0, name) for name in "abcdef")), fleet(2), clients=2)
        most = 0

        def look(_: str) -> None:
            nonlocal most
            most = max(most, len(going.outstanding))

        going.observe = look
        return await going.run(), most

    found, most = run_virtual(main())
    assert most == 2
    assert [each.ttft_s for each in found.served] == pytest.approx([0.816] * 6)
    assert found.took_s == pytest.approx(3 * (0.816 + 0.00625))


def test_request_that_fits_no_cache_is_told_and_not_sent() -> None:
    found = run("ghostcacher", load((0, "a"), blocks=40), fleet(2))
    assert [(each.ending, each.ttft_s) for each in found.served] == [(Ending.TOO_LONG, None)]


def killed(key: str, requests: Load, spec: FleetSpec, at_s: float, *names: str, back_s: float | None = None) -> Run:
    """Return a run in which workers die, and live anew."""

    async def main() -> Run:
        going = Replay(entrant(key), requests, spec)
        loop = asyncio.get_running_loop()
        for name in names:
            loop.call_later(SETTLE_S + at_s, going.kill, name)
            if back_s is not None:
                loop.call_later(SETTLE_S + back_s, going.revive, name)
        return await going.run()

    return run_virtual(main())


@pytest.mark.parametrize("key", [each.key for each in entrants(2)])
def test_request_whose_worker_dies_before_the_first_token_is_served_by_another(key: str) -> None:
    """Both are computing when w0 dies: nobody loses an answer, by any policy."""
    found = killed(key, load((0, "a"), (0.01, "b"), (0.02, "c"), (9, "d")), fleet(2), 0.3, "w0")
    assert Counter(each.ending for each in found.served) == {Ending.ANSWERED: 4}
    assert {each.worker for each in found.served} == {"w1"}
    assert max(each.attempts for each in found.served) == 2


def test_answer_of_a_worker_that_dies_is_broken() -> None:
    requests = load((0, "a"), answer_tokens=1_000)
    found = killed("ghostcacher", requests, fleet(1), 2.0, "w0")
    assert [(each.ending, each.ttft_s is not None) for each in found.served] == [(Ending.BROKEN, True)]


def test_request_without_a_worker_is_unplaced_until_one_is_back() -> None:
    """The cache of a worker that lives anew is empty."""
    found = killed("ghostcacher", load((0, "a"), (4, "a"), (9, "a")), fleet(1), 2.0, "w0", back_s=6.0)
    assert [each.ending for each in found.served] == [Ending.ANSWERED, Ending.UNPLACED, Ending.ANSWERED]
    assert found.served[-1].computed_tokens == 810


def test_pull_from_a_worker_that_dies_meanwhile_is_computed() -> None:
    """The pull ends at 5.8 s; its holder dies at 5.4 s."""
    found = killed("round-robin-pulls", load((0, "a"), (5, "a")), fleet(2), 5.4, "w0")
    assert where(found.served[-1]) == (0, 0, 0, 810)


def test_block_that_was_overwritten_during_a_pull_does_not_count() -> None:
    """The seal: the second prompt fills the holder's cache while its blocks are being read."""
    requests = load((0, "a"), (5, "a"), (5.01, "b"), (5.02, "x"), (5.03, "c"))
    right: list[bool] = []

    def compare(pulled: Pulled) -> None:
        right.append([pulled.peer.content(at) for at in pulled.locations] == list(pulled.blocks))

    async def main() -> Run:
        going = Replay(entrant("round-robin-pulls"), requests, fleet(2, kv_blocks=12))
        going.workers[1].on_pulled = compare
        return await going.run()

    found = run_virtual(main())
    assert found.stale_blocks > 0
    (second,) = [each for each in found.served if each.request.request_id == "q1"]
    assert second.pulled_tokens < 800
    assert sum(where(second)) == 810
    assert right
    assert all(right)


def test_text_of_equal_prompts_is_equal() -> None:
    first, second = load((0, "a"), (1, "a")).requests
    assert isinstance(first, Request)
    assert first.text()[: 800 * 4] == second.text()[: 800 * 4]
    assert first.text() != second.text()

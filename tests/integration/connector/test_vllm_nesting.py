"""Our connector as a child of vLLM's MultiConnector, beside its NixlConnector: all of them real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlPushConnector
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.platforms import current_platform
from vllm.v1.request import RequestStatus

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.errors import ConfigError, UnsupportedEngine
from ghostcacher_connector.core.types import PdRole
from ghostcacher_connector.engines.vllm import plugin
from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector
from ghostcacher_connector.engines.vllm.nesting import check_beside_others, check_outer, enclosing_transfer, pd_role_of
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.pdsim import LAYOUT, NIXL, OURS, PdEngine, child, outer_transfer
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import Gate
from tests.integration.connector.test_vllm_host_tier import ledger, tier_of
from tests.integration.connector.test_vllm_objects import knows_the_store, objects_at, tier
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

SETTLE_S = 60.0
PROMPT = 6 * BLOCK_TOKENS + 5


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Leave no process groups behind, which NixlConnector asks for: other tests know none."""
    yield
    destroy_model_parallel()
    destroy_distributed_environment()


def run_both(*engines: SimEngine, timeout_s: float = SETTLE_S) -> None:
    """Step engines in turn until all requests of all of them have ended, and nobody holds a block for another one."""
    deadline = time.monotonic() + timeout_s
    while any(engine.scheduler.has_requests() for engine in engines):
        for engine in engines:
            engine.step()
        assert time.monotonic() < deadline, [list(engine.scheduler.requests) for engine in engines]


def offered(engine: SimEngine, request: Any) -> list[int]:
    """Return the indices of the blocks of a request that the engine offers."""
    blocks = engine.connector._scheduler._fleet.publisher.held_blocks._advertised
    return [index for index, block in enumerate(request.block_hashes) if block in blocks]


@pytest.mark.parametrize("last", [OURS, NIXL])
def test_prompt_is_handed_on_beside_us(make: Make, last: str) -> None:
    """The decode engine reads all that the prefill engine has computed, and leaves the request to that connector."""
    p, d = make("p", kind=PdEngine, last=last), make("d", kind=PdEngine, last=last)
    wait_until(lambda: d.peers_ready(1), timeout_s=SETTLE_S, what="peers")
    tokens = tokens_of(1, PROMPT)
    handed = p.prefill("r", tokens)
    wait_until(p.all_published, timeout_s=SETTLE_S, what="p has published")
    d.decode("r", tokens, handed, max_tokens=20)
    run_both(p, d)
    assert d.outputs("r") == expected_output(tokens, 20)
    assert (p.wrong, d.wrong) == ([], [])
    assert d.counted("gc_cache_hits_total") == d.counted("gc_cache_misses_total") == 0


def test_prefill_engines_share_prefixes_and_hand_them_on(make: Make) -> None:
    """The second prefill engine pulls what the first has computed; the decode engine reads all of it from there."""
    p1, p2, d = (make(name, kind=PdEngine) for name in ("p1", "p2", "d"))
    wait_until(lambda: p1.peers_ready(2) and p2.peers_ready(2), timeout_s=SETTLE_S, what="peers")
    document, tokens = tokens_of(1, PROMPT), tokens_of(1, 6 * BLOCK_TOKENS) + tokens_of(2, 20)
    d.decode("r1", document, p1.prefill("r1", document))
    run_both(p1, d)
    wait_until(p1.all_published, timeout_s=SETTLE_S, what="p1 has published")
    d.decode("r2", tokens, p2.prefill("r2", tokens), max_tokens=30)
    run_both(p1, p2, d)
    assert p2.counted("gc_cache_hits_total") == 6
    assert (d.outputs("r1"), d.outputs("r2")) == (expected_output(document, 4), expected_output(tokens, 30))
    assert (p1.wrong, p2.wrong, d.wrong) == ([], [], [])


def test_what_was_handed_on_is_evidence_of_nothing(make: Make) -> None:
    """Nothing proves what came by another connector, nor what is computed on top of it: none of it is offered."""
    p, d = make("p", kind=PdEngine), make("d", kind=PdEngine, blocks=60)
    entries = d.watch_published()
    tokens = tokens_of(1, PROMPT)
    first = d.decode("first", tokens, p.prefill("first", tokens), max_tokens=40)
    run_both(p, d)
    longer = d.add("longer", tokens + d.outputs("first") + tokens_of(2, 40), pull=False)
    own = d.add("own", tokens_of(3, PROMPT), pull=False)
    run_both(d)
    assert (offered(d, first), offered(d, longer)) == ([], [])
    assert offered(d, own) == list(range(6))
    assert (d.lies(entries), d.wrong) == ([], [])


def test_blocks_that_are_still_being_sent_keep_their_seals_until_they_are_reused(make: Make) -> None:
    """The request has ended, and vLLM keeps its blocks for the decode engine: the entries hold, and fall with reuse."""
    p, d = make("p", kind=PdEngine, blocks=16), make("d", kind=PdEngine)
    entries = p.watch_published()
    tokens = tokens_of(1, PROMPT)
    handed = p.prefill("r", tokens)
    held = p.free_blocks()
    p.add("other", tokens_of(2, PROMPT), max_tokens=1, pull=False)
    while p.scheduler.get_request_counts() != (0, 0):
        p.step()
    assert p.free_blocks() == held, "the other request's blocks are free again, those of the first are not"
    sent = [entry for entry in entries if entry[0] in handed["remote_block_ids"][0]]
    assert len(sent) == 6
    assert p.lies(entries) == []
    d.decode("r", tokens, handed)
    run_both(p, d)
    assert d.outputs("r") == expected_output(tokens, 4)
    assert p.free_blocks() == held + len(handed["remote_block_ids"][0])
    table = p.worker._worker._table
    assert all(table.generation(slot) == generation for slot, generation, _ in sent)
    for number in range(3, 6):
        p.add(f"r{number}", tokens_of(number, PROMPT), max_tokens=1, pull=False)
        run_both(p)
    assert all(table.generation(slot) != generation for slot, generation, _ in sent)
    assert (p.lies(entries), p.wrong) == ([], [])


def test_load_that_fails_is_computed_and_its_slots_are_offered_by_nobody(make: Make) -> None:
    """It is computed, though a peer has it: vLLM, which counts it twice, would find no room for another load."""
    p, d = make("p", kind=PdEngine), make("d", kind=PdEngine, blocks=12)
    entries = d.watch_published()
    tokens = tokens_of(1, PROMPT)
    wait_until(lambda: d.peers_ready(1), timeout_s=SETTLE_S, what="peers")
    handed = p.prefill("r", tokens) | {"remote_port": free_port()}
    wait_until(p.all_published, timeout_s=SETTLE_S, what="p has published")
    failed = d.decode("r", tokens, handed)
    run_both(d)
    assert d.outputs("r") == expected_output(tokens, 4)
    assert offered(d, failed) == []
    distrusted = set(d.connector._scheduler._watch._distrusted)
    assert len(distrusted) == 7
    for number in range(2, 8):
        d.add(f"r{number}", tokens_of(number, PROMPT), pull=False)
        run_both(d)
    assert distrusted.isdisjoint(slot for slot, _, _ in entries)
    assert (d.lies(entries), d.wrong) == ([], [])


def test_slots_of_a_pull_of_ours_that_nobody_waits_for_any_more_are_still_trusted(make: Make) -> None:
    """Our own pulls are over when they are reported: what fails of one whose request was aborted is no hand-over."""
    p, d = make("p", kind=PdEngine), make("d", kind=PdEngine)
    wait_until(lambda: d.peers_ready(1), timeout_s=SETTLE_S, what="peers")
    tokens = tokens_of(1, PROMPT)
    first = p.add("r", tokens)
    run_both(p)
    wait_until(p.all_published, timeout_s=SETTLE_S, what="p has published")
    slot = p.connector._scheduler._fleet.publisher.held_blocks._advertised[first.block_hashes[2]]
    table = p.worker._worker._table
    table.bump(np.array([slot]), np.array([table.generation(slot) + 1], dtype=np.uint64))
    gate = Gate(d)
    pulled = d.add("r", tokens)
    while pulled.status is not RequestStatus.WAITING_FOR_REMOTE_KVS:
        d.step()
    d.step()
    d.abort("r")
    gate.open()
    while d.free_blocks() < d.config.cache_config.num_gpu_blocks - 1:
        d.step()
    assert d.counted("gc_pulls_total", outcome="cancelled") == 1
    assert d.connector._scheduler._watch._distrusted == set()


def test_prompt_comes_back_from_the_host_tier_and_is_handed_on(make: Make) -> None:
    """The prefill engine has evicted it meanwhile. The decode engine's tier keeps what that one has computed itself."""
    p, d = (make(name, kind=PdEngine, blocks=16, settings=tier_of(64)) for name in ("p", "d"))
    for turn in range(2):
        for seed in range(4):
            name, tokens = f"r{turn}-{seed}", tokens_of(seed, PROMPT)
            d.decode(name, tokens, p.prefill(name, tokens))
            run_both(p, d)
            assert d.outputs(name) == expected_output(tokens, 4)
    assert p.counted("gc_rdma_transfers_total", transport="local") == 4
    assert p.counted("gc_cache_hits_total") == 4 * 6
    assert len(ledger(d)) == 0
    for number in range(2):
        for seed in range(4, 8):
            d.add(f"own{number}-{seed}", tokens_of(seed, PROMPT))
            run_both(d)
    assert d.counted("gc_rdma_transfers_total", transport="local") == 4
    assert (p.wrong, d.wrong) == ([], [])
    for engine in (p, d):
        ledger(engine).check_invariants()


@pytest.mark.skipif(
    "has_pending_push_work" not in vars(MultiConnector), reason="an idle engine takes no step for its copies"
)
def test_prompt_comes_back_from_objects_and_is_handed_on(make: Make, tmp_path: Path) -> None:
    """Of an engine of which Redis knows nothing."""
    settings = objects_at(f"file://{tmp_path}/objects")
    before, tokens = make("before", kind=PdEngine, blocks=16, settings=settings), tokens_of(1, PROMPT)
    knows_the_store(before)
    before.add("r", tokens, max_tokens=1)
    run_both(before)
    wait_until(lambda: tier(before).catalogue.block_count == 6, timeout_s=SETTLE_S, what="objects")
    before.close()
    with RedisServer(tcp=True) as empty:
        p, d = (make(n, kind=PdEngine, blocks=16, settings=settings | {"redis_url": empty.url}) for n in ("p", "d"))
        knows_the_store(p)
        d.decode("r", tokens, p.prefill("r", tokens))
        run_both(p, d)
        assert p.counted("gc_object_hits_total") == 6
        assert d.outputs("r") == expected_output(tokens, 4)
        assert (p.wrong, d.wrong) == ([], [])
        for engine in (p, d):
            engine.close()


def test_nothing_wrong_is_handed_on_while_the_slots_of_all_tiers_are_reused(make: Make) -> None:
    """Copies, loads, pulls and hand-overs at once, by engines with far too few blocks."""
    *computing, d = engines = [make(name, kind=PdEngine, blocks=24, settings=tier_of(20)) for name in ("p1", "p2", "d")]
    wait_until(lambda: all(engine.peers_ready(2) for engine in engines), timeout_s=SETTLE_S, what="peers")
    source = prompts(5, documents=6, blocks=8, tail=20)
    asked: dict[str, list[int]] = {}
    handed: set[str] = set()

    def step() -> None:
        for engine in engines:
            engine.step()
        for p in computing:
            for name in p.transfers.keys() - handed:
                handed.add(name)
                d.decode(name, asked[name], p.transfers[name])

    for number in range(40):
        name = f"r{number}"
        asked[name] = next(source)
        if number % 4 == 3:
            d.add(name, asked[name])
        else:
            computing[number % 2].add(name, asked[name], max_tokens=1, transfer={"do_remote_decode": True})
        for _ in range(3):
            step()
    deadline = time.monotonic() + SETTLE_S
    while any(engine.scheduler.has_requests() for engine in engines):
        step()
        assert time.monotonic() < deadline, [list(engine.scheduler.requests) for engine in engines]
    assert len(handed) == 30
    for name, tokens in asked.items():
        assert d.outputs(name) == expected_output(tokens, 4)
    for engine in engines:
        assert engine.wrong == []
        ledger(engine).check_invariants()
    assert sum(engine.counted("gc_rdma_transfers_total", transport="local") for engine in engines) > 0


@pytest.mark.parametrize(
    ("children", "changes", "named"),
    [
        ([child(NIXL), child(OURS)], {"policy": None}, "kv_load_failure_policy: expected recompute, got fail"),
        ([child(NIXL), child(OURS)], {"policy": "fail"}, "kv_load_failure_policy: expected recompute, got fail"),
        ([child(NIXL), child(OURS)], {"role": "kv_producer"}, "kv_role: expected kv_both or kv_consumer.*kv_producer"),
        ([child("NixlPushConnector"), child(OURS)], {}, "beside GhostCacherConnector, found NixlPushConnector"),
        ([child(OURS), child(OURS)], {}, "expected GhostCacherConnector once, found it 2 times"),
    ],
)
def test_multi_connector_that_would_not_do_is_refused_by_name(
    model: Path, children: list[dict[str, Any]], changes: dict[str, Any], named: str
) -> None:
    """With the flags, and, where no plugin is loaded, when vLLM makes the connectors."""
    plugin.register()
    with pytest.raises(ConfigError, match=named):
        outer_transfer(children, **changes)
    config = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    config.kv_transfer_config = outer_transfer([child(NIXL)])
    config.kv_transfer_config.kv_connector_extra_config["connectors"] = children
    config.kv_transfer_config.kv_role = changes.get("role", "kv_both")
    config.kv_transfer_config.kv_load_failure_policy = changes.get("policy", "recompute") or "fail"
    with pytest.raises(ConfigError, match=named):
        check_outer_of(config)


def check_outer_of(config: Any) -> None:
    """Have vLLM ask the children's classes for their layout, and check what our class finds out of the outer one."""
    found: list[Any] = []
    asked = GhostCacherConnector.get_required_kvcache_layout.__func__

    def look(cls: Any, vllm_config: Any) -> Any:
        found.append(enclosing_transfer())
        return asked(cls, vllm_config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GhostCacherConnector, "get_required_kvcache_layout", classmethod(look))
        patch.setattr(NixlPushConnector, "get_required_kvcache_layout", classmethod(lambda *_: None))
        MultiConnector.get_required_kvcache_layout(config)
    assert found[0] is config.kv_transfer_config
    check_outer(found[0])


def test_wrong_setting_of_a_child_is_found_with_the_flags() -> None:
    """As it is where our connector is alone, and not minutes later."""
    plugin.register()
    with pytest.raises(ConfigError, match="unknown setting pul"):
        outer_transfer([child(NIXL), child(OURS, pul="auto")])
    outer_transfer([child(NIXL), child(OURS, pull="auto")])


def test_no_layout_is_asked_for_beside_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA our connector asks for block-major memory, NixlConnector for another, and vLLM takes one alone."""
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda _: True)
    config = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    assert GhostCacherConnector.get_required_kvcache_layout(config) == "BLHNC"
    config.kv_transfer_config = outer_transfer([child(NIXL), child(OURS)])
    assert MultiConnector.get_required_kvcache_layout(config) == LAYOUT


@pytest.mark.parametrize(
    ("stages", "groups", "named"),
    [
        (2, 1, "pipeline_parallel_size: expected 1 in a MultiConnector, found 2"),
        (1, 2, "KV cache groups: expected 1 in a MultiConnector, found 2"),
    ],
)
def test_what_is_proven_alone_is_refused_beside_others(stages: int, groups: int, named: str) -> None:
    """Each of the two needs an argument of its own there."""
    config = SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=stages))
    with pytest.raises(UnsupportedEngine, match=named):
        check_beside_others(config, SimpleNamespace(kv_cache_groups=[None] * groups))
    check_beside_others(
        SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=1)),
        SimpleNamespace(kv_cache_groups=[None]),
    )


@pytest.mark.parametrize(
    ("role", "expected"), [("kv_producer", PdRole.PREFILL), ("kv_consumer", PdRole.DECODE), ("kv_both", None)]
)
def test_engine_says_what_it_does_as_the_connector_beside_ours_is_told_it(role: str, expected: PdRole | None) -> None:
    """Routers need no list of who computes prompts and who answers."""
    assert pd_role_of(outer_transfer([child(NIXL, role), child(OURS)])) is expected
    assert pd_role_of(None) is None

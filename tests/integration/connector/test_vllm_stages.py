"""Pipeline parallelism: a block counts when every stage has it, and engines meet when every stage is alike.

That each stage's rows are pulled as they were computed, and that reused slots never pass for them, is tested with the
other kinds (test_vllm_kinds.py). What makes it sound is in docs/DESIGN.md, under 11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.config import VllmConfig
from vllm.v1.core.sched.output import SchedulerOutput

from ghostcacher_connector.core.errors import FingerprintMismatch, ProtocolError
from ghostcacher_connector.worker.registration import Introduction
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import drive, meet, settled
from tests.integration.connector.test_vllm_host_tier import BLOCKS, compute, tier_of

pytestmark = pytest.mark.engine

REQUESTS = 60


class OnV2(VllmConfig):
    """A configuration of an engine with vLLM's second model runner, which needs Triton to run."""

    use_v2_model_runner = True  # type: ignore[assignment]


def on_v2(config: VllmConfig) -> None:
    config.__class__ = OnV2
    config.scheduler_config.async_scheduling = True  # which V1 leaves out where there are stages


@pytest.fixture(params=["V1", "V2"])
def runner(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How vLLM schedules for either model runner: for V2 ahead of outputs, and with one batch more in flight."""
    return {"stages": 2} | ({"adapt": on_v2} if request.param == "V2" else {})


def record_of(engine: SimEngine) -> Any:
    return engine.connector._scheduler._fleet.record


def test_worker_has_one_rank_for_each_stage_and_shard(make: Make) -> None:
    """Numbered through as vLLM does, stage by stage; the first of three layers' stages has one layer more."""
    engine = make(stages=2, ranks=2)
    ranks = record_of(engine).ranks
    assert [endpoint.rank for endpoint in ranks] == [0, 1, 2, 3]
    layers = [len(endpoint.memories[0].segments) for endpoint in ranks]
    assert layers[0] == layers[1] != layers[2] == layers[3]
    assert sum(layers) == 2 * 3


def test_engines_with_other_layers_in_a_stage_never_meet(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal in size, shape and number of stages: what differs is which layers a stage has."""
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,2")
    a, b = make("a", stages=2), make("b", stages=2)
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "2,1")
    c, alone = make("c", stages=2), make("alone")
    assert record_of(a).namespace == record_of(b).namespace
    assert len({record_of(engine).namespace for engine in (a, c, alone)}) == 3
    layout = record_of(a).fingerprint["layout"]
    assert "layer.0..layer.0:" in layout, "doctor shows which layers a stage has"
    assert "layer.1..layer.2:" in layout


def test_engine_does_not_start_without_one_of_its_stages(make: Make) -> None:
    """Else a block could count that this stage lacks."""
    engine = make(stages=2)
    introductions = [rank.connector.get_handshake_metadata().introduction for rank in engine.ranks]
    maker = engine.connector._scheduler._maker
    assert len(maker.record_of(introductions[::-1]).ranks) == 2
    with pytest.raises(ProtocolError, match="ranks: expected 2, found 1"):
        maker.record_of(introductions[:1])
    first, second = introductions
    other = Introduction(endpoint=second.endpoint, fingerprint={}, namespace="other", flops_per_s=1.0)
    with pytest.raises(FingerprintMismatch, match="rank 1: expected namespace"):
        maker.record_of([first, other])


@pytest.mark.parametrize("stage", [0, 1])
def test_block_that_one_stage_lacks_is_missing_on_all(make: Make, stage: int) -> None:
    """The other stage's good copy is not used: the engine computes the block, rightly."""
    a, b = make("a", blocks=64, stages=2), make("b", blocks=64, stages=2)
    meet(a, b)
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    a.add("first", prompt)
    a.run()
    settled(a)
    entries = a.connector._scheduler._fleet.publisher.held_blocks.blocks_by_slot()
    slots = [slot for slot, block in entries.items() if block in a.requests["first"].block_hashes[2:]]
    table = a.ranks[stage].connector._worker._table
    # As at the beginning of a step that overwrites them, which the other stage has not begun.
    table.bump(np.array(slots, np.int64), np.array([table.generation(slot) + 1 for slot in slots], np.uint64))
    b.add("second", prompt)
    b.run()
    assert b.outputs("second") == expected_output(prompt, 4)
    assert b.wrong == []
    assert b.counted("gc_cache_hits_total") == 2
    assert b.counted("gc_cache_misses_total", reason="stale_generation") == 3


def test_batches_in_flight_never_give_a_wrong_token(make: Make, runner: dict[str, Any]) -> None:
    """While stages are steps apart, no entry is ever in the index that some stage does not hold."""
    engines = [make(name, blocks=30, **runner) for name in "ab"]
    meet(*engines)
    assert engines[0]._in_flight == (3 if "adapt" in runner else 2)
    assert watched(engines, lambda: drive(engines, REQUESTS, prompts(1, documents=6, blocks=8, tail=20))) == []
    assert [engine.wrong for engine in engines] == [[], []]
    assert sum(engine.counted("gc_cache_hits_total") for engine in engines) > 0


def test_blocks_proven_by_the_first_stage_alone_would_be_seen(make: Make, runner: dict[str, Any]) -> None:
    """The test above proves something: by the first stage's word, entries are there before the last has them."""
    engines = [make(name, blocks=30, **runner) for name in "ab"]
    meet(*engines)
    for engine in engines:
        believe_first_stage(engine)
    assert watched(engines, lambda: drive(engines, REQUESTS, prompts(1, documents=6, blocks=8, tail=20)))


def watched(engines: list[SimEngine], work: Callable[[], Any]) -> list[Any]:
    """Do some work; return the entries that a reader would have accepted at some step, and some stage had not."""
    found: list[Any] = []
    for engine in engines:
        published, step = engine.watch_published(), engine.step

        def looking(engine: SimEngine = engine, published: Any = published, step: Any = step) -> None:
            step()
            found.extend(engine.lies(published))

        engine.step = looking  # type: ignore[method-assign]
    work()
    return found


def believe_first_stage(engine: SimEngine) -> None:
    """Break the rule of evidence: a step counts as computed when the first stage has computed it."""
    send, scheduler = engine.executor.send, engine.connector._scheduler

    def believing(output: SchedulerOutput) -> None:
        send(output)
        scheduler._publisher.confirm(output.kv_connector_metadata.step)  # type: ignore[union-attr]

    engine.executor.send = believing


def test_evicted_prompts_come_back_from_every_stage_s_host_tier(make: Make) -> None:
    engine = make(blocks=16, settings=tier_of(128), stages=2)
    assert [compute(engine, seed) for seed in range(4)] == [0] * 4
    assert [compute(engine, seed) for seed in range(4)] == [BLOCKS] * 4


def test_changed_weights_move_every_stage(make: Make) -> None:
    """All stages begin anew together, and meet those of engines that were given the same weights."""
    a, b = make("a", blocks=64, stages=2), make("b", blocks=64, stages=2)
    meet(a, b)
    a.add("old", tokens_of(3, 5 * BLOCK_TOKENS + 3))
    a.run()
    settled(a)
    before = record_of(a)
    for engine in (a, b):
        engine.rpc("update_weights", 7)
        engine.add("begin", tokens_of(2, 5))
        engine.run()
    assert record_of(a).namespace == record_of(b).namespace != before.namespace
    assert all(now.incarnation != then.incarnation for now, then in zip(record_of(a).ranks, before.ranks, strict=True))
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    a.add("new", prompt)
    a.run()
    settled(a)
    meet(a, b)
    b.add("new", prompt)
    b.run()
    assert a.outputs("new") == b.outputs("new") == expected_output(prompt, 4, 7)
    assert (b.wrong, b.counted("gc_cache_hits_total")) == ([], 5)

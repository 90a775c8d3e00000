"""In which order vLLM's model runners bump and write: read from their sources, and from calls of their own functions.

V2, the default on CUDA, zeroes and copies blocks before it lets the connector bump. That is harmless only while nothing
is zeroed or copied with what this adapter accepts, and only in the order that the tables below state. A version of vLLM
in which this changes turns these tests red. What follows from it is in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1 import spec_decode
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker import gpu_model_runner, gpu_worker
from vllm.v1.worker.gpu import block_table, kv_connector, model_runner
from vllm.v1.worker.gpu import spec_decode as gpu_spec_decode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelState

from benchmarks.harness.redis_server import RedisServer
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, tokens_of
from tests.integration.connector.simfleet import SETTLE_S, meet, settled, wait_for

pytestmark = pytest.mark.engine

FORWARDS = {
    "self.cudagraph_manager.run_fullgraph",
    "self.cudagraph_manager.run_pw_graph",
    "self.ubatch_runner.run",
    "self.model",
}
"""What runs the model in V2, in one way or another."""

PRE_FORWARD = "self.kv_connector.pre_forward"
WRITES_EARLY = {"self.kv_block_zeroer.zero_block_ids", "copy_kv_cache_blocks_inplace"}
COPY_DRAFTS = {"adaptive_verification.py", "utils.py", "ngram_proposer_gpu.py"}
"""Modules of drafters that use other streams: to copy what was drafted to the host."""
KV_MEMORY = {"kv_caches", "kv_block_zeroer"}
"""The names by which V2's runner has the KV memory, or has it written."""


def body_of(function: Any) -> ast.FunctionDef:
    """Return a function's source as a tree."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def calls_in(tree: ast.AST) -> list[tuple[int, str]]:
    """Return every call as (line, what is called), in the order of the source."""
    calls = [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls)


def first_line(calls: list[tuple[int, str]], name: str) -> int:
    return next(line for line, called in calls if called == name)


def test_v2_bumps_before_every_way_of_running_the_model() -> None:
    """Each branch of V2's step calls `pre_forward` before it launches what writes KV, full CUDA graphs among them."""
    tree = body_of(model_runner.GPUModelRunner.execute_model)
    seen = {called for _, called in calls_in(tree)}
    assert seen >= FORWARDS, f"V2 runs the model in other ways now: expected {FORWARDS}"
    branch = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "run_fullgraph" in ast.unparse(node.body) and len(node.orelse) > 0
    )
    assert {called for _, called in calls_in(branch)} & FORWARDS == FORWARDS, "a forward pass has moved elsewhere"
    for side in (branch.body, branch.orelse):
        calls = calls_in(ast.Module(side, []))
        bump = first_line(calls, PRE_FORWARD)
        assert all(bump < line for line, called in calls if called in FORWARDS)
    outside = [line for line, called in calls_in(tree) if called in FORWARDS]
    assert len(outside) == len([line for line, called in calls_in(branch) if called in FORWARDS])


def test_v2_writes_before_the_bump_only_where_it_zeroes_or_copies() -> None:
    """No method that a step calls touches KV memory, other than by the two lists that this adapter never gets."""
    runner = model_runner.GPUModelRunner
    called = {name.removeprefix("self.") for _, name in calls_in(body_of(runner.execute_model))}
    touching = {
        name
        for name in called
        if (method := getattr(runner, name, None)) is not None
        and KV_MEMORY & {node.attr for node in ast.walk(body_of(method)) if isinstance(node, ast.Attribute)}
    }
    assert touching == {"update_requests"}
    step = body_of(runner.execute_model)
    assert not KV_MEMORY & {node.attr for node in ast.walk(step) if isinstance(node, ast.Attribute)}
    for node in ast.walk(body_of(runner.update_requests)):
        if isinstance(node, ast.If) and (writes := {name for _, name in calls_in(node)} & WRITES_EARLY):
            condition = ast.unparse(node.test)
            assert condition in {
                "scheduler_output.new_block_ids_to_zero",
                "scheduler_output.kv_cache_block_copies",
            }, f"{writes} under another condition: {condition}"


def test_drafters_run_on_the_stream_of_the_model() -> None:
    """So that a step which has computed tokens proves what drafters were given before it, in both runners."""
    folders = [Path(inspect.getfile(package)).parent for package in (spec_decode, gpu_spec_decode)]
    modules = [path for folder in folders for path in folder.rglob("*.py")]
    elsewhere = {path.name for path in modules if re.search(r"\bstream\(|Stream\(", path.read_text())}
    assert len(modules) > len(COPY_DRAFTS)
    assert elsewhere <= COPY_DRAFTS


def test_v2_states_of_full_attention_write_nothing_before_the_bump() -> None:
    """`preprocess_state` comes before the bump; for models without Mamba layers it does nothing."""
    assert DefaultModelState.preprocess_state is ModelState.preprocess_state
    body = body_of(ModelState.preprocess_state).body
    assert [type(node) for node in body] == [ast.Expr, ast.Return]


class Recorder:
    """A connector of which only the order of calls is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            self.calls.append(name)
            return None if name != "get_transfer_results" else Results()

        return call


class Results:
    finished_sending = finished_recving = failed_recving = None


class Output:
    """A step's output, as far as the connector's calls look at it."""

    kv_connector_metadata = object()
    has_sync_kv_loads = False
    finished_req_ids: frozenset[str] = frozenset()


def active(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> kv_connector.ActiveKVConnector:
    monkeypatch.setattr(kv_connector, "get_kv_transfer_group", lambda: recorder)
    monkeypatch.setattr(kv_connector, "is_forward_context_available", lambda: True)
    monkeypatch.setattr(kv_connector, "get_forward_context", lambda: None)
    connector = kv_connector.ActiveKVConnector(None, {})
    recorder.calls.clear()
    return connector


def test_v2_bumps_first_and_pulls_after_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pre_forward` begins with the bump; asynchronous pulls are submitted by `post_forward`."""
    recorder = Recorder()
    connector = active(recorder, monkeypatch)
    connector.pre_forward(Output())
    assert recorder.calls == ["handle_preemptions", "bind_connector_metadata"]
    connector.post_forward(set())
    assert recorder.calls[2] == "start_load_kv"


def test_v2_step_without_tokens_bumps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step without tokens reuses for pulls is bumped like anything else."""
    recorder = Recorder()
    active(recorder, monkeypatch).no_forward(Output())
    assert recorder.calls[0] == "handle_preemptions"
    assert recorder.calls.index("handle_preemptions") < recorder.calls.index("start_load_kv")


def test_v2_dummy_runs_call_no_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiling, capture and dummy steps of other ranks neither bump nor pull, and write to no slot."""
    recorder = Recorder()
    connector = active(recorder, monkeypatch)
    connector.set_disabled(True)
    connector.pre_forward(Output())
    connector.post_forward(set())
    connector.no_forward(Output())
    assert recorder.calls == []
    calls = calls_in(body_of(model_runner.GPUModelRunner._dummy_run))
    switched = [line for line, name in calls if name == "self.kv_connector.set_disabled"]
    assert switched[0] < first_line(calls, "self.execute_model") < switched[1]
    assert "PAD_SLOT_ID" in inspect.getsource(block_table.BlockTables.get_dummy_slot_mappings)
    assert block_table.PAD_SLOT_ID == -1


def test_v1_bumps_before_it_updates_anything() -> None:
    """V1, which the CPU has as well, lets the connector bump before it zeroes, copies or computes."""
    calls = calls_in(body_of(gpu_model_runner.GPUModelRunner.execute_model))
    bump = next(line for line, name in calls if name.endswith(".handle_preemptions"))
    assert bump < first_line(calls, "self._update_states")
    assert bump < first_line(calls, "self._model_forward")


def test_worker_writes_nothing_around_the_runner() -> None:
    """The worker's own step does not touch KV memory."""
    names = {
        node.attr for node in ast.walk(body_of(gpu_worker.Worker.execute_model)) if isinstance(node, ast.Attribute)
    }
    assert not names & (KV_MEMORY | {"kv_cache", "kv_cache_config"})


def test_one_group_of_full_attention_never_hits_part_of_a_block() -> None:
    """Copies come from such hits; vLLM itself asserts what rules them out, as long as blocks are hashed at all."""
    source = inspect.getsource(UnitaryKVCacheCoordinator.__init__)
    assert "not enable_caching or (hash_block_size == self.block_size)" in " ".join(source.split()).replace("( ", "(")


@pytest.mark.parametrize("in_flight", [1, 2])
def test_scheduler_neither_zeroes_nor_copies(model: Path, in_flight: int) -> None:
    """The real scheduler with shared prefixes, parts of blocks, reuse and preemption: both lists stay empty."""
    with RedisServer() as redis:
        engine = SimEngine("a", model, {"redis_url": redis.url}, blocks=12, in_flight=in_flight)
        schedule, outputs = engine.scheduler.schedule, []

        def recorded(*arguments: Any, **named: Any) -> SchedulerOutput:
            outputs.append(schedule(*arguments, **named))
            return outputs[-1]

        engine.scheduler.schedule = recorded
        try:
            for number in range(40):
                engine.add(f"r{number}", [number % 3] * (17 + 7 * (number % 9)), max_tokens=20)
                for _ in range(3):
                    engine.step()
            engine.run()
            assert any(request.num_preemptions for request in engine.requests.values())
            assert not engine.wrong
        finally:
            engine.close()
    assert outputs
    assert not [output for output in outputs if output.kv_cache_block_copies or output.new_block_ids_to_zero]


@pytest.mark.parametrize("field", ["kv_cache_block_copies", "new_block_ids_to_zero"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_step_that_writes_before_the_bump_ends_sharing(make: Make, field: str, in_flight: int) -> None:
    """Should vLLM do it all the same, this worker leaves the fleet and serves on. Peers that have looked its blocks up
    before are refused, already when the step is on its way to the ranks."""
    a, b = make("a", in_flight=in_flight), make("b")
    meet(a, b)
    tokens = tokens_of(1, 3 * BLOCK_TOKENS + 5)
    a.add("known", tokens)
    a.run()
    settled(a)
    pulling, go, run = threading.Event(), threading.Event(), b.worker._worker._runtime.puller._run

    def run_later(job: Any) -> Any:
        pulling.set()
        go.wait(SETTLE_S)
        return run(job)

    b.worker._worker._runtime.puller._run = run_later
    b.add("pulled", tokens)
    wait_for(lambda: (b.step(), pulling.is_set())[1], "b has found what a holds")
    half, build = a.connector._scheduler, a.connector.build_connector_meta
    a.connector.build_connector_meta = lambda output: build(replace(output, **{field: [3]}))
    a.add("writes", list(range(40)))
    a.scheduler.schedule()
    go.set()
    b.run()
    assert half._left
    assert b.wrong == []
    assert b.outputs("pulled") == expected_output(tokens, 4)
    assert b.counted("gc_cache_hits_total") == 0

"""What is asked of a vLLM before the connector trusts it: by name, by trying the block pool, and while it runs."""

from __future__ import annotations

import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import UnsupportedEngine
from ghostcacher_connector.engines.common import versions
from ghostcacher_connector.engines.vllm import connector as connector_module
from ghostcacher_connector.engines.vllm.capabilities import (
    CALLED_BY_US,
    CALLED_BY_VLLM,
    OF_A_REQUEST,
    READ_BY_US,
    missing_hooks,
    pool_faults,
)
from ghostcacher_connector.engines.vllm.scheduling.scheduler import ConnectorScheduler
from ghostcacher_connector.engines.vllm.support import TRIED_VERSIONS
from ghostcacher_connector.metrics import Recorder
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output

pytestmark = pytest.mark.engine

PROMPT = list(range(40))
NO_REDIS = {"redis_url": "redis://127.0.0.1:1"}
METHODS = [hook.place for hook in (*CALLED_BY_VLLM, *CALLED_BY_US)]


@pytest.fixture
def make(model: Path) -> Iterator[Callable[[], SimEngine]]:
    engines: list[SimEngine] = []

    def factory() -> SimEngine:
        engines.append(SimEngine("a", model, NO_REDIS))
        return engines[-1]

    yield factory
    for engine in engines:
        engine.close()


def owner_of(place: str) -> tuple[Any, str]:
    """Return the class that defines a method, and the method's name."""
    path, _, name = place.rpartition(".")
    return pkgutil.resolve_name(path), name


def takes_something_else(self: Any, something_else: Any) -> None:
    """Stand in for a method whose parameters have changed."""


# -- by name -----------------------------------------------------------------------------------------------------------


def test_this_vllm_has_all_that_is_needed() -> None:
    """The version that the suites run on passes without a word."""
    assert list(missing_hooks()) == []
    assert list(pool_faults(BlockPool(4, enable_caching=True, hash_block_size=16), 16)) == []


@pytest.mark.parametrize("place", METHODS)
def test_missing_method_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method that the connector relies on is missed when it is gone."""
    owner, name = owner_of(place)
    monkeypatch.delattr(owner, name)
    (fault,) = missing_hooks()
    assert fault.startswith(f"{owner.__name__}.{name}: expected (")
    assert "found none" in fault


@pytest.mark.parametrize("place", METHODS)
def test_method_with_other_parameters_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that keeps its name and takes something else would be called in vain."""
    owner, name = owner_of(place)
    monkeypatch.setattr(owner, name, takes_something_else)
    (fault,) = missing_hooks()
    assert fault.startswith(f"{owner.__name__}.{name}: expected (")
    assert "found (something_else)" in fault


@pytest.mark.parametrize(
    ("place", "lost"), [(hook.place, field) for hook in READ_BY_US for field in hook.takes.split()]
)
def test_missing_field_is_named(place: str, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that the connector reads or sets is missed when a class has lost it."""
    path, _, name = place.partition(":")
    fields = inspect.signature(pkgutil.resolve_name(place)).parameters.values()

    class Without:
        __signature__ = inspect.Signature([field for field in fields if field.name != lost])

    monkeypatch.setattr(f"{path}.{name}", Without)
    (fault,) = missing_hooks()
    assert f"found it without {lost}" in fault


@pytest.mark.parametrize("lost", OF_A_REQUEST)
def test_missing_attribute_of_a_request_is_named(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says which tokens are computed is missed when requests have lost it."""
    if hasattr(Request, lost):
        monkeypatch.delattr(Request, lost)
    else:
        made = Request.__init__

        def make_without(self: Request, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            delattr(self, lost)

        monkeypatch.setattr(Request, "__init__", make_without)
    (fault,) = missing_hooks()
    assert f"Request.{lost}" in fault or f"'{lost}'" in fault


def test_engine_without_a_hook_does_not_start(make: Callable[[], SimEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names the version, the hook, and what it is needed for."""
    monkeypatch.delattr(BlockPool, "unpin_blocks")
    monkeypatch.setattr(connector_module, "installed_version", lambda *_: "0.36.0")
    with pytest.raises(UnsupportedEngine, match=r"vllm 0\.36\.0 lacks .*BlockPool\.unpin_blocks.*handed out again"):
        make()


def test_unknown_version_that_has_all_runs_with_a_warning(
    make: Callable[[], SimEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer minor version serves, and its log says that nobody tried it."""
    monkeypatch.setattr(connector_module, "installed_version", lambda *_: "0.36.0")
    with caplog.at_level(logging.WARNING, logger=versions.__name__):
        engine = make()
    assert any("0.36.0 was NEVER TRIED" in line and "0.33" in line for line in caplog.messages)
    engine.add("r", PROMPT)
    engine.run()
    assert engine.outputs("r") == expected_output(PROMPT, 4)


@pytest.mark.parametrize("version", ["0.30.0", "0.31.2", "0.33.0", "0.32.1rc1"])
def test_tried_versions_are_not_warned_of(version: str, caplog: pytest.LogCaptureFixture) -> None:
    """Patch releases of a minor version that was tried are nothing to speak of."""
    with caplog.at_level(logging.WARNING, logger=versions.__name__):
        versions.check_capabilities("vllm", version, TRIED_VERSIONS, [])
        assert caplog.messages == []
        versions.check_capabilities("vllm", "0.3.0", TRIED_VERSIONS, [])
    assert len(caplog.messages) == 1


# -- by trying the block pool ------------------------------------------------------------------------------------------


class CallsLate(BlockPool):
    """Calls back only when the next blocks are asked for: after the block was handed out, and perhaps written."""

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        watchers, self._reuse_watchers = self._reuse_watchers, {}
        late = getattr(self, "late", [])
        for block, watcher in late:
            watcher(block)
        blocks = super().get_new_blocks(num_blocks)
        self.late = [(block, watchers.pop(block.block_id)) for block in blocks if block.block_id in watchers]
        self._reuse_watchers |= watchers
        return list(blocks)


class ForgetsOnHit(BlockPool):
    """Forgets a watcher when the block is found again by its hash."""

    def touch(self, blocks: Any) -> None:
        super().touch(blocks)
        for block in blocks:
            self._reuse_watchers.pop(block.block_id, None)


class ForgetsOnReset(BlockPool):
    """Forgets all watchers when the prefix cache is reset."""

    def reset_prefix_cache(self) -> bool:
        self._reuse_watchers.clear()
        return bool(super().reset_prefix_cache())


class CallsWhenFreed(BlockPool):
    """Calls back as soon as nobody uses the block any more."""

    def free_blocks(self, ordered_blocks: Any) -> None:
        blocks = list(ordered_blocks)
        super().free_blocks(blocks)
        for block in blocks:
            if (watcher := self._reuse_watchers.pop(block.block_id, None)) is not None:
                watcher(block)


class KeepsItsReference(BlockPool):
    """Watches without releasing anything: a published block would never be free again."""

    def unpin_blocks(self, blocks: Any, on_reuse: Any) -> None:
        self._reuse_watchers |= {block.block_id: on_reuse for block in blocks}


@pytest.mark.parametrize(
    ("pool_class", "fault"),
    [
        (CallsLate, "before the block is handed out again, found 0 calls"),
        (ForgetsOnHit, "before the block is handed out again, found 0 calls"),
        (ForgetsOnReset, "reset_prefix_cache: expected on_reuse"),
        (CallsWhenFreed, "found it called before"),
        (KeepsItsReference, "expected the block's one reference to stay, found 2"),
    ],
)
def test_pool_that_behaves_otherwise_ends_the_engine(
    pool_class: type[BlockPool], fault: str, make: Callable[[], SimEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way in which a reused block could go unnoticed is found before the first request."""
    monkeypatch.setattr("vllm.v1.core.kv_cache_coordinator.BlockPool", pool_class)
    with pytest.raises(UnsupportedEngine, match=fault):
        make()


def test_hashes_of_other_length_end_the_engine() -> None:
    """Hashes that cover less than a block name something else than blocks, whatever the configuration says."""
    (fault,) = pool_faults(BlockPool(4, enable_caching=True, hash_block_size=8), BLOCK_TOKENS)
    assert "hash_block_size: expected 16 tokens as in a block, found 8" in fault


# -- while it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["never", "after the forward pass"])
def test_engine_that_overwrites_before_it_bumps_leaves_at_its_first_step(
    call: str, make: Callable[[], SimEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """Without `handle_preemptions` at the start of a step no generation can be trusted, and the log says why."""
    engine = make()
    begin, held = engine.worker.handle_preemptions, []
    engine.worker.handle_preemptions = held.append
    if call != "never":
        engine.rank.after_forward = lambda: begin(held.pop())
    incarnation = engine.worker._worker._table.incarnation
    engine.add("r", PROMPT)
    engine.run()
    assert engine.worker._worker._table.incarnation != incarnation
    assert engine.connector._scheduler._left
    assert any("forward pass of step 1: expected after handle_preemptions" in line for line in caplog.messages)
    assert engine.outputs("r") == expected_output(PROMPT, 4)


def test_pulls_are_not_started_before_their_step_begins(make: Callable[[], SimEngine]) -> None:
    """Where layers are not announced, as in CUDA graphs, the call that starts pulls shows the same."""
    engine = make()
    engine.worker.handle_preemptions = lambda _: None
    engine.worker.wait_for_layer_load = lambda _: None
    engine.add("r", PROMPT)
    engine.run()
    assert engine.connector._scheduler._left


def test_joining_without_a_manager_of_blocks_is_refused(model: Path) -> None:
    """A scheduler that cannot watch its blocks enters no fleet."""
    config = SimEngine.make_config("a", model, NO_REDIS, in_flight=1, role="kv_both", step_tokens=64)
    half = ConnectorScheduler(config, Settings(worker_id="a"), Recorder())
    with pytest.raises(UnsupportedEngine, match="bind_kv_cache_manager: expected before"):
        half.join({})


def test_step_before_the_ranks_are_known_is_an_error_in_the_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An engine whose ranks never introduce themselves serves alone, and says so once."""
    config = SimEngine.make_config("a", model, NO_REDIS, in_flight=1, role="kv_both", step_tokens=64)
    half = ConnectorScheduler(config, Settings(worker_id="a"), Recorder())
    half.build_metadata(SchedulerOutput.make_empty())
    half.build_metadata(SchedulerOutput.make_empty())
    assert len([line for line in caplog.messages if "set_xfer_handshake_metadata" in line]) == 1


def test_being_asked_twice_joins_once(make: Callable[[], SimEngine]) -> None:
    """vLLM 0.33 asks for the ranks' addresses again when somebody tells it to wake up."""
    engine = make()
    fleet = engine.connector._scheduler._fleet
    handshake = engine.worker.get_handshake_metadata()
    engine.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): handshake})
    assert engine.connector._scheduler._fleet is fleet

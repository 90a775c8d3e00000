"""LoRA adapters in the fleet: what one computed is never used for another one, whatever the two are called.

Real scheduler, hashes and adapter objects of vLLM, real connector, NIXL and Redis; only the forward pass is ours, and
it depends on the adapter's content.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.lora.request import LoRARequest
from vllm.v1.core import kv_cache_utils

from ghostcacher_connector.engines.vllm.scheduling.adapters import BASE, AdaptedBlocks
from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, RunnerRequest, expected_output, tokens_of
from tests.integration.connector.simadapters import WEIGHT, digest_of, write_adapter
from tests.integration.connector.test_vllm_host_tier import tier_of
from tests.integration.connector.test_vllm_scheduler import settled
from tests.integration.connector.test_vllm_weights import meet

pytestmark = pytest.mark.engine

BLOCKS = 8
OUTPUT_TOKENS = 3
LORA = {"enable_lora": True, "max_loras": 4, "max_cpu_loras": 4, "blocks": 256}


def lora(name: str, number: int, path: str, *, in_place: bool = False) -> LoRARequest:
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=path, load_inplace=in_place)


def load(engine: SimEngine, adapter: LoRARequest) -> None:
    """Load an adapter as vLLM's API server does."""
    assert engine.executor.add_lora(adapter)


def compute(engine: SimEngine, seed: int, adapter: LoRARequest | None, content: int, **options: Any) -> float:
    """Complete a prompt rightly for an adapter of this content; return how many blocks came from peers."""
    tokens = tokens_of(seed, BLOCKS * BLOCK_TOKENS + 3)
    before, name = engine.counted("gc_cache_hits_total"), f"p{seed}-{len(engine.requests)}"
    engine.add(name, tokens, max_tokens=OUTPUT_TOKENS, lora_request=adapter, **options)
    engine.run()
    assert engine.outputs(name) == expected_output(tokens, OUTPUT_TOKENS, WEIGHT * content)
    assert engine.wrong == []
    return engine.counted("gc_cache_hits_total") - before


def pair(make: Make, **options: Any) -> tuple[SimEngine, SimEngine]:
    engines = make("a", **LORA, **options), make("b", **LORA, **options)
    meet(*engines)
    return engines


def published(engine: SimEngine) -> int:
    return len(engine.connector._scheduler._fleet.publisher.held_blocks.blocks_by_slot())


@pytest.mark.parametrize("in_flight", [1, 2])
def test_same_adapter_is_shared_whatever_it_is_called(make: Make, tmp_path: Path, in_flight: int) -> None:
    """Another name, path and number on the other worker: its content counts, from the first request on."""
    a, b = pair(make, in_flight=in_flight)
    on_a = lora("mine", 1, write_adapter(tmp_path / "x", 7))
    on_b = lora("yours", 5, write_adapter(tmp_path / "y", 7))
    load(b, on_b)
    assert compute(a, 1, on_a, 7) == 0
    settled(a)
    assert compute(b, 1, on_b, 7) == BLOCKS
    settled(b)
    assert compute(a, 1, on_a, 7) == 0, "it has them itself"


@pytest.mark.parametrize("in_flight", [1, 2])
def test_other_adapter_of_the_same_name_is_never_met(make: Make, tmp_path: Path, in_flight: int) -> None:
    """Nor the model alone, in both directions: the same prompt, name and path, and nothing is pulled."""
    a, b = pair(make, in_flight=in_flight)
    path = write_adapter(tmp_path / "x", 7)
    adapter = lora("adapter", 1, path)
    load(a, adapter)
    assert compute(a, 1, adapter, 7) == 0
    write_adapter(tmp_path / "x", 8)
    load(b, adapter)
    settled(a)
    assert compute(b, 1, adapter, 8) == 0
    assert compute(b, 1, None, 0) == 0
    settled(b)
    assert compute(a, 1, None, 0) == BLOCKS
    assert compute(a, 1, adapter, 7) == 0


def test_adapter_named_like_a_salt_never_meets_it(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.30 hashes the name of an adapter and a salt of the same letters alike: within an engine it confuses them,
    and no peer ever sees it."""
    hash_as_030(monkeypatch)
    a, b = pair(make, in_flight=1)
    adapter = lora("acme", 1, write_adapter(tmp_path / "x", 7))
    for engine in (a, b):
        load(engine, adapter)
    tokens = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    compute(a, 1, adapter, 7)
    truth = Truth(a, range(8))
    salted = a.add("salted", tokens, max_tokens=OUTPUT_TOKENS, cache_salt="acme", pull=False)
    a.run()
    assert a.wrong, "vLLM no longer confuses them, or not here"
    a.rank.wrong.clear()
    settled(a)
    assert salted.num_tokens > len(tokens)
    assert compute(b, 1, None, 0, cache_salt="acme") == 0
    assert truth.lies() == []


@pytest.mark.parametrize("in_flight", [1, 2])
def test_adapter_that_is_reloaded_in_place_is_not_shared(make: Make, tmp_path: Path, in_flight: int) -> None:
    """Neither what it computes, nor what others did; other adapters are. After a reset of the cache it is again."""
    a, b = pair(make, in_flight=in_flight)
    path, other = write_adapter(tmp_path / "x", 7), lora("other", 2, write_adapter(tmp_path / "other", 4))
    adapter = lora("adapter", 1, path)
    compute(a, 1, adapter, 7)
    settled(a)
    before = published(a)
    write_adapter(tmp_path / "x", 8)
    load(a, lora("adapter", 1, path, in_place=True))
    compute(a, 2, adapter, 8)
    compute(a, 3, other, 4)
    settled(a)
    assert published(a) == before + BLOCKS
    same = lora("b", 3, other.lora_path)
    load(b, same)
    assert compute(b, 3, same, 4) == BLOCKS
    renewed = lora("renewed", 4, path)
    load(b, renewed)
    assert compute(b, 2, renewed, 8) == 0
    settled(b)
    assert compute(a, 2, adapter, 8) == 0
    assert a.scheduler.reset_prefix_cache()
    compute(a, 4, adapter, 8)
    settled(a)
    assert compute(a, 2, adapter, 8) == BLOCKS
    assert compute(b, 4, renewed, 8) == BLOCKS


@pytest.mark.parametrize("how", ["another number", "evicted and read again"])
def test_name_with_two_contents_is_not_shared(make: Make, tmp_path: Path, how: str) -> None:
    """Unloaded, changed and loaded again, by the API or behind its back: vLLM's own cache gives what the first one
    computed, and no peer ever sees that."""
    a, b = pair(make, in_flight=1)
    path = write_adapter(tmp_path / "x", 7)
    adapter = lora("adapter", 1, path)
    compute(a, 1, adapter, 7)
    truth = Truth(a, range(9))
    write_adapter(tmp_path / "x", 8)
    if how == "another number":
        adapter = lora("adapter", 2, path)
    else:
        a.rank.remove_lora(1)
    a.add("later", tokens_of(1, BLOCKS * BLOCK_TOKENS + 40), lora_request=adapter)
    a.run()
    assert a.wrong, "vLLM no longer gives it the other one's blocks"
    a.rank.wrong.clear()
    a.add("new", tokens_of(2, BLOCKS * BLOCK_TOKENS + 3), lora_request=adapter)
    a.run()
    settled(a)
    assert truth.entries == []
    assert truth.lies() == []
    renewed = lora("renewed", 4, path)
    load(b, renewed)
    assert compute(b, 1, renewed, 8) == 0


def test_pull_under_way_when_its_adapter_is_reloaded_is_computed(make: Make, tmp_path: Path) -> None:
    """It was looked up for the adapter's former content."""
    a, b = pair(make, in_flight=1)
    path = write_adapter(tmp_path / "x", 7)
    adapter = lora("adapter", 1, path)
    for engine in (a, b):
        load(engine, adapter)
    compute(a, 1, adapter, 7)
    settled(a)
    tokens = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    b.add("r", tokens, max_tokens=OUTPUT_TOKENS, lora_request=adapter)
    puller = b.worker._worker._runtime.puller
    while not b.worker._worker._orders:
        b.step()
    write_adapter(tmp_path / "x", 8)
    load(b, lora("adapter", 1, path, in_place=True))
    b.run()
    assert puller.poll() == []
    assert (b.wrong, b.outputs("r")) == ([], expected_output(tokens, OUTPUT_TOKENS, WEIGHT * 8))
    assert b.counted("gc_cache_hits_total") == 0


def test_host_tier_keeps_adapters_apart(make: Make, tmp_path: Path) -> None:
    """What an adapter computed is copied down and loaded again for it, and for nobody else."""
    options = LORA | {"blocks": 16}
    engine = make(**options, settings=tier_of(64))
    adapters = [lora(name, number, write_adapter(tmp_path / name, number)) for number, name in enumerate("xy", 1)]
    for adapter in adapters:
        compute(engine, 1, adapter, adapter.lora_int_id)
    for seed in range(2, 5):
        compute(engine, seed, None, 0)
    for adapter in adapters:
        assert compute(engine, 1, adapter, adapter.lora_int_id) == BLOCKS
    assert compute(engine, 1, None, 0) == 0


class Truth:
    """What the slots of an engine must hold, by what computed them, and what its entries must.

    Every content that an adapter may have is known; 0 is the model alone.
    """

    def __init__(self, engine: SimEngine, contents: range) -> None:
        self._engine = engine
        self._digests = {BASE: 0} | {digest_of(content): content for content in contents if content}
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._called: dict[bytes, tuple[bytes, bytes]] = {}
        engine._number_of = self._number_of_key  # type: ignore[method-assign]
        self.entries = engine.watch_published()

    def lies(self) -> list[Any]:
        """Return the marks that are wrong, and the entries that a reader would accept and that are."""
        engine, watch = self._engine, self._engine.connector._scheduler._watch
        table, pool = engine.worker._worker._table, engine.scheduler.kv_cache_manager.block_pool
        found: list[Any] = engine.lies(self.entries)
        for slot, computed_by in watch._computed.items():
            block, content = pool.blocks[slot].block_hash, self._digests[computed_by]
            if block is None or int(table.generation(slot)) != watch._generations[slot]:
                continue  # nobody is given it, or it was handed out to a step that has yet to run
            if not engine.holds(slot, BLOCK_TOKENS - 1, self._number_of(block[:-4], content)):
                found.append((slot, content))
        return found

    def _number_of(self, block: bytes, content: int) -> int:
        """Return the number that the last token of a block must have. block: the engine's hash."""
        if (block, content) not in self._numbers:
            request = next(each for each in self._engine.requests.values() if block in each.block_hashes)
            end = (request.block_hashes.index(block) + 1) * BLOCK_TOKENS
            state = RunnerRequest(list(request.all_token_ids), [], lambda: WEIGHT * content)
            self._numbers[block, content] = state.number(end - 1)
        return self._numbers[block, content]

    def _number_of_key(self, key: bytes) -> int:
        """Return the same of a block that is called so in the fleet."""
        if key not in self._called:
            for request in self._engine.requests.values():
                hashes = list(request.block_hashes)
                for digest in self._digests:
                    names = AdaptedBlocks(request, digest).names() if digest else hashes
                    self._called |= {name: (digest, block) for name, block in zip(names, hashes, strict=True)}
        digest, block = self._called[key]
        return self._number_of(block, self._digests[digest])


def hash_as_030(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM hash what its version 0.30 did: the name of an adapter, without its path, and salts, all untagged."""

    def extra_keys(request: Any, start: int, _end: int, mm: int) -> tuple[Any, int]:
        name = [request.lora_request.lora_name] if request.lora_request else []
        keys = name + ([request.cache_salt] if start == 0 and request.cache_salt else [])
        return tuple(keys) or None, mm

    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", extra_keys)


CONTENTS = range(4)
ROUNDS = 5_000 if SOAK else 150


def change(engine: SimEngine, source: random.Random, folder: Path, names: list[str]) -> None:
    """Do at random what may change an adapter: its file, a load, in place or not, an eviction."""
    name, number = source.choice(names), source.randrange(1, 4)
    path = str(folder / source.choice(names))
    what = source.randrange(6)
    if what < 2:
        write_adapter(folder / source.choice(names), source.choice(CONTENTS[1:]))
    elif what < 4:
        load(engine, lora(name, number, path, in_place=what == 3))
    elif what == 4:
        engine.executor.remove_lora(number)
    else:
        engine.scheduler.reset_prefix_cache()


@pytest.mark.parametrize("version", ["this version", "0.30"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_mark_is_true_whatever_adapters_become(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int, version: str
) -> None:
    """Adapters of one name and several contents, loaded, reloaded, evicted and changed on the disk at random beside
    requests of tenants with the same names: no mark and no entry lies, and a worker whose own adapters stay as they
    are, under the same names and paths, reads nothing wrong."""
    monkeypatch.setattr("ghostcacher_connector.engines.vllm.scheduling.parts.mixes_adapters_wrong", lambda _: False)
    if version == "0.30":
        hash_as_030(monkeypatch)
    a, b = pair(make, in_flight=in_flight, long_prefill_token_threshold=40)
    truths = [Truth(engine, CONTENTS) for engine in (a, b)]
    names, source = ["x", "y"], random.Random(in_flight)
    documents = [tokens_of(100 + number, 6 * BLOCK_TOKENS) for number in range(2)]
    stable = [lora(name, number, write_adapter(tmp_path / "b" / name, number)) for number, name in enumerate(names, 1)]
    for name in names:
        write_adapter(tmp_path / "a" / name, 3)
    number = 0
    # Where the engines' threads are slow, few requests end in so many rounds.
    while number < ROUNDS or min(len(truth.entries) for truth in truths) <= 10:
        assert number < 20 * ROUNDS, "hardly anything was published, so that nothing is proved"
        number += 1
        for engine in (a, b):
            prompt = source.choice(documents)[: source.randrange(20, 96)] + tokens_of(source.randrange(3), 20)
            if engine is a:
                # Its path is one that requests of the other worker may have, too.
                adapter = lora(
                    source.choice(names),
                    source.randrange(1, 4),
                    str(tmp_path / "a" / source.choice(names)),
                    in_place=source.random() < 0.1,
                )
                if source.random() < 0.3:
                    change(a, source, tmp_path / "a", names)
            else:
                adapter = source.choice(stable)
            chosen = source.choice([{"lora_request": adapter}, {"cache_salt": "x"} if engine is a else {}, {}])
            if len(engine.scheduler.requests) < 6:
                engine.add(f"r{number}", prompt, max_tokens=source.choice([1, 2, 20]), **chosen)
            engine.step()
        assert [truth.lies() for truth in truths] == [[], []]
    for engine in (a, b):
        engine.run(timeout_s=60)
    assert [truth.lies() for truth in truths] == [[], []]
    assert b.wrong == []

"""What the adapter refuses at start, by name, and what it takes for the identity of a worker's blocks."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import KVTransferConfig, SpeculativeConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError, UnsupportedEngine
from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector
from ghostcacher_connector.engines.vllm.identity import fingerprint_of, worker_name
from ghostcacher_connector.engines.vllm.kv_groups import describe_groups
from ghostcacher_connector.engines.vllm.support import check_config
from ghostcacher_connector.identity.fingerprint import differences
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output
from tests.integration.connector.simdrafter import drafting
from tests.integration.connector.windowsim import WindowEngine

pytestmark = pytest.mark.engine

FULL = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32)
SLIDING = SlidingWindowSpec(
    block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32, sliding_window=64
)
CHUNKED = ChunkedLocalAttentionSpec(
    block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32, attention_chunk_size=64
)
STATE = MambaSpec(block_size=BLOCK_TOKENS, shapes=((2, 2),), dtypes=(torch.float32,))
LAYOUT = "2x256/256;torch.float32[blocks 16:4 1:4 4:1]"


@pytest.fixture
def config(model: Path) -> Any:
    return SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)


def cache_of(*specs: Any) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)


def hashed_by(tokens: int) -> KVCacheConfig:
    """Return a cache whose hashes cover so many tokens; before vLLM 0.32 it does not say so."""
    cache = cache_of(FULL)
    cache.hash_block_size = tokens
    return cache


LATENT = MLAAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=576, dtype=torch.float32)
INDEXER = replace(LATENT, head_size=132, dtype=torch.uint8)


@pytest.mark.parametrize(
    "spec",
    [
        FULL,
        LATENT,
        replace(FULL, sliding_window=64),
        replace(FULL, attention_chunk_size=64),
        replace(FULL, dtype=torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR),
    ],
)
def test_one_group_in_which_every_block_is_kept_is_accepted(config: Any, spec: Any) -> None:
    """Whatever a row holds, and whichever rows a layer looks at."""
    check_config(config, cache_of(spec))


def test_sliding_windows_beside_full_attention_are_accepted(config: Any) -> None:
    """In whatever order vLLM lists the groups; each kind may have several."""
    check_config(config, cache_of(SLIDING, FULL, SLIDING, FULL))


def test_drafts_with_several_groups_are_refused(config: Any) -> None:
    """With one group they are shared; with several nothing has been tried."""
    config.speculative_config = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_max=3)
    check_config(config, cache_of(FULL))
    with pytest.raises(UnsupportedEngine, match="speculative decoding: expected none with several KV cache groups"):
        check_config(config, cache_of(FULL, SLIDING))


def test_stages_with_several_groups_are_refused(config: Any) -> None:
    """Each stage would have a part of each group, and which rows that leaves in a block has not been tried."""
    config.parallel_config.pipeline_parallel_size = 2
    config.parallel_config.distributed_executor_backend = "mp"
    check_config(config, cache_of(FULL))
    with pytest.raises(UnsupportedEngine, match="pipeline_parallel_size: expected 1 with several KV cache groups"):
        check_config(config, cache_of(FULL, SLIDING))


def test_host_tier_with_several_groups_is_refused(model: Path) -> None:
    """It keeps and drops blocks one by one, and a window is of use as a whole."""
    with pytest.raises(ConfigError, match="host_tier_gib: expected 0 with 3 KV cache groups"):
        WindowEngine("a", model, {"redis_url": "redis://127.0.0.1:1", "host_tier_gib": 0.001})


def test_groups_are_part_of_the_identity() -> None:
    """Which layers share a block, and how far their windows reach; one group says nothing more than the layout."""
    caches = [cache_of(FULL), cache_of(FULL, SLIDING), cache_of(SLIDING, FULL)]
    caches.append(cache_of(FULL, replace(SLIDING, sliding_window=32)))
    described = [describe_groups(cache) for cache in caches]
    assert described[0] == ""
    assert len(set(described)) == 4


@pytest.mark.parametrize(
    ("cache", "named"),
    [
        (cache_of(SLIDING, replace(SLIDING, sliding_window=32)), "expected one with full attention"),
        (cache_of(FULL, replace(SLIDING, block_size=32)), "group 1: expected blocks of 16 tokens, found 32"),
        (cache_of(FULL, replace(SLIDING, head_size=4)), "group 1: expected 256 bytes a block and layer"),
        (cache_of(FULL, replace(SLIDING, extra_retained_tokens=4)), "group 1: expected no tokens kept below"),
        (
            cache_of(FULL, CHUNKED),
            "group 1: expected full or sliding-window attention, found ChunkedLocalAttentionSpec",
        ),
        (cache_of(FULL, STATE), "group 1: expected full or sliding-window attention, found MambaSpec"),
        (cache_of(SLIDING, replace(FULL, non_causal=True)), "group 1: expected causal"),
        (cache_of(FULL, STATE), "KV cache zeroing: expected off"),
        (
            cache_of(replace(FULL, attention_chunk_size=64), SLIDING),
            "group 0: expected full attention, found windows or chunks",
        ),
        (cache_of(SLIDING), "found SlidingWindowSpec .a window in every layer"),
        (cache_of(UniformTypeKVCacheSpecs.from_specs({"a": LATENT, "b": INDEXER})), "blocks of several sizes.*V3.2"),
        (cache_of(replace(LATENT, tokens_per_state=4)), "expected a state for each token, found one for 4"),
        (cache_of(replace(FULL, non_causal=True)), "expected causal"),
        (hashed_by(8), "hash_block_size: expected the block size 16, found 8"),
    ],
)
def test_other_caches_are_refused_by_name(config: Any, cache: KVCacheConfig, named: str) -> None:
    """A cache in which a longest prefix is not enough is refused."""
    with pytest.raises(UnsupportedEngine, match=named):
        check_config(config, cache)


@pytest.mark.parametrize(
    ("section", "field", "value", "named"),
    [
        ("parallel_config", "decode_context_parallel_size", 2, "decode_context_parallel_size"),
        ("cache_config", "enable_prefix_caching", False, "enable_prefix_caching: expected true"),
        ("cache_config", "calculate_kv_scales", True, "calculate_kv_scales"),
        ("model_config", "enable_sleep_mode", True, "enable_sleep_mode: expected false"),
        ("model_config", "enable_cumem_allocator", True, "enable_cumem_allocator: expected false"),
        ("parallel_config", "distributed_executor_backend", "external_launcher", "external_launcher"),
        ("parallel_config", "enable_eplb", True, "enable_eplb: expected false"),
    ],
)
def test_features_without_a_proof_are_refused_by_name(
    config: Any, section: str, field: str, value: Any, named: str
) -> None:
    """Each feature that sharing is not proven with is refused, and named."""
    setattr(getattr(config, section), field, value)
    with pytest.raises(UnsupportedEngine, match=named):
        check_config(config, cache_of(FULL))


def test_pipeline_stages_are_accepted_where_every_stage_reports(config: Any) -> None:
    """An executor that passes on what the last stage reports, and no other, would have blocks count too early."""
    config.parallel_config.pipeline_parallel_size = 2
    for backend in ("ray", "uni"):
        config.parallel_config.distributed_executor_backend = backend
        with pytest.raises(UnsupportedEngine, match=f"expected mp with pipeline parallelism, found {backend}"):
            check_config(config, cache_of(FULL))
    config.parallel_config.distributed_executor_backend = "mp"
    check_config(config, cache_of(FULL))
    config.speculative_config = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_max=3)
    with pytest.raises(UnsupportedEngine, match="speculative decoding: expected none with pipeline parallelism"):
        check_config(config, cache_of(FULL))


@pytest.mark.parametrize(
    ("method", "in_flight", "named"),
    [
        ("ngram", 2, "async_scheduling: expected false with speculative decoding"),
        ("ngram_gpu", 1, "speculative decoding: expected none, or one of ngram, eagle.* found ngram_gpu"),
        ("dflash", 1, "speculative decoding: expected none, or one of .* found dflash"),
        ("eagle", 2, "async_scheduling: expected false with speculative decoding"),
    ],
)
def test_drafts_are_refused_where_nothing_proves_what_they_leave(
    config: Any, method: str, in_flight: int, named: str
) -> None:
    """A scheduler that runs ahead does not know which drafts were right, and not every drafter's rows are known."""
    config.speculative_config = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_max=3)
    check_config(config, cache_of(FULL))
    config.speculative_config.method = method
    config.scheduler_config.async_scheduling = in_flight > 1
    with pytest.raises(UnsupportedEngine, match=named):
        check_config(config, cache_of(FULL))


@pytest.mark.parametrize("method", ["eagle", "eagle3", "mtp", "draft_model"])
def test_drafters_with_layers_in_the_group_of_the_model_s_are_accepted(
    config: Any, tmp_path: Path, method: str
) -> None:
    """One module, whose rows are written once; no others."""
    made = drafting(tmp_path / "drafter")["speculative_config"]
    draft = config.speculative_config = SpeculativeConfig(
        **made, target_model_config=config.model_config, target_parallel_config=config.parallel_config
    )
    draft.method = method
    check_config(config, cache_of(FULL))
    with pytest.raises(UnsupportedEngine, match="the drafter's layers in the KV cache group of the model's"):
        check_config(config, cache_of(FULL, FULL))
    draft.parallel_drafting = True
    with pytest.raises(UnsupportedEngine, match="parallel_drafting"):
        check_config(config, cache_of(FULL))
    draft.parallel_drafting = False
    draft.num_speculative_tokens_per_batch_size = [(1, 8, 3), (9, 64, 0)]
    with pytest.raises(UnsupportedEngine, match="num_speculative_tokens_per_batch_size"):
        check_config(config, cache_of(FULL))
    draft.num_speculative_tokens_per_batch_size = None
    draft.method, draft.draft_model_config.hf_config.num_nextn_predict_layers = "mtp", 2
    with pytest.raises(UnsupportedEngine, match="expected one MTP module"):
        check_config(config, cache_of(FULL))


def test_sleep_mode_is_answered_with_no(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.33 takes a connector for able to follow a remapped KV cache unless it says otherwise."""
    transfer = KVTransferConfig(
        kv_connector="GhostCacherConnector",
        kv_connector_module_path="ghostcacher_connector.engines.vllm",
        kv_role="kv_both",
    )
    assert not GhostCacherConnector.supports_sleep_mode(transfer)
    if hasattr(KVConnectorBase_V1, "supports_sleep_mode"):
        monkeypatch.setattr(type(current_platform), "is_sleep_mode_available", lambda _: True)
        asleep = EngineArgs(
            model=str(model), skip_tokenizer_init=True, kv_transfer_config=transfer, enable_sleep_mode=True
        )
        with pytest.raises(ValueError, match="GhostCacherConnector does not support sleep mode"):
            asleep.create_engine_config()


def test_unmapping_the_kv_memory_is_refused_before_it_happens(model: Path) -> None:
    """What vLLM calls on its way to sleep raises, and the engine goes on with its memory as it was."""
    engine = SimEngine("a", model, {"redis_url": "redis://127.0.0.1:1"})
    try:
        with pytest.raises(UnsupportedEngine, match="sleep mode"):
            engine.worker.unregister_kv_caches()
        engine.add("r", list(range(40)))
        engine.run()
        assert engine.outputs("r") == expected_output(list(range(40)), 4)
    finally:
        engine.close()


def test_unknown_setting_is_refused_by_the_connector(model: Path) -> None:
    """A typing error in the extra config stops the engine at start."""
    with pytest.raises(ConfigError, match="publish_batsch"):
        SimEngine("a", model, {"publish_batsch": 1, "redis_url": "redis://127.0.0.1:1"})


def identity(config: Any, layout: str = LAYOUT, **settings: Any) -> Any:
    return fingerprint_of(config, FULL, layout, Settings(**settings))


def test_equal_engines_have_equal_identities(config: Any, model: Path) -> None:
    """Name, addresses and engine id do not matter; what is computed with does."""
    other = SimEngine.make_config("b", model, {}, in_flight=2, role="kv_consumer", step_tokens=128)
    assert identity(config).digest() == identity(other).digest()


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda c: setattr(c.cache_config, "prefix_caching_hash_algo", "sha256_cbor"), "hash_algorithm known_hash"),
        (lambda c: setattr(c.model_config, "dtype", torch.bfloat16), "quantization"),
        (lambda c: setattr(c.model_config, "quantization", "fp8"), "quantization"),
        (lambda c: setattr(c.cache_config, "cache_dtype", "fp8_e5m2"), "kv_dtype"),
        (lambda c: setattr(c.model_config, "hf_overrides", {"rope_theta": 1.0}), "config_digest"),
        (lambda c: setattr(c.load_config, "load_format", "dummy"), "weights_digest"),
        (lambda c: setattr(c.parallel_config, "tensor_parallel_size", 2), "tp"),
    ],
)
def test_whatever_changes_the_bytes_changes_the_identity(config: Any, model: Path, change: Any, fields: str) -> None:
    """Each difference gives another namespace, and no field differs but its own."""
    other = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    change(other)
    mine, theirs = identity(config), identity(other)
    assert mine.digest() != theirs.digest()
    assert [name for name, _, _ in differences(mine.as_fields(), theirs.as_fields())] == fields.split()


@pytest.mark.parametrize(
    "change",
    [
        lambda drafter: (drafter / "pytorch_model.bin").write_bytes(b"other weights"),
        lambda drafter: (drafter / "config.json").write_text(
            (drafter / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
        ),
    ],
    ids=["weights", "config"],
)
def test_drafter_is_part_of_the_identity(model: Path, tmp_path: Path, change: Any) -> None:
    """With another one, or with none, blocks hold other rows. Where it lies does not matter."""

    def engine(folder: str | None) -> Any:
        options = {} if folder is None else {"speculative_config": drafting(tmp_path / folder)["speculative_config"]}
        return SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64, **options)

    mine, alike = identity(engine("here")), identity(engine("there"))
    assert mine.digest() == alike.digest()
    changed = engine("other")
    change(tmp_path / "other")
    assert [name for name, _, _ in differences(mine.as_fields(), identity(changed).as_fields())] == ["numerics"]
    assert [name for name, _, _ in differences(mine.as_fields(), identity(engine(None)).as_fields())] == ["numerics"]


def test_random_hash_seed_shares_nothing(config: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that each process seeds for itself mean nothing to another one, until PYTHONHASHSEED fixes the seed."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    other = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    for each in (config, other):
        each.cache_config.prefix_caching_hash_algo = "xxhash"
    assert identity(config).hash_seed != identity(other).hash_seed
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert identity(config).hash_seed == identity(other).hash_seed


def test_other_layout_is_another_identity(config: Any) -> None:
    """Slots of another size or stride are never mixed."""
    mine, theirs = identity(config), identity(config, LAYOUT.replace("2x256", "4x128"))
    assert [name for name, _, _ in differences(mine.as_fields(), theirs.as_fields())] == ["layout"]


def test_longest_context_counts_where_rope_depends_on_it(config: Any) -> None:
    """Factors of some rope scalings are chosen by the longest context, so that equal tokens get different keys."""
    before = identity(config).config_digest
    config.model_config.max_model_len *= 2
    assert identity(config).config_digest == before
    config.model_config.hf_overrides = {"rope_scaling": {"rope_type": "longrope"}}
    scaled = identity(config).config_digest
    config.model_config.max_model_len *= 2
    assert identity(config).config_digest != scaled


def test_data_parallel_engines_are_workers_of_their_own(config: Any) -> None:
    """One name for several engines would mix up their slots."""
    settings = Settings(worker_id="w")
    assert worker_name(config, settings) == "w"
    config.parallel_config.data_parallel_size = 2
    config.parallel_config.data_parallel_index = 1
    assert worker_name(config, settings) == "w-dp1"


def test_dense_data_parallel_engines_are_told_apart(config: Any) -> None:
    """vLLM hides from each of them that there are others: all but the suffix of its id."""
    here = f"{socket.gethostname().lower()}-8000"
    config.kv_transfer_config.engine_id = "0123_dp1"
    assert worker_name(config, Settings(worker_id="w")) == "w-dp1"
    assert worker_name(config, Settings(http_url="http://127.0.0.1:8000")) == f"{here}-dp1"
    assert worker_name(config, Settings()) == "0123_dp1"

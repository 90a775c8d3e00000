"""The fingerprint reads each option as vLLM reads it: what is one to vLLM is one here, and what is two is two."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.model_executor.layers.attention.attention import set_default_quant_scales
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name, sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash, resolve_none_hash_seed
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, MLAAttentionSpec
from vllm.v1.request import Request

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import FingerprintMismatch
from ghostcacher_connector.engines.common.weight_digest import content_digest, model_tensors
from ghostcacher_connector.engines.vllm.identity import check_hashes, fingerprint_of
from ghostcacher_connector.identity.fingerprint import KNOWN_BLOCK_TOKENS, KNOWN_TOKENS, Fingerprint, differences
from tests.integration.connector.enginesim import BLOCK_TOKENS, SimEngine

pytestmark = pytest.mark.engine

FULL = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=2, dtype=torch.float32)
LAYOUT = "2x256/256;torch.float32[blocks 16:4 1:4 4:1]"
SEEDS = (None, "", " ", "0", "00", "7", "random", "vllm-none-hash")
ALGORITHMS = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")


@pytest.fixture
def config(model: Path) -> Any:
    return make_config(model)


def make_config(model: Path, algorithm: str = "sha256") -> Any:
    config = SimEngine.make_config("a", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    config.cache_config.prefix_caching_hash_algo = algorithm
    return config


def identity(config: Any, **settings: Any) -> Fingerprint:
    return fingerprint_of(config, FULL, LAYOUT, Settings(**settings))


def different(one: Fingerprint, other: Fingerprint) -> list[str]:
    assert (one.digest() != other.digest()) is (one != other)
    return [name for name, _, _ in differences(one.as_fields(), other.as_fields())]


def set_seed(monkeypatch: pytest.MonkeyPatch, seed: str | None) -> None:
    if seed is None:
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    else:
        monkeypatch.setenv("PYTHONHASHSEED", seed)


def test_seeds_are_told_apart_as_vllm_does(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty PYTHONHASHSEED is a seed of its own; the default, written out, is the default."""
    found: dict[str | None, tuple[str, Fingerprint]] = {}
    for seed in SEEDS:
        set_seed(monkeypatch, seed)
        found[seed] = resolve_none_hash_seed(sha256), identity(config)
    for one, other in combinations(SEEDS, 2):
        (seed, mine), (other_seed, theirs) = found[one], found[other]
        names = [name for name, _, _ in differences(mine.as_fields(), theirs.as_fields())]
        assert names == ([] if seed == other_seed else ["hash_seed", "known_hash"]), (one, other)
        assert (mine.digest() == theirs.digest()) is (seed == other_seed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", ["", "7"])
def test_known_hash_is_what_the_engine_gives_the_known_prompt(
    model: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, seed: str
) -> None:
    """The hash in the fingerprint is that which vLLM's scheduler computes for a request with these tokens."""
    set_seed(monkeypatch, seed)
    hash_function = get_hash_fn_by_name(algorithm)
    init_none_hash(hash_function)
    request = Request(
        request_id="known",
        prompt_token_ids=list(KNOWN_TOKENS),
        sampling_params=SamplingParams(),
        pooling_params=None,
        block_hasher=get_request_block_hasher(KNOWN_BLOCK_TOKENS, hash_function),
    )
    assert [block.hex() for block in request.block_hashes][-1] == identity(make_config(model, algorithm)).known_hash
    assert len(request.block_hashes) == len(KNOWN_TOKENS) // KNOWN_BLOCK_TOKENS == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_random_seed_is_private_to_the_engine(model: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """Where vLLM draws a seed in each process no two engines share, and the ranks of one still agree."""
    set_seed(monkeypatch, None)
    one, other = make_config(model, algorithm), make_config(model, algorithm)
    apart = algorithm.startswith("xxhash")
    assert (identity(one).digest() != identity(other).digest()) is apart
    assert identity(one).digest() == identity(one).digest()
    assert identity(one).known_hash.startswith("private-") is apart


def test_scheduler_that_hashes_otherwise_than_its_ranks_refuses(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint is made by a rank, and the hashes by the scheduler, in a process of its own."""
    set_seed(monkeypatch, "1")
    by_rank = identity(config).as_fields()
    check_hashes(config, by_rank)
    set_seed(monkeypatch, "")
    with pytest.raises(FingerprintMismatch, match=r"PYTHONHASHSEED"):
        check_hashes(config, by_rank)


@pytest.mark.parametrize(
    ("variable", "same", "other"),
    [
        ("VLLM_BATCH_INVARIANT", (None, "0"), "1"),
        ("VLLM_FLOAT32_MATMUL_PRECISION", (None, "highest"), "medium"),
        ("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", (None, ""), "uniform_random"),
        ("VLLM_CPU_INT4_W4A8", (None, "1"), "0"),
    ],
)
def test_variables_are_read_as_vllm_reads_them(
    config: Any, monkeypatch: pytest.MonkeyPatch, variable: str, same: tuple[str | None, ...], other: str
) -> None:
    """What is the default to vLLM keeps nobody apart, and what changes the numbers does."""
    found = set()
    for value in same:
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        found.add(identity(config))
    assert len(found) == 1
    monkeypatch.setenv(variable, other)
    assert different(found.pop(), identity(config)) == ["numerics"]


@pytest.mark.parametrize(
    ("section", "option", "value", "field"),
    [
        ("model_config", "quantization_config", {"linear": "fp8_per_tensor"}, "numerics"),
        ("model_config", "model_class_overrides", {"Qwen3ForCausalLM": "a.b:C"}, "numerics"),
        ("model_config", "code_revision", "v2", "numerics"),
        ("model_config", "_architecture", "TransformersForCausalLM", "numerics"),
        ("load_config", "load_format", "tensorizer", "weights_digest"),
        ("load_config", "load_format", "a_plugins_own", "weights_digest"),
        ("model_config", "model_weights", "s3://bucket/model", "weights_digest"),
        ("cache_config", "kv_cache_layout", "LBHNC", "layout"),
    ],
)
def test_options_that_change_numbers_or_weights_keep_apart(
    config: Any, model: Path, section: str, option: str, value: Any, field: str
) -> None:
    """Each of these leaves the model's files, its configuration and the data types as they are."""
    other = make_config(model)
    setattr(getattr(other, section), option, value)
    assert different(identity(config), identity(other)) == [field]


@pytest.mark.parametrize("load_format", ["tensorizer", "a_plugins_own"])
def test_weights_from_elsewhere_are_nobodys_until_named(model: Path, load_format: str) -> None:
    """Two engines whose weights cannot be seen share nothing, unless the operator says what they are."""
    one, other = make_config(model), make_config(model)
    one.load_config.load_format = other.load_config.load_format = load_format
    assert different(identity(one), identity(other)) == ["weights_digest"]
    assert different(identity(one, weights_id="v1"), identity(other, weights_id="v1")) == []


@pytest.mark.parametrize(("one", "other"), [("auto", "bfloat16"), ("fp8", "fp8_e4m3")])
def test_names_of_one_cache_dtype_are_one(model: Path, one: str, other: str) -> None:
    """What is one data type to vLLM keeps nobody apart."""
    found = []
    for name in (one, other):
        config = make_config(model)
        config.cache_config.cache_dtype, config.model_config.dtype = name, torch.bfloat16
        found.append(fingerprint_of(config, replace(FULL, dtype=torch.bfloat16), LAYOUT, Settings()))
    assert different(*found) == []


def test_objects_that_keep_8_bits_make_another_kind_of_cache(model: Path) -> None:
    """Rounded blocks, and what was computed after them, are told to nobody who expects exact ones; others meet."""
    config = make_config(model)
    objects = {"object_url": "file:///objects", "host_tier_gib": 1.0}
    rounded = identity(config, **objects, object_compression="fp8")
    exact = [identity(config)] + [
        identity(config, **objects, object_compression=how) for how in ("auto", "always", "never")
    ]
    assert [different(exact[0], other) for other in exact] == [[]] * len(exact)
    assert different(rounded, exact[0]) == ["kv_dtype"]
    assert different(rounded, identity(config, **objects, object_compression="fp8", object_ttl_h=1.0)) == []


def test_bytes_in_fp8_that_mean_other_numbers_are_another_cache(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of AMD's GPUs take the same byte for half as much. Nothing but the platform says so."""
    config = make_config(model)
    config.cache_config.cache_dtype = "fp8"
    scaled = replace(FULL, dtype=torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR)
    one = fingerprint_of(config, scaled, LAYOUT, Settings())
    monkeypatch.setattr(type(current_platform), "fp8_dtype", classmethod(lambda _: torch.float8_e4m3fnuz))
    assert different(one, fingerprint_of(config, scaled, LAYOUT, Settings())) == ["kv_dtype"]


@pytest.mark.parametrize("changes", [{"cache_dtype_str": "fp8_ds_mla"}, {"head_size": 320}])
def test_latent_vectors_of_another_format_or_size_are_another_cache(model: Path, changes: dict[str, Any]) -> None:
    """MLA has formats of its own, which the option for the cache's type need not name."""
    config, latent = (
        make_config(model),
        MLAAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=576, dtype=torch.float32, cache_dtype_str="auto"
        ),
    )
    plain, other = (fingerprint_of(config, spec, LAYOUT, Settings()) for spec in (latent, replace(latent, **changes)))
    assert different(plain, other) == ["kv_dtype" if "cache_dtype_str" in changes else "head_size"]
    assert plain.kv_dtype == "auto/torch.float32"


def test_scales_of_a_cache_in_fp8_are_weights() -> None:
    """A layer's scales are part of what the digest of a running model covers."""
    layer = torch.nn.Module()
    set_default_quant_scales(layer, register_buffer=True)
    before = content_digest(model_tensors(layer))
    layer._k_scale.fill_(0.5)
    assert content_digest(model_tensors(layer)) != before


def test_cache_of_another_dtype_than_the_models_is_another(model: Path) -> None:
    """Rounding to 16 bit, asked for by name, is not what a cache of the model's own type holds."""
    config, other = make_config(model), make_config(model)
    other.cache_config.cache_dtype = "bfloat16"
    half = fingerprint_of(other, replace(FULL, dtype=torch.bfloat16), LAYOUT, Settings())
    assert ("kv_dtype", "auto/torch.float32", "bfloat16/torch.bfloat16") in differences(
        identity(config).as_fields(), half.as_fields()
    )

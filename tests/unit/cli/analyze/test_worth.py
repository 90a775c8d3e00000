"""Bytes and seconds: what a token weighs, and what tiers add to each other."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_cli.analyze.stack_distance import HitCurve
from ghostcacher_cli.analyze.worth import GIB, Assumptions, bytes_per_token_of, sizes_for, tiers_worth
from ghostcacher_connector.core.errors import ConfigError

LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


def curve_of(*saved: int) -> HitCurve:
    return HitCurve(np.array(saved))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA | {"torch_dtype": "bfloat16"}, 131_072),
        (LLAMA, 131_072),
        (LLAMA | {"dtype": "float32"}, 262_144),
        (LLAMA | {"torch_dtype": "torch.float32"}, 262_144),
        (LLAMA | {"head_dim": 64}, 65_536),
        ({name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}, 524_288),
        ({"text_config": LLAMA, "dtype": "float16"}, 131_072),
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 70_272),
    ],
)
def test_bytes_of_a_token_follow_from_the_model(tmp_path: Path, config: dict[str, Any], expected: int) -> None:
    """Heads of keys and values, in the type of the weights; latent attention keeps one vector. A folder will do."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert bytes_per_token_of(tmp_path) == bytes_per_token_of(tmp_path / "config.json") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            json.dumps(LLAMA | {"num_hidden_layers": "32"}),
            "num_hidden_layers: expected a whole number from 1, got '32'",
        ),
        ("{}", "num_hidden_layers: expected a whole number from 1, got None"),
        ("[]", "expected an object, got list"),
        ("model", "expected JSON, got what is none"),
    ],
)
def test_config_that_is_none_is_refused_by_its_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        bytes_per_token_of(path)
    assert str(refused.value).startswith(f"--model-config: {path}: ")
    assert said in str(refused.value)


def test_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model-config: .*/config.json cannot be read: No such file"):
        bytes_per_token_of(tmp_path)


def test_tiers_add_what_those_above_do_not_have() -> None:
    """Each tier is paid for its own tokens: what an engine need not compute, less what loading takes."""
    given_values = Assumptions(
        bytes_per_token=GIB // 4,
        engine_gib=1,
        host_gib=2,
        prefill_tokens_per_second=2,
        load_gib_per_second=10,
        object_gib_per_second=0.4,
    )
    engine, host, objects = tiers_worth(curve_of(0, 10, 15, 30, 100), 5 * GIB, GIB, given_values)
    assert (engine.saved_tokens, engine.compute_s, engine.load_s, engine.worth_s) == (10, 5.0, 0.0, 5.0)
    assert (host.saved_tokens, host.loaded_bytes, host.load_s, host.worth_s) == (20, 5 * GIB, 0.5, 9.5)
    # 70 tokens of 1/4 GiB at 0.4 GiB/s take longer than computing them.
    assert (objects.saved_tokens, objects.compute_s, objects.load_s, objects.worth_s) == (70, 35.0, 43.75, 0.0)
    assert [each.filled_bytes for each in (engine, host, objects)] == [GIB, 2 * GIB, 5 * GIB]


def test_tier_that_everything_fits_above_is_empty() -> None:
    _, host, _ = tiers_worth(curve_of(0, 10), GIB, GIB, Assumptions(engine_gib=2, host_gib=2))
    assert (host.filled_bytes, host.saved_tokens) == (0, 0)


@given(st.integers(0, 2000), st.integers(1, 1 << 33))
def test_largest_size_is_nearly_enough_and_no_size_is_without_a_block(enough: int, block_bytes: int) -> None:
    curve = curve_of(*range(enough + 1))
    sizes = sizes_for(curve, block_bytes)
    assert curve.at(sizes[-1] // block_bytes) >= 0.995 * curve.most
    assert curve.at(sizes[-1] // 2 // block_bytes) < 0.995 * curve.most or curve.most == 0
    assert all(size >= block_bytes for size in sizes[:-1])
    assert all(larger == 2 * size for size, larger in pairwise(sizes))

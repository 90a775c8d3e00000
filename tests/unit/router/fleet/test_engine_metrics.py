"""How much a cache holds, from pages of metrics as they may be."""

from __future__ import annotations

import pytest

from ghostcacher_router.fleet.engine_metrics import LINE_BYTES_MAX, LINES_MAX, TOKENS_MAX, cache_tokens_of

NEW = 'block_size="16",kv_cache_size_tokens="10560",num_gpu_blocks="661"'
OLD = 'block_size="16",num_gpu_blocks="1322"'


def vllm(*labels: str) -> bytes:
    """Return a page with a sample of each rank."""
    lines = [f'vllm:cache_config_info{{engine="{rank}",{text}}} 1.0' for rank, text in enumerate(labels)]
    return "\n".join(["# TYPE vllm:cache_config_info gauge", *lines, "vllm:other 2.0", ""]).encode()


def sglang(*samples: tuple[str, str]) -> bytes:
    """Return a page of samples: labels and value."""
    lines = [f'sglang:max_total_num_tokens{{model_name="m",{labels}}} {value}' for labels, value in samples]
    return "\n".join(['sglang:max_total_num_tokens_swa{model_name="m"} 7.0', *lines, ""]).encode()


@pytest.mark.parametrize(
    ("page", "tokens"),
    [
        (vllm(NEW), 10_560),
        (vllm(NEW, NEW), 2 * 10_560),
        (vllm(OLD), 16 * 1322),
        (vllm(OLD, OLD), 16 * 1322),
        (vllm('kv_cache_size_tokens="None",' + OLD), 16 * 1322),
        (vllm(NEW).splitlines()[1], 10_560),
        (vllm(NEW).partition(b"\n")[2], 10_560),
        (vllm(r'path="a\"} \\",' + NEW), 10_560),
        (sglang(('tp_rank="0"', "5e+04")), 50_000),
        (sglang(('tp_rank="0"', "500.0"), ('tp_rank="1"', "499.0")), 500),
        (sglang(('dp_rank="0"', "500.0"), ('dp_rank="1"', "400.0 1764423000")), 900),
    ],
)
def test_page_of_an_engine_says_how_much_its_cache_holds(page: bytes, tokens: int) -> None:
    """By whichever metric it has; tensor-parallel ranks share their tokens, data-parallel ones do not."""
    assert cache_tokens_of(page) == tokens


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"{}",
        b"\xff\x00" * 1000,
        vllm(),
        vllm('block_size="16",num_gpu_blocks="None"'),
        vllm('block_size="-16",num_gpu_blocks="-9"'),
        vllm('kv_cache_size_tokens="inf"'),
        vllm('kv_cache_size_tokens="nan"'),
        vllm(f'kv_cache_size_tokens="{TOKENS_MAX + 1}"'),
        vllm('kv_cache_size_tokens="10560'),
        vllm(NEW).replace(b"vllm:", b"x_vllm:"),
        vllm(f'{NEW},a="{"x" * LINE_BYTES_MAX}"'),
        sglang(('tp_rank="0"', "many")),
        sglang(('tp_rank="0"', "")),
        b"vllm:cache_config_info{",
        b"sglang:max_total_num_tokens{\n" * 3,
    ],
)
def test_page_that_does_not_say_it_says_nothing(page: bytes) -> None:
    """Whatever else it holds, it is no error."""
    assert cache_tokens_of(page) is None


def test_no_more_samples_are_read_than_there_can_be_ranks() -> None:
    """An endless page costs a bounded time."""
    assert cache_tokens_of(vllm(*[NEW] * (LINES_MAX + 50))) == 10_560 * LINES_MAX

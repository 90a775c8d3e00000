"""How much a cache holds, from pages of metrics as they may be."""

from __future__ import annotations

import pytest

from ghostcacher_router.fleet.engine_metrics import (
    LINE_BYTES_MAX,
    LINES_MAX,
    TOKENS_MAX,
    adapter_use_of,
    cache_tokens_of,
)

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


def adapters(*samples: tuple[str, str, str, str]) -> bytes:
    """Return a page with a line for each set of adapters: slots, running, waiting and its time."""
    lines = [
        f'vllm:lora_requests_info{{max_lora="{slots}",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}}'
        f" {at}"
        for slots, running, waiting, at in samples
    ]
    return "\n".join(["# TYPE vllm:lora_requests_info gauge", *lines, "vllm:other 2.0", ""]).encode()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (adapters(("4", "a,b", "c", "1.7e+09")), ("abc", 4)),
        (adapters(("4", "a", "", "1.7e+09"), ("4", "", "", "1.8e+09"), ("4", "b", "", "1.6e+09")), ("", 4)),
        (adapters(("4", "", "", "1")), ("", 4)),
        (adapters(*(("1", "b", "", "1"),) * LINES_MAX, ("1", "a", "", "2")), ("a", 1)),
        (adapters(("0", "a", "", "1")), None),
        (adapters(("None", "a", "", "1")), None),
        (adapters(("1e9", "a", "", "1")), None),
        (adapters(("4", "a", "", "nan")), ("a", 4)),
        (vllm(NEW), None),
        (b"", None),
        (b"\xff\x00" * 1000, None),
    ],
)
def test_page_of_an_engine_says_which_adapters_are_in_use(page: bytes, expected: tuple[str, int] | None) -> None:
    """The latest line counts, and what is waited for is in use; nonsense is as good as nothing."""
    use = adapter_use_of(page)
    assert (use and ("".join(sorted(use.running)), use.slots)) == expected


def test_names_of_adapters_are_unescaped() -> None:
    """As Prometheus writes them."""
    page = adapters(("4", r"a\"b,c\\d,e\nf", "", "1"))
    assert adapter_use_of(page) == ({'a"b', r"c\d", "e\nf"}, 4)

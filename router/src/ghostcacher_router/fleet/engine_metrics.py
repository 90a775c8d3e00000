"""Reads from an engine's page of metrics how many tokens its KV cache holds.

    vLLM     vllm:cache_config_info{block_size="16",num_gpu_blocks="661",kv_cache_size_tokens="10576",engine="0",...} 1
    SGLang   sglang:max_total_num_tokens{model_name="m",tp_rank="0",...} 10576

vLLM always has it; older versions without `kv_cache_size_tokens`. SGLang has it when it runs with --enable-metrics. Of
data-parallel ranks behind one server it is the sum. Only these lines of a page are read, and no more than `LINES_MAX`
of up to `LINE_BYTES_MAX` each, so that no page holds up the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite

VLLM = b"vllm:cache_config_info{"
SGLANG = b"sglang:max_total_num_tokens{"

LINES_MAX = 256
"""Samples of one metric: one of each rank, and more ranks than that share no server."""
LINE_BYTES_MAX = 8192
"""vLLM's has about fifty labels, 1.3 KiB in all."""
TOKENS_MAX = 1 << 40
"""More is no number of tokens."""

_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


def cache_tokens_of(page: bytes) -> int | None:
    """Return how many tokens the cache of the engine holds whose metrics these are; None when they do not say it."""
    return _within(_vllm_tokens(page)) or _within(_sglang_tokens(page))


def _vllm_tokens(page: bytes) -> int:
    by_rank, all_ranks = 0, 0
    for labels, _ in _samples(page, VLLM):
        by_rank += _number(labels.get(b"kv_cache_size_tokens"))
        # vLLM gives this number of blocks, as that of all ranks together, to each of them.
        all_ranks = max(all_ranks, _number(labels.get(b"num_gpu_blocks")) * _number(labels.get(b"block_size")))
    return by_rank or all_ranks


def _sglang_tokens(page: bytes) -> int:
    # Tensor-parallel ranks hold parts of the same tokens, data-parallel ones tokens of their own.
    by_rank: dict[bytes, int] = {}
    for labels, value in _samples(page, SGLANG):
        rank = labels.get(b"dp_rank", b"")
        by_rank[rank] = max(by_rank.get(rank, 0), _number(value))
    return sum(by_rank.values())


def _samples(page: bytes, begin: bytes) -> Iterator[tuple[Mapping[bytes, bytes], bytes]]:
    """Yield the labels and the value of each sample of a metric. begin: its name and the brace."""
    line_begin, at = b"\n" + begin, -1
    if not page.startswith(begin):
        at = page.find(line_begin)
        if at < 0:
            return
    for _ in range(LINES_MAX):
        end = page.find(b"\n", at + 1)
        line = page[at + 1 : end if end >= 0 else len(page)]
        if len(line) <= LINE_BYTES_MAX:
            labels, _, value = line[len(begin) :].rpartition(b"}")
            yield dict(_LABEL.findall(labels)), value
        at = page.find(line_begin, end) if end >= 0 else -1
        if at < 0:
            return


def _number(text: bytes | None) -> int:
    """Return a whole number of 0 or more; 0 for anything else, such as the None of an engine that does not know it."""
    try:
        number = float((text or b"").split()[0])
    except (ValueError, IndexError):
        return 0
    return int(number) if isfinite(number) and number > 0 else 0


def _within(tokens: int) -> int | None:
    return tokens if 0 < tokens <= TOKENS_MAX else None

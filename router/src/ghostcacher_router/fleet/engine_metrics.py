"""Reads from an engine's page of metrics how many tokens its KV cache holds, and which LoRA adapters are in use.

    vLLM     vllm:cache_config_info{block_size="16",num_gpu_blocks="661",kv_cache_size_tokens="10576",engine="0",...} 1
    SGLang   sglang:max_total_num_tokens{model_name="m",tp_rank="0",...} 10576

vLLM always has it; older versions without `kv_cache_size_tokens`. SGLang has it when it runs with --enable-metrics. Of
data-parallel ranks behind one server it is the sum. Only these lines of a page are read, and no more than `LINES_MAX`
of up to `LINE_BYTES_MAX` each, so that no page holds up the event loop.

    vLLM     vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.7644e+09

There is one such line for each set of adapters that ever was in use; the latest one, whose value is its time, counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import NamedTuple

VLLM = b"vllm:cache_config_info{"
SGLANG = b"sglang:max_total_num_tokens{"
ADAPTERS = b"vllm:lora_requests_info{"

LINES_MAX = 256
"""Samples of one metric: one of each rank, and more ranks than that share no server."""
SETS_MAX = 4096
"""Samples of adapters in use. Where an engine has had more sets of them, its latest one may not be found."""
SLOTS_MAX = 1 << 16
"""More is no number of slots."""
LINE_BYTES_MAX = 8192
"""vLLM's has about fifty labels, 1.3 KiB in all."""
TOKENS_MAX = 1 << 40
"""More is no number of tokens."""

_ESCAPED = re.compile(rb"\\(.)")
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


class AdapterUse(NamedTuple):
    """The LoRA adapters in use at an engine."""

    running: frozenset[str]
    """Names of those that requests run with, or wait for."""
    slots: int
    """How many can be in use at a time."""


def adapter_use_of(page: bytes) -> AdapterUse | None:
    """Return which adapters are in use at the engine whose metrics these are; None when they do not say it."""
    latest, found = 0.0, None
    for labels, value in _samples(page, ADAPTERS, SETS_MAX):
        at, slots = _seconds(value), _number(labels.get(b"max_lora"))
        if at >= latest and 0 < slots <= SLOTS_MAX:
            latest, found = at, labels
    if found is None:
        return None
    named = b",".join([found.get(b"running_lora_adapters", b""), found.get(b"waiting_lora_adapters", b"")])
    names = _unescaped(named).decode(errors="replace").split(",")
    return AdapterUse(frozenset(name for name in names if name), _number(found.get(b"max_lora")))


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


def _samples(page: bytes, begin: bytes, lines_max: int = LINES_MAX) -> Iterator[tuple[Mapping[bytes, bytes], bytes]]:
    """Yield the labels and the value of each sample of a metric. begin: its name and the brace."""
    line_begin, at = b"\n" + begin, -1
    if not page.startswith(begin):
        at = page.find(line_begin)
        if at < 0:
            return
    for _ in range(lines_max):
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


def _seconds(text: bytes) -> float:
    """Return the value of a sample that is a time; 0 for anything else."""
    try:
        return max(0.0, float(text.split()[0]))
    except (ValueError, IndexError):
        return 0.0


def _unescaped(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: b"\n" if found[1] == b"n" else found[1], text)


def _within(tokens: int) -> int | None:
    return tokens if 0 < tokens <= TOKENS_MAX else None

"""One form for JSON that no template sees in another, and the memory of such forms."""

from __future__ import annotations

import json

from ghostcacher_router.prompt.canonical import (
    CACHED_BYTES_MAX,
    CACHED_MAX,
    NODES_MAX,
    Budget,
    CanonicalCache,
    canonical_json,
)


def test_keys_of_the_api_are_sorted_and_those_of_the_client_are_not() -> None:
    """Fields of records have no order; dictionaries within them have."""
    value = {"name": "f", "arguments": {"z": 1, "a": {"y": 2, "b": 3}}, "id": [{"d": 1, "c": 2}]}
    assert (
        canonical_json(value, Budget(100)) == b'{"arguments":{"z":1,"a":{"y":2,"b":3}},"id":[{"c":2,"d":1}],"name":"f"}'
    )


def test_breakpoints_are_left_out_except_in_the_clients_own() -> None:
    """A parameter may have any name."""
    value = {"cache_control": 1, "input": {"cache_control": 2}}
    assert canonical_json(value, Budget(100)) == b'{"input":{"cache_control":2}}'


def test_cache_forgets_the_oldest_and_stays_right() -> None:
    """It holds so many forms and no more, and a forgotten one is made again."""
    cache = CanonicalCache()
    raw = [json.dumps({"b": n, "a": 0}).encode() for n in range(2 * CACHED_MAX)]
    for _ in range(2):
        assert [cache.form(one, 7) for one in raw] == [
            canonical_json(json.loads(one), Budget(NODES_MAX)) for one in raw
        ]
    assert repr(cache) == f"CanonicalCache(forms={CACHED_MAX})"


def test_large_form_is_not_kept() -> None:
    """One client's ten megabytes of tools must not stay."""
    cache = CanonicalCache()
    raw = json.dumps("x" * CACHED_BYTES_MAX).encode()
    assert cache.form(raw, 7) == raw
    assert repr(cache) == "CanonicalCache(forms=0)"

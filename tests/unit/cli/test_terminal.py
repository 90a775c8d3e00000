"""What `ghostcacher status` and `top` show: a router's answers in, lines out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_cli.terminal.fleet import RouterUnreachable, Snapshot, decode, is_well
from ghostcacher_cli.terminal.render import fleet_lines, framed, request_rate, work_line
from ghostcacher_cli.terminal.text import bar, count, duration, fit, percent, printable, table

LOAD: dict[str, Any] = {
    "running": 3,
    "waiting": 1,
    "kv_blocks_used": 40,
    "kv_blocks_total": 100,
    "prefill_tokens_per_s": 12_345.6,
    "age_s": 0.1,
    "block_tokens": 128,
}
WORKERS: list[dict[str, Any]] = [
    {"id": "w1", "state": "ready", "in_flight": 4, "load": LOAD, "url": "http://h:1", "novel": {"field": 1}},
    {"id": "10.0.0.7:8000", "state": "down", "in_flight": 0, "load": None, "error": "connection refused"},
    {"id": "w9", "state": "not_routable", "why": "it has no http_url"},
]
STATUS: dict[str, Any] = {
    "version": "1.2",
    "uptime_s": 125.0,
    "ready": True,
    "redis_available": True,
    "replicas": 2,
    "models": ["m"],
}
STATS: dict[str, Any] = {
    "requests": {"total": 100.0, "by_status": {"200": 100.0}},
    "picks_by_worker": {"w1": 75.0, "gone": 25.0},
    "prompt_tokens": 1000.0,
    "hit_tokens": 740.0,
    "saved_ttft_ms": 12_300.0,
    "overhead_ms": {"count": 100, "p50": 0.081, "p90": 0.2},
    "ttft_ms": {"p50": 210.0, "p90": 1900.0},
}


def snapshot(at: float = 10.0, *, total: float = 100.0, uptime_s: float = 125.0, **status: Any) -> Snapshot:
    stats = STATS | {"requests": {"total": total}}
    documents = (STATUS | {"uptime_s": uptime_s} | status, stats, {"workers": WORKERS})
    return decode(*(json.dumps(document).encode() for document in documents), at=at)


def test_fleet_lines_say_once_what_redis_refuses() -> None:
    """Beside a Redis that answers; the reason why the router is not ready may have it already."""
    refused = "Redis at host:6379: this user lacks a permission (NOPERM)"
    lines = fleet_lines(snapshot(redis_error=refused))
    assert "  |  redis refuses  |  " in lines[0]
    assert refused in lines
    lines = fleet_lines(snapshot(redis_error=refused, redis_available=False, why_not_ready=f"no worker: {refused}"))
    assert "  |  no redis  |  " in lines[0]
    assert sum(refused in line for line in lines) == 1


@pytest.mark.parametrize(
    ("status", "well"),
    [
        ({}, True),
        ({"workers": {"ready": 1, "draining": 1}}, True),
        ({"redis_available": False}, True),
        ({"ready": False}, False),
        ({"workers": {"ready": 1, "down": 1}}, False),
        ({"ejected": {"w1": "its requests fail"}}, False),
        ({"gone": [WORKERS[0]]}, False),
        ({"redis_error": "Redis at h: wrong user or password"}, False),
    ],
)
def test_fleet_is_well_or_not(status: dict[str, Any], well: bool) -> None:
    """What `ghostcacher status` ends with: a router without Redis and a drained worker are as somebody wants them."""
    assert is_well(snapshot(**status).status) is well


def test_fleet_lines_show_what_waits_for_its_turn() -> None:
    """With flow control alone; who goes first stands first."""
    assert not any("turn" in line for line in fleet_lines(snapshot()))
    queue = {"requests": 0, "requests_max": 500, "bytes": 0}
    assert fleet_lines(snapshot(queue=queue))[2] == "0 of 500 requests wait for their turn"
    queue |= {"requests": 3, "by_priority": {"again": 1, "-5": 2}, "saturated": ["w0", "w1"]}
    assert fleet_lines(snapshot(queue=queue))[2] == (
        "3 of 500 requests wait for their turn  |  by priority: again: 1, -5: 2  |  saturated: w0, w1"
    )


def test_fleet_lines_show_each_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full it is, with what, and what it was good for; nothing where there is none."""
    assert not any("tier" in line for line in fleet_lines(snapshot()))
    types = {"tools": 0, "sys": 300, "doc": 200}
    tier = {"tier": "host", "blocks": 500, "blocks_max": 2000, "blocks_by_type": types, "loaded_blocks": 1234}
    tier |= {"evicted_blocks": 7, "refused_blocks": 1, "copies_under_way": 2}
    monkeypatch.setitem(WORKERS[0], "load", LOAD | {"tiers": [tier]})
    (line,) = (line for line in fleet_lines(snapshot()) if "tier" in line)
    assert line == (
        "w1: host tier ##........  25% of 2000 blocks (sys 300, doc 200), 1234 loaded, 7 evicted, 2 copies under way"
    )


def test_fleet_lines_show_each_worker() -> None:
    """Every worker has its state, load, KV use, measured rate and share of the requests."""
    lines = fleet_lines(snapshot())
    assert lines[0] == "ghostcacher 1.2  |  up 2 min 5 s  |  redis answers  |  2 routers  |  m"
    several = fleet_lines(snapshot(processes=4))[0]
    assert several == "ghostcacher 1.2  |  up 2 min 5 s  |  4 processes  |  redis answers  |  2 routers  |  m"
    row = next(line for line in lines if line.startswith("w1")).split()
    assert row == ["w1", "ready", "3", "1", "####......", "40%", "12.3k", "4", "75%"]


def test_fleet_lines_unknown_is_no_zero() -> None:
    """A worker that tells nothing of its load shows dashes, and what is wrong with it stands below."""
    lines = fleet_lines(snapshot())
    row = next(line for line in lines if line.startswith("10.0.0.7:8000"))
    assert row.split() == ["10.0.0.7:8000", "down", "-", "-", "-", "-", "0", "0%"]
    assert lines[-2:] == ["10.0.0.7:8000: connection refused", "w9: it has no http_url"]


def test_fleet_lines_name_who_is_gone() -> None:
    """A worker that died does not vanish: its row says gone, and below stands since when and what was wrong."""
    gone = {"id": "w5", "state": "gone", "state_s": 125.0, "error": "refused", "why": "its lease ended; refused"}
    workers = {"workers": [*WORKERS, gone]}
    now = decode(json.dumps(STATUS).encode(), b"{}", json.dumps(workers).encode(), at=1.0)
    lines = fleet_lines(now)
    assert next(line for line in lines if line.startswith("w5")).split()[:2] == ["w5", "gone"]
    assert lines[-1] == "w5: gone for 2 min 5 s: its lease ended; refused"


def test_fleet_lines_name_who_is_ejected() -> None:
    """A worker that is ready, but gets nothing, has the reason below."""
    workers = {"workers": [WORKERS[0] | {"ejected": "ejected for 0.8 s more: its requests fail"}]}
    now = decode(json.dumps(STATUS).encode(), b"{}", json.dumps(workers).encode(), at=1.0)
    assert fleet_lines(now)[-1] == "w1: ejected for 0.8 s more: its requests fail"


def test_fleet_lines_old_load_marked() -> None:
    """A load that is not fresh says how old it is."""
    workers = {"workers": [WORKERS[0] | {"load": LOAD | {"age_s": 31.0}}]}
    now = decode(json.dumps(STATUS).encode(), b"{}", json.dumps(workers).encode(), at=1.0)
    assert "ready (31 s old)" in "\n".join(fleet_lines(now))


def test_fleet_lines_not_ready_says_why() -> None:
    """A router that can serve nothing says so."""
    assert "no worker is known" in fleet_lines(snapshot(ready=False, why_not_ready="no worker is known"))


def test_work_line_has_rates_from_two_looks() -> None:
    """Rates come from two looks; the rest is since the start."""
    line = work_line(snapshot(10.0, total=120.0), snapshot(8.0, total=100.0))
    assert line == (
        "10 requests/s  |  120 in all  |  hit ratio 74%  |  saved TTFT 12 s  |  overhead p50 0.08 ms  |  "
        "TTFT p50 210 ms p90 1,900 ms"
    )


def test_work_line_nothing_yet() -> None:
    """Before the first request nothing is made up."""
    now = decode(b'{"version": "1", "uptime_s": 1, "ready": false}', b"{}", b'{"workers": []}', at=1.0)
    assert work_line(now).startswith("- requests/s  |  0 in all  |  hit ratio -")


@pytest.mark.parametrize(
    ("now", "before", "rate"),
    [
        (snapshot(10.0, total=8.0), snapshot(8.0, total=4.0), 2.0),
        (snapshot(10.0), None, None),
        (snapshot(10.0), snapshot(10.0), None),
        (snapshot(10.0, total=1.0, uptime_s=2.0), snapshot(8.0, total=100.0), None),
    ],
)
def test_request_rate_only_within_one_life(now: Snapshot, before: Snapshot | None, rate: float | None) -> None:
    """A router that was restarted between two looks has no rate, and never a negative one."""
    assert request_rate(now, before) == rate


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"workers": 1}', b'{"workers": [{"id": 1}]}'])
def test_decode_other_answer_refused(answer: bytes) -> None:
    """What no router would answer is an error with a reason, not a traceback."""
    with pytest.raises(RouterUnreachable, match="expected a router's answer"):
        decode(json.dumps(STATUS).encode(), b"{}", answer, at=0.0)


def test_fleet_lines_control_characters_removed() -> None:
    """What a router tells cannot move the cursor."""
    workers = {"workers": [{"id": "w\x1b[2Jx\x07", "state": "ready"}]}
    now = decode(json.dumps(STATUS).encode(), b"{}", json.dumps(workers).encode(), at=0.0)
    assert not any("\x1b" in line or "\x07" in line for line in fleet_lines(now))


def test_framed_fits_the_screen() -> None:
    """Whatever the size of the screen, the lines fit it, and what is missing is said."""
    lines = [f"line {number} " + "x" * 20 for number in range(10)]
    assert framed(lines, width=9, height=5, footer="f") == [
        "line 0 x~",
        "line 1 x~",
        "line 2 x~",
        "... 7 mo~",
        "f",
    ]
    for height in range(1, 15):
        assert len(framed(lines, width=5, height=height, footer="f")) <= height


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (7.51, "7.5"),
        (812, "812"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (4e6, "4.0M"),
        (5e9, "5.0G"),
    ],
)
def test_count_about_four_digits(value: float | None, text: str) -> None:
    """Numbers are short, and none is made up."""
    assert count(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_duration_as_people_say_it(seconds: float, text: str) -> None:
    """A duration has two units at most."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("part", "text"), [(0, "...."), (0.5, "##.."), (1, "####"), (7.0, "####"), (-1.0, "....")])
def test_bar_never_leaves_its_width(part: float, text: str) -> None:
    """A bar is as wide as it should be, whatever part it is given."""
    assert bar(part, 4) == text


def test_small_helpers() -> None:
    """Parts are per cent, cuts are marked, and tables are aligned."""
    assert (percent(None), percent(0.456)) == ("-", "46%")
    assert (fit("abc", 3), fit("abcd", 3), fit("abcd", 0)) == ("abc", "ab~", "~")
    assert printable("a\tb\x1b[31mc\r\n") == "a\tbc??"
    assert table(["a", "b", "n"], [["x", "y", "1"]], left=2) == "a  b  n\n-  -  -\nx  y  1"

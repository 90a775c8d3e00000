"""What of a prompt SGLang is told that peers have, when the pages that it asks for are not those that were expected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import Location, PrefixHit, Tier
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.matching import PATIENCE_S, Matcher
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import PENDING, LookupAnswer

COUNT = 8
CHAIN = [bytes([number]) * 32 for number in range(COUNT)]
KEYS = [block.hex() for block in CHAIN]
OTHER = "ee" * 32


def matcher(pages_max: int = 100, tracer: Tracer | None = None) -> Matcher:
    lookups: Any = None  # every request here has been answered
    return Matcher(
        Settings(pull="always"),
        lookups,
        Forecaster(1000.0),
        Recorder(),
        page_tokens=4,
        page_bytes=1024,
        pages_max=pages_max,
        holds=lambda _: False,
        tracer=tracer,
    )


def request() -> Tracked:
    """Return a request of which a peer has all pages."""
    hit = PrefixHit("peer", b"i" * 16, COUNT, tuple(Location(Tier.DEVICE, slot, 1) for slot in range(COUNT)))
    req: Any = SimpleNamespace(rid="r")
    return Tracked(req, CHAIN, pullable=COUNT, phase=Phase.PLANNED, hits=[hit])


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        (KEYS, COUNT),
        (KEYS[3:], COUNT - 3),
        (KEYS[:5], 5),
        ([*KEYS[:2], OTHER, *KEYS[3:]], 2),
        ([OTHER, *KEYS[1:]], 0),
    ],
)
def test_only_the_pages_of_the_prompt_are_named(keys: list[str], count: int) -> None:
    """As many as were asked for and are the prompt's own, from the first on; another request may have the same id."""
    assert matcher().match(request(), keys) == count


def test_prompt_that_was_held_on_arrival_and_is_no_longer_is_looked_up() -> None:
    """Its pages were reused while it waited for its turn."""
    asked: list[str] = []
    found = matcher()
    hits = request().hits
    lookups: Any = SimpleNamespace(
        start=lambda rid, *_, **__: asked.append(rid), poll=lambda *_, **__: LookupAnswer(hits, 0.001, None)
    )
    found._lookups = lookups
    held = request()
    held.phase, held.hits = Phase.HELD, []
    assert found.match(held, KEYS) == COUNT
    assert asked == ["r"]


def test_answer_that_has_not_come_is_waited_for_a_moment_in_each_pass_and_beside_it() -> None:
    """Several requests wait together; at the deadline nothing is pulled."""
    waits: list[float] = []
    now = [0.0]

    def poll(_rid: str, *, wait_s: float) -> Any:
        waits.append(wait_s)
        now[0] += wait_s
        return PENDING

    found = matcher()
    found._clock = lambda: now[0]
    found._lookups = SimpleNamespace(poll=poll, forget=lambda _: None)  # type: ignore[assignment]
    asked = [request(), request()]
    for one in asked:
        one.phase, one.hits = Phase.ASKED, []
    assert [found.match(one, KEYS) for one in asked] == [None, None]
    assert waits == [PATIENCE_S, 0.0]
    found.begin_pass()
    assert found.match(asked[0], KEYS) is None
    assert waits[2:] == [PATIENCE_S]
    now[0] += 1.0
    found.begin_pass()
    assert found.match(asked[0], KEYS) == 0
    assert asked[0].phase is Phase.SETTLED


def test_one_pull_is_bounded() -> None:
    """What is longer is pulled in part, and the rest computed."""
    assert matcher(pages_max=3).match(request(), KEYS) == 3

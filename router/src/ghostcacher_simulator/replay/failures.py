"""Failures that a run is to meet, as a script: when, of what, for how long.

death:w1@20       w1 dies 20 s after the first arrival; death:w1@20+10: and lives anew 10 s later, with an empty cache
redis@20+10       Redis is away for 10 s
flush@20          Redis loses all that it holds
link:w1@20+10/8   for 10 s w1 has an eighth of its link, to pull and to be pulled from
drain:w1@20       w1 gets no requests from then on, and ends those it has; drain:w1@20+10: for 10 s
restart@20        each of the project's routers, one after the other, gives way to a new one that knows nothing
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.replay.policies import GhostCacher
from ghostcacher_simulator.replay.replay import Replay

RENEW_S = 2.0
"""From Redis' return, or its loss of everything, until workers renew their leases and enter what was lost, twice."""
RESTART_S = 2.0
"""Between the restarts of two routers."""
EXPECTED = "death:WORKER@S, death:WORKER@S+S, redis@S+S, flush@S, link:WORKER@S+S/N, drain:WORKER@S(+S) or restart@S"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_FORM = re.compile(rf"(death|redis|flush|link|drain|restart)(?::(w[0-9]+))?@{_NUMBER}(?:\+{_NUMBER})?(?:/{_NUMBER})?")

_HAS: Mapping[str, tuple[bool, bool | None, bool]] = {
    "death": (True, None, False),
    "redis": (False, True, False),
    "flush": (False, False, False),
    "link": (True, True, True),
    "drain": (True, None, False),
    "restart": (False, False, False),
}
"""Of each kind: whether it has a worker, a duration (None: perhaps), a part of a link."""


class Failure(NamedTuple):
    """One failure. Its text is what `parse_failure` reads."""

    kind: str
    """What happens: one of the kinds above."""
    at_s: float
    """When, from the first arrival."""
    worker: str | None = None
    """The worker that it happens to; None for all."""
    lasts_s: float | None = None
    """How long it lasts; None where it has no end."""
    divisor: float | None = None
    """Of a link: of how many parts of it one is left."""

    def __str__(self) -> str:
        worker = f":{self.worker}" if self.worker else ""
        lasts = f"+{self.lasts_s:g}" if self.lasts_s is not None else ""
        return f"{self.kind}{worker}@{self.at_s:g}{lasts}{f'/{self.divisor:g}' if self.divisor else ''}"


def parse_failure(text: str) -> Failure:
    """Return the failure that a text describes. Raises ConfigError."""
    found = _FORM.fullmatch(text)
    if found is not None:
        kind, worker, at_s, lasts_s, divisor = found.groups()
        wanted = _HAS[kind]
        given = (worker is not None, lasts_s is not None, divisor is not None)
        fits = all(want is None or want == is_given for want, is_given in zip(wanted, given, strict=True))
        if fits and (divisor is None or float(divisor) >= 1):
            lasts, parts = (None if each is None else float(each) for each in (lasts_s, divisor))
            return Failure(kind, float(at_s), worker, lasts, parts)
    raise ConfigError(f"failure: expected {EXPECTED}, got {text!r}")


def check_workers(failures: Sequence[Failure], workers: int) -> None:
    """Raise ConfigError for a failure of a worker that a fleet of so many does not have."""
    for failure in failures:
        if failure.worker is not None and int(failure.worker[1:]) >= workers:
            raise ConfigError(f"failure {failure}: expected a worker from w0 to w{workers - 1}, got {failure.worker}")


async def meet(replay: Replay, failures: Sequence[Failure]) -> None:
    """Have failures happen in a run. Those that overlap act together: Redis is back when the last one has ended."""
    script = _Script(replay)
    await replay.begun.wait()
    for at_s, act in sorted(_timeline(script, failures), key=lambda each: each[0]):
        await asyncio.sleep(max(0.0, replay.began_at + at_s - replay.clock()))
        act()


def _timeline(script: _Script, failures: Sequence[Failure]) -> Iterator[tuple[float, Callable[[], None]]]:
    """Yield what is to be done, and when, from the first arrival."""
    for number, failure in enumerate(failures):
        begin, end = script.acts(failure, number)
        ends_s = failure.at_s + (failure.lasts_s or 0.0)
        yield failure.at_s, begin
        if failure.lasts_s is not None:
            yield ends_s, end
        if failure.kind in {"redis", "flush"}:
            # The second time they find those that came back after them.
            yield from ((ends_s + times * RENEW_S, script.renew) for times in (1, 2))


class _Script:
    """What failures do to one run."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._away: set[int] = set()
        """The failures for which Redis is away now."""

    def acts(self, failure: Failure, number: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return what begins a failure and what ends it."""
        name, parts = failure.worker or "", failure.divisor or 1.0
        acts: Mapping[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "death": (partial(self._kill, name), partial(self._revive, name)),
            "redis": (partial(self._lose, number), partial(self._find, number)),
            "flush": (self._flush, self._flush),
            "link": (partial(self._narrow, name, parts), partial(self._narrow, name, 1 / parts)),
            "drain": (partial(self._replay.drain, name, True), partial(self._replay.drain, name, False)),
            "restart": (self._restart, self._restart),
        }
        return acts[failure.kind]

    def renew(self) -> None:
        """Have workers renew their leases, and enter what was lost."""
        for worker in self._replay.workers:
            if not worker.dead:
                worker.meet()

    def _lose(self, number: int) -> None:
        self._away.add(number)
        self._reach()

    def _find(self, number: int) -> None:
        self._away.discard(number)
        self._reach()

    def _reach(self) -> None:
        if self._replay.stores is not None:
            self._replay.stores.reach(reachable=not self._away)
        self._replay.observe(f"Redis is {'away' if self._away else 'back'}")

    def _flush(self) -> None:
        if self._replay.stores is not None:
            self._replay.stores.index.flush()
            self._replay.stores.coordination.flush()
        self._replay.observe("Redis has lost everything")

    def _restart(self) -> None:
        policy, loop = self._replay.policy, asyncio.get_running_loop()
        for number in range(len(policy.routers) if isinstance(policy, GhostCacher) else 0):
            loop.call_later(number * RESTART_S, self._replay.restart, number)

    def _kill(self, name: str) -> None:
        if not self._replay.worker(name).dead:
            self._replay.kill(name)

    def _revive(self, name: str) -> None:
        if self._replay.worker(name).dead:
            self._replay.revive(name)

    def _narrow(self, name: str, parts: float) -> None:
        worker = self._replay.worker(name)
        worker.link_share = min(1.0, worker.link_share / parts)

"""The resolver: who waits, who gets which answer, and how many threads there are."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from ghostcacher_router.dns.resolver import FAILED_S, SLOW_S, SLOW_THREADS_MAX, THREADS_MAX, Resolver
from tests.support.index_parts import FakeClock
from tests.support.mock_engine import until

REFRESH_S = 5.0


class Lookups:
    """Look-ups in real threads. answers: by name; errors are raised. hanging: whose look-up waits for `go_on`."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[str] | OSError] = {}
        self.hanging: Callable[[str], bool] = lambda _: False
        self.go_on = threading.Event()
        self.begun: Counter[str] = Counter()

    def __call__(self, host: str) -> Sequence[str]:
        self.begun[host] += 1
        if self.hanging(host):
            self.go_on.wait(60)
        answer = self.answers.get(host, ("10.0.0.1",))
        if isinstance(answer, OSError):
            raise answer
        return answer


class Subject:
    def __init__(self) -> None:
        self.clock, self.lookups, self.counted = FakeClock(), Lookups(), list[str]()
        self.resolver = Resolver(refresh_s=REFRESH_S, lookup=self.lookups, clock=self.clock, count=self.counted.append)

    async def look_up_again(self, host: str, after_s: float = REFRESH_S) -> None:
        """Ask for a name whose answer is old, and return when it was looked up."""
        before = len(self.counted)
        self.clock.advance(after_s)
        await self.resolver.addresses(host)
        await until(lambda: len(self.counted) > before)


def run(main: Callable[[Subject], Coroutine[Any, Any, None]]) -> None:
    subject = Subject()
    try:
        asyncio.run(asyncio.wait_for(main(subject), 280))
    finally:
        subject.lookups.go_on.set()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo"])
def test_address_is_not_looked_up(host: str) -> None:
    """Nor remembered."""

    async def main(subject: Subject) -> None:
        assert await subject.resolver.addresses(host) == (host,)
        assert not subject.lookups.begun

    run(main)


def test_answer_is_kept_for_its_lifetime_and_renewed_behind_the_back() -> None:
    """An old answer is given out at once, while the new one is fetched."""

    async def main(subject: Subject) -> None:
        resolver, lookups = subject.resolver, subject.lookups
        assert await resolver.addresses("a") == ("10.0.0.1",)
        lookups.answers["a"] = ("10.0.0.2",)
        subject.clock.advance(REFRESH_S - 0.1)
        assert await resolver.addresses("a") == ("10.0.0.1",)
        assert lookups.begun == {"a": 1}
        await subject.look_up_again("a", 0.2)
        assert await resolver.addresses("a") == ("10.0.0.2",)
        assert subject.counted == ["ok", "ok"]

    run(main)


@pytest.mark.parametrize("how", ["fails", "hangs", "is empty"])
def test_last_good_answer_outlives_its_name(how: str) -> None:
    """Whatever the DNS says afterwards, and however long it says nothing."""

    async def main(subject: Subject) -> None:
        lookups = subject.lookups
        assert await subject.resolver.addresses("a") == ("10.0.0.1",)
        lookups.answers["a"] = OSError("gone") if how == "fails" else ()
        lookups.hanging = lambda _: how == "hangs"
        for _ in range(20):
            subject.clock.advance(3600.0)
            assert await subject.resolver.addresses("a") == ("10.0.0.1",)
            await asyncio.sleep(0.001)
        if how == "hangs":
            assert lookups.begun["a"] == 2
        else:
            await until(lambda: subject.counted.count("kept") > 1)

    run(main)


def test_name_that_was_never_resolved_is_an_error_for_a_while() -> None:
    """It is not looked up for each who asks; later it may be there."""

    async def main(subject: Subject) -> None:
        subject.lookups.answers["a"] = OSError("no such name")
        for _ in range(3):
            with pytest.raises(OSError, match="the name a cannot be resolved: no such name"):
                await subject.resolver.addresses("a")
        assert subject.lookups.begun == {"a": 1}
        subject.clock.advance(FAILED_S)
        subject.lookups.answers["a"] = ("10.0.0.9",)
        assert await subject.resolver.addresses("a") == ("10.0.0.9",)
        assert subject.counted == ["failed", "ok"]

    run(main)


def test_everybody_who_waits_for_a_name_shares_one_look_up() -> None:
    """Those who give up meanwhile take it from nobody."""

    async def main(subject: Subject) -> None:
        subject.lookups.hanging = lambda _: True
        waiting = [asyncio.ensure_future(subject.resolver.addresses("a")) for _ in range(50)]
        await until(lambda: subject.lookups.begun["a"] == 1)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.sleep(0)
        subject.lookups.go_on.set()
        assert await asyncio.gather(*waiting[1::2]) == [("10.0.0.1",)] * 25
        assert subject.lookups.begun == {"a": 1}

    run(main)


def test_hundreds_of_names_that_hang_leave_threads_to_others() -> None:
    """Threads are bounded; once names are known to be slow, others find a thread at once."""

    async def main(subject: Subject) -> None:
        resolver, lookups = subject.resolver, subject.lookups
        lookups.hanging = lambda host: host.startswith("slow")
        slow = [f"slow{number}" for number in range(300)]
        tasks = [asyncio.ensure_future(resolver.addresses(host)) for host in slow]
        await until(lambda: sum(lookups.begun.values()) == THREADS_MAX)
        assert sum(thread.name == "gc-dns" for thread in threading.enumerate()) == THREADS_MAX
        subject.clock.advance(SLOW_S + 1.0)
        lookups.go_on.set()
        await asyncio.gather(*tasks)
        # The others were looked up when the clock stood still: have them seen to be slow, too.
        lookups.go_on.clear()
        lookups.begun.clear()
        subject.clock.advance(REFRESH_S)
        for host in slow[:THREADS_MAX]:
            await resolver.addresses(host)
        await until(lambda: sum(lookups.begun.values()) == SLOW_THREADS_MAX)
        assert await resolver.addresses("good") == ("10.0.0.1",)
        assert sum(lookups.begun.values()) == SLOW_THREADS_MAX + 1

    run(main)


def test_names_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that nobody asked for lately are forgotten."""
    names_max = 64  # Each is looked up by a thread.
    monkeypatch.setattr("ghostcacher_router.dns.resolver.NAMES_MAX", names_max)

    async def main(subject: Subject) -> None:
        for number in range(names_max + 3):
            await subject.resolver.addresses(f"n{number}")
        assert len(subject.resolver._names) == names_max
        await subject.resolver.addresses("n0")
        assert subject.lookups.begun["n0"] == 2

    run(main)


def test_doubted_address_is_looked_up_again_but_not_all_the_time() -> None:
    """Where no connection could be made the name may lead elsewhere by now."""

    async def main(subject: Subject) -> None:
        await subject.resolver.addresses("a")
        subject.resolver.doubt("a")
        assert subject.lookups.begun["a"] == 1
        subject.clock.advance(FAILED_S + 0.1)
        subject.lookups.answers["a"] = ("10.0.0.2",)
        subject.resolver.doubt("a")
        await until(lambda: subject.counted == ["ok", "ok"])
        assert await subject.resolver.addresses("a") == ("10.0.0.2",)
        subject.resolver.doubt("never asked for")

    run(main)


def test_address_that_took_a_connection_is_tried_first() -> None:
    """As long as the name has it."""

    async def main(subject: Subject) -> None:
        resolver = subject.resolver
        subject.lookups.answers["a"] = ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3")
        assert await resolver.addresses("a") == ("10.0.0.1", "10.0.0.2", "10.0.0.3")
        resolver.prefer("a", "10.0.0.3")
        await subject.look_up_again("a")
        assert await resolver.addresses("a") == ("10.0.0.3", "10.0.0.1", "10.0.0.2")
        subject.lookups.answers["a"] = ("10.0.0.1", "10.0.0.2")
        await subject.look_up_again("a")
        assert await resolver.addresses("a") == ("10.0.0.1", "10.0.0.2")

    run(main)

"""The life of a server under `ghostcacher up`: a table of events, with a clock that only moves when told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostcacher_cli.up.plan import Command
from ghostcacher_cli.up.supervisor import Member, Rules, State, Supervisor, World

RULES = Rules(ready_timeout_s=60, grace_s=5, restarts_max=3, backoff_s=1, backoff_max_s=3, stable_s=100)
COMMAND = Command(("serve",), {}, "http://127.0.0.1:1")


class FakeProcess:
    def __init__(self, name: str, journal: list[str]) -> None:
        self.name = name
        self.status: int | None = None
        self.log = ""
        self.stubborn = False
        self._journal = journal

    def poll(self) -> int | None:
        return self.status

    def request_stop(self) -> None:
        self._journal.append(f"ask {self.name}")
        if not self.stubborn:
            self.status = 0

    def stop(self) -> None:
        self._journal.append(f"end {self.name}")

    def kill(self) -> None:
        self._journal.append(f"kill {self.name}")
        self.status = 137

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


class FakeWorld:
    """Time, processes and health as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.healthy = False
        self.startable = True
        self.journal: list[str] = []
        self.started: list[FakeProcess] = []
        self.world = World(self._start, lambda _: self.healthy, lambda: self.now, self._sleep)

    @property
    def last(self) -> FakeProcess:
        return self.started[-1]

    def member(self, name: str = "w1") -> Member:
        return Member(name, lambda: COMMAND._replace(argv=(name,)), Path("/tmp/none"), RULES, self.world)

    def ready(self, member: Member) -> None:
        self.healthy = True
        member.step()
        assert member.state is State.READY
        self.healthy = False

    def _start(self, command: Command, log: Path, grace_s: float) -> FakeProcess:
        if not self.startable:
            raise OSError("no such program")
        assert grace_s == RULES.grace_s
        self.journal.append(f"start {command.argv[0]} {log.name}")
        self.started.append(FakeProcess(command.argv[0], self.journal))
        return self.last

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


def test_member_answers_is_ready(world: FakeWorld) -> None:
    """A server is ready when it answers, and that is said once, with the time that it took."""
    member = world.member()
    assert member.begin() == member.step() == []
    world.now += 23
    world.healthy = True
    assert member.step() == ["w1: ready after 23 s"]
    assert member.step() == []


def test_member_never_ready_given_up(world: FakeWorld) -> None:
    """A server that ends before it ever was ready is not tried again: its log says what a person must mend."""
    member = world.member()
    member.begin()
    world.last.status, world.last.log = 1, "ValueError: no such model"
    (news,) = member.step()
    assert news.startswith("w1 ended with status 1.\nValueError: no such model\n")
    assert member.state is State.GIVEN_UP
    world.now += 1000
    assert member.step() == []
    assert len(world.started) == 1


def test_member_cannot_be_started_given_up(world: FakeWorld) -> None:
    """A command that does not exist is told as such."""
    world.startable = False
    member = world.member()
    (news,) = member.begin()
    assert "could not be started: no such program" in news
    assert member.state is State.GIVEN_UP


def test_member_port_taken_tried_on_another(world: FakeWorld) -> None:
    """A port that was taken meanwhile is no reason to give up, a bounded number of times."""
    member = world.member()
    member.begin()
    for _ in range(RULES.port_attempts - 1):
        world.last.status, world.last.log = 1, "OSError: [Errno 98] address already in use"
        assert member.step() == []
        assert member.state is State.STARTING
    world.last.status, world.last.log = 1, "OSError: [Errno 98] address already in use"
    assert "another process took the port" in member.step()[0]
    assert member.state is State.GIVEN_UP
    assert world.journal == ["start w1 w1.log", "start w1 w1.2.log", "start w1 w1.3.log"]


def test_member_too_slow_killed(world: FakeWorld) -> None:
    """A server that does not get ready in time is killed."""
    member = world.member()
    member.begin()
    world.now += RULES.ready_timeout_s + 1
    (news,) = member.step()
    assert "was not ready after 61 s" in news
    assert world.journal[-1] == "kill w1"


def test_member_ends_later_restarted_with_backoff(world: FakeWorld) -> None:
    """A server that was ready is started again, later each time, and given up after so many times."""
    member = world.member()
    member.begin()
    for wait_s in (1, 2, 3):
        world.ready(member)
        world.last.status = 139
        cause, again = member.step()
        assert "ended with status 139 (128 + 11: SIGSEGV)" in cause
        assert again == f"w1: restart {member.restarts} of 3 in {wait_s} s"
        started = len(world.started)
        world.now += wait_s - 0.1
        member.step()
        assert len(world.started) == started
        world.now += 0.2
        member.step()
        assert len(world.started) == started + 1
    world.ready(member)
    world.last.status = 139
    assert "restarted 3 times, and will not be again" in member.step()[0]
    assert member.state is State.GIVEN_UP


def test_member_fails_to_come_back_counts_as_restart(world: FakeWorld) -> None:
    """A restarted server that ends while loading uses up a restart as well: there is no endless loop."""
    member = world.member()
    member.begin()
    world.ready(member)
    for _ in range(RULES.restarts_max + 1):
        world.last.status = 1
        member.step()
        world.now += 10
        member.step()
    assert member.state is State.GIVEN_UP
    assert len(world.started) == 1 + RULES.restarts_max


def test_member_stable_again_forgives(world: FakeWorld) -> None:
    """A server that was ready for long has all its restarts again."""
    member = world.member()
    member.begin()
    for _ in range(10):
        world.ready(member)
        world.now += RULES.stable_s
        world.last.status = 1
        assert member.step()[1] == "w1: restart 1 of 3 in 1 s"
        world.now += 2
        member.step()


def fleet(world: FakeWorld) -> Supervisor:
    supervisor = Supervisor(world.member("router"), [world.member("w1"), world.member("w2")], world.world)
    supervisor.begin()
    return supervisor


def all_ready(world: FakeWorld, supervisor: Supervisor) -> None:
    world.healthy = True
    supervisor.step()
    assert supervisor.ready


def test_supervisor_stops_router_first(world: FakeWorld) -> None:
    """No engine is asked to end before the router is gone; engines end side by side."""
    supervisor = fleet(world)
    world.journal.clear()
    supervisor.stop(lambda: False)
    assert world.journal == ["ask router", "end router", "ask w1", "ask w2", "end w1", "end w2"]


def test_supervisor_hurry_kills(world: FakeWorld) -> None:
    """Whoever does not wait for a slow router kills it, and the engines."""
    supervisor = fleet(world)
    world.started[0].stubborn = True
    world.journal.clear()
    started = world.now
    supervisor.stop(lambda: world.now > started + 1)
    assert world.journal == ["ask router", "kill router", "ask w1", "ask w2", "kill w1", "kill w2"]


def test_supervisor_stopped_is_not_restarted(world: FakeWorld) -> None:
    """What was stopped on purpose stays stopped."""
    supervisor = fleet(world)
    all_ready(world, supervisor)
    supervisor.stop(lambda: False)
    world.now += 1000
    assert supervisor.step() == []
    assert len(world.started) == 3


def test_supervisor_first_start_fails_hopeless(world: FakeWorld) -> None:
    """An engine that cannot start stops all: the others were told the same."""
    supervisor = fleet(world)
    assert supervisor.hopeless is None
    world.started[2].status = 1
    supervisor.step()
    assert supervisor.hopeless == "w2 could not be started"


def test_supervisor_loses_one_engine_goes_on(world: FakeWorld) -> None:
    """A fleet goes on without an engine that keeps crashing, until none is left."""
    supervisor = fleet(world)
    all_ready(world, supervisor)
    for engine, expected in ((0, None), (1, "no engine is left")):
        while supervisor.engines[engine].state is not State.GIVEN_UP:
            for process in world.started:
                if process.name == f"w{engine + 1}":
                    process.status = 1
            supervisor.step()
            world.now += 5
        assert supervisor.hopeless == expected


def test_supervisor_router_lost_hopeless(world: FakeWorld) -> None:
    """Without a router there is no way in."""
    supervisor = fleet(world)
    world.started[0].status = 1
    supervisor.step()
    assert supervisor.hopeless == "the router cannot run"

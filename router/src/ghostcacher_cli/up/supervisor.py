"""Servers that are started, watched, started again when they end, and stopped in order.

One member's life:

    starting --answers--> ready --ends--> waiting (backoff) --> starting ...
        |                                                 (restarts_max times without `stable_s` of peace)
        +-- ends, or takes too long, and was never ready --> given up: what is wrong then is for a person to mend

Single-threaded: the owner calls `step` a few times a second and shows the news that it returns. Nothing waits, but
`stop`, which is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from ghostcacher_cli.up.diagnosis import exit_text, explain
from ghostcacher_cli.up.plan import Command

LOG_LINES = 400
STOP_POLL_S = 0.05


class State(Enum):
    """STARTING: not yet answering. WAITING: ended, to be started again. GIVEN_UP: will not be."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


class Rules(NamedTuple):
    """How a server is looked after."""

    ready_timeout_s: float
    """Time to begin to answer, in s."""
    grace_s: float
    """Time to end by itself, in s."""
    restarts_max: int = 5
    """Restarts of a server that was ready once."""
    backoff_s: float = 1.0
    """Pause before the first restart, in s; doubled with each."""
    backoff_max_s: float = 30.0
    """The longest such pause, in s."""
    stable_s: float = 300.0
    """After being ready for so long, in s, earlier ends are forgotten."""
    port_attempts: int = 3
    """Tries with another port, where one was taken meanwhile."""
    ready_word: str = "ready"
    """What to say of it once it answers: a router answers before it is of any use."""


class Process(Protocol):
    """A running command: GuardedProcess."""

    def poll(self) -> int | None: ...

    def request_stop(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def log_tail(self, lines: int = 30) -> str: ...


class World(NamedTuple):
    """What members need of the world. start: a command, with its log and its grace in s; may raise OSError."""

    start: Callable[[Command, Path, float], Process]
    answers: Callable[[str], bool]
    clock: Callable[[], float]
    sleep: Callable[[float], None]


class Member:
    """One server. `command` is asked for anew at each start, and may choose another port each time.

    Each start has a log of its own in `folder`: NAME.log, then NAME.2.log and so on; what is there is replaced.
    """

    def __init__(self, name: str, command: Callable[[], Command], folder: Path, rules: Rules, world: World) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.state = State.STOPPED
        self.since = world.clock()
        self.restarts = 0
        self.was_ready = False
        self.url = ""
        self._command = command
        self._folder = folder
        self._rules = rules
        self._world = world
        self._process: Process | None = None
        self._retry_at = 0.0
        self._attempts = 0

    def __repr__(self) -> str:
        return f"Member({self.name}, {self.state.value}, restarts={self.restarts}, {self._process!r})"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def begin(self) -> list[str]:
        """Start it and return at once. Returns news, as `step` does."""
        self._attempts += 1
        if self._attempts > 1:
            self.log = self._folder / f"{self.name}.{self._attempts}.log"
        self.log.unlink(missing_ok=True)
        command = self._command()
        self.url = command.url
        self._enter(State.STARTING)
        try:
            self._process = self._world.start(command, self.log, self._rules.grace_s)
        except OSError as exc:
            self._process = None
            return self._ended(f"could not be started: {exc}")
        return []

    def step(self) -> list[str]:
        """Look at it, and do what is due. Returns what people should know, a message each."""
        elapsed = self._world.clock() - self.since
        if self.state is State.WAITING and self._world.clock() >= self._retry_at:
            return self.begin()
        if self.state in (State.STARTING, State.READY) and self._process is not None:
            status = self._process.poll()
            if status is not None:
                if self.state is State.READY and elapsed >= self._rules.stable_s:
                    self.restarts = 0
                return self._ended(exit_text(status))
            if self.state is State.STARTING:
                return self._check_start(elapsed)
        return []

    def request_stop(self) -> None:
        """Begin to end it, and return at once; it is not started again."""
        self._enter(State.STOPPED)
        if self._process is not None:
            self._process.request_stop()

    def end(self, *, at_once: bool) -> None:
        """Return when it and all below it is gone, within twice its grace; at_once: kill it."""
        self._enter(State.STOPPED)
        if self._process is not None:
            self._process.kill() if at_once else self._process.stop()

    def _check_start(self, elapsed: float) -> list[str]:
        if self._world.answers(f"{self.url}/health"):
            again = f", again after {self.restarts} of {self._rules.restarts_max} restarts" if self.was_ready else ""
            self.was_ready = True
            self._enter(State.READY)
            return [f"{self.name}: {self._rules.ready_word} after {elapsed:.0f} s{again}"]
        if elapsed > self._rules.ready_timeout_s:
            assert self._process is not None
            self._process.kill()
            return self._ended(f"was not ready after {elapsed:.0f} s")
        return []

    def _ended(self, what: str) -> list[str]:
        """Decide what follows the end of the process, and return the news."""
        tail = self._process.log_tail(LOG_LINES) if self._process is not None else ""
        cause = explain(f"{self.name} {what}.", tail, self.log)
        if not self.was_ready and "address already in use" in tail and self._attempts < self._rules.port_attempts:
            return self.begin()
        if not self.was_ready or self.restarts >= self._rules.restarts_max:
            self._enter(State.GIVEN_UP)
            after = f" It was restarted {self.restarts} times, and will not be again." if self.was_ready else ""
            return [cause + after]
        wait_s = min(self._rules.backoff_s * 2**self.restarts, self._rules.backoff_max_s)
        self.restarts += 1
        self._enter(State.WAITING)
        self._retry_at = self._world.clock() + wait_s
        again = f"{self.name}: restart {self.restarts} of {self._rules.restarts_max} in {wait_s:.0f} s"
        return [cause, again]

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = self._world.clock()


class Supervisor:
    """A router and its engines: started and watched side by side, stopped router first."""

    def __init__(self, router: Member, engines: Sequence[Member], world: World) -> None:
        self.router = router
        self.engines = list(engines)
        self._world = world

    @property
    def members(self) -> list[Member]:
        return [self.router, *self.engines]

    def begin(self) -> list[str]:
        """Start all of them and return at once: the router answers while engines are loading."""
        return [news for member in self.members for news in member.begin()]

    def step(self) -> list[str]:
        """Look at each of them; returns the news."""
        return [news for member in self.members for news in member.step()]

    @property
    def ready(self) -> bool:
        return all(member.state is State.READY for member in self.members)

    @property
    def hopeless(self) -> str | None:
        """Say why it makes no sense to go on; None while it does.

        An engine that never was ready stops all, since the others were told the same; a later loss only its own.
        """
        if self.router.state is State.GIVEN_UP:
            return "the router cannot run"
        lost = [engine for engine in self.engines if engine.state is State.GIVEN_UP]
        if any(not engine.was_ready for engine in lost):
            return f"{', '.join(engine.name for engine in lost)} could not be started"
        return "no engine is left" if len(lost) == len(self.engines) else None

    def stop(self, hurry: Callable[[], bool]) -> None:
        """End the router, then the engines, side by side; returns when all of them are gone, within their graces.

        hurry: asked again and again; once it is true everything is killed.
        """
        for group in ([self.router], self.engines):
            for member in group:
                member.request_stop()
            while any(member.alive for member in group) and not hurry():
                self._world.sleep(STOP_POLL_S)
            for member in group:
                member.end(at_once=hurry())

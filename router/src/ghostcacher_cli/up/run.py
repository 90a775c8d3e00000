"""`ghostcacher up`: from the command line to servers that run, and to their end.

    Redis -> router and engines, side by side -> all ready -> ... -> Ctrl-C -> router, then engines -> Redis

Nothing that is started here outlives this process: every server has a guard (guard.py) that notices its death.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from ghostcacher_cli.terminal.fleet import RouterClient, RouterUnreachable, Snapshot
from ghostcacher_cli.terminal.live import Live
from ghostcacher_cli.terminal.render import request_rate, work_line
from ghostcacher_cli.up.arguments import UpOptions, parse, suspicions
from ghostcacher_cli.up.diagnosis import answers
from ghostcacher_cli.up.display import ROUTER, Standing, readiness, ready_lines, standing_lines, start_lines, summary
from ghostcacher_cli.up.follow import LogFollower, phase_of, tail
from ghostcacher_cli.up.machine import NotEnoughMemory, free_port
from ghostcacher_cli.up.plan import Command, EnginePlan, base_url, plan_engines, plan_router, require_port
from ghostcacher_cli.up.redis import FleetRedis
from ghostcacher_cli.up.supervisor import Member, Rules, State, Supervisor, World
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_router.config import variable_of

TICK_S = 0.2
SHOW_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 15.0
"""Between lines on progress where they cannot be overwritten."""
WORK_INTERVAL_S = 60.0
"""Between such lines on what the router does, while it does something."""
PROBE_TIMEOUT_S = 0.5
ENGINE_GRACE_S = 15.0
ROUTER_READY_TIMEOUT_S = 60.0
ROUTER_MARGIN_S = 5.0
"""Beyond its drain, the time that the router has to end by itself."""
EXIT_FAILED = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `ghostcacher up` and return its exit code: 0 when a person ended it. Raises GhostCacherError."""
    options = parse(words, environ)
    if options.port == 0:
        options = options._replace(port=free_port())
    require_port(options)
    live = Live(sys.stdout)
    live.note(*suspicions(options))
    try:
        router = RouterClient(base_url(options), environ.get(variable_of("admin_token")), timeout_s=PROBE_TIMEOUT_S)
        with FleetRedis(options.redis_url) as redis:
            plans = plan_engines(options, redis.url, environ)
            command, drain_s = plan_router(options, redis.url, environ)
            with _log_folder(options.log_dir) as (folder, keep):
                supervisor = _supervisor(options, plans, command, drain_s, folder)
                live.note(*start_lines(options, redis.where, folder), *([redis.warning] if redis.warning else []))
                with counted_signals() as signals:
                    failure = Watch(options, plans, supervisor, router, live).run(signals, redis.step)
                if failure is not None or any(member.restarts for member in supervisor.members):
                    keep()
                    live.note(f"Logs are kept in {folder}")
            return 0 if failure is None else EXIT_FAILED
    except NotEnoughMemory as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_FAILED


class Watch:
    """Looks after running servers and shows how they are."""

    def __init__(
        self,
        options: UpOptions,
        plans: Sequence[EnginePlan],
        supervisor: Supervisor,
        router: RouterClient,
        live: Live,
    ) -> None:
        self._options = options
        self._router = router
        self._seen: Snapshot | None = None
        self._places = {plan.name: plan.place.label for plan in plans}
        self._supervisor = supervisor
        self._live = live
        self._followers = {member.name: LogFollower(member.name) for member in supervisor.members}
        self._shown_at = self._noted_at = time.monotonic()
        self._was_ready = False

    def run(self, signals: Callable[[], int], each_tick: Callable[[], None]) -> str | None:
        """Start all, watch them until a signal comes or nothing can be hoped for, and stop all.

        signals: how many came so far; from the second one on everything is killed. Returns why it failed, else None.
        """
        try:
            news = self._supervisor.begin()
            while True:
                self._follow()
                self._live.note(*news)
                reason = self._supervisor.hopeless
                if reason is not None or signals():
                    break
                each_tick()
                self._show()
                time.sleep(TICK_S)
                news = self._supervisor.step()
        finally:
            self._live.clear()
            self._live.note("Stopping: the router finishes what it has, then the engines. Ctrl-C stops at once.")
            self._supervisor.stop(lambda: signals() > 1)
            self._follow()
        self._live.note("All is stopped." if reason is None else f"All is stopped, since {reason}.")
        return reason

    def _follow(self) -> None:
        if self._options.logs:
            for member in self._supervisor.members:
                self._live.note(*self._followers[member.name].new_lines(member.log))

    def _show(self) -> None:
        now = time.monotonic()
        if not self._was_ready and self._supervisor.ready and self._router.is_ready():
            self._was_ready = True
            self._live.note(*ready_lines(self._options))
        elif now - self._shown_at < SHOW_INTERVAL_S:
            return
        self._shown_at = now
        if self._live.terminal:
            self._live.show(self._region(now))
        elif now - self._noted_at >= (WORK_INTERVAL_S if self._was_ready else PLAIN_INTERVAL_S):
            self._noted_at = now
            self._live.note(
                *(self._news_of_work(now) if self._was_ready else [summary(self._standings()), *self._hint()])
            )

    def _region(self, now: float) -> list[str]:
        if not self._was_ready:
            return [*standing_lines(self._standings()), *self._hint()]
        before, self._seen = self._seen, self._look(now)
        work = [] if self._seen is None else [work_line(self._seen, before)]
        return [readiness(self._standings()[1:]), *work]

    def _hint(self) -> list[str]:
        """Say what is missing when the engines alone would be ready. Called until all is."""
        if not self._supervisor.ready:
            return []
        return [f"The router has not found its engines yet; see {self._supervisor.router.log}"]

    def _news_of_work(self, now: float) -> list[str]:
        before, self._seen = self._seen, self._look(now)
        busy = self._seen is not None and bool(request_rate(self._seen, before))
        return [work_line(self._seen, before)] if self._seen is not None and busy else []

    def _look(self, now: float) -> Snapshot | None:
        """Return what the router tells; None when it does not, such as without the admin token that it wants."""
        try:
            return self._router.snapshot(now)
        except RouterUnreachable:
            return None

    def _standings(self) -> list[Standing]:
        return [self._standing(member) for member in self._supervisor.members]

    def _standing(self, member: Member) -> Standing:
        phase = phase_of(tail(member.log)) if member.state is State.STARTING else ""
        elapsed = time.monotonic() - member.since
        return Standing(member.name, self._places.get(member.name, ""), member.state, member.url, elapsed, phase)


def _supervisor(
    options: UpOptions, plans: Sequence[EnginePlan], router_command: Command, drain_s: float, folder: Path
) -> Supervisor:
    world = World(
        lambda each, log, grace_s: GuardedProcess(each.argv, log=log, env=each.env, grace_s=grace_s),
        partial(answers, timeout_s=PROBE_TIMEOUT_S),
        time.monotonic,
        time.sleep,
    )
    router_rules = Rules(
        ready_timeout_s=ROUTER_READY_TIMEOUT_S, grace_s=drain_s + ROUTER_MARGIN_S, ready_word="listens"
    )
    engine_rules = Rules(ready_timeout_s=options.ready_timeout_s, grace_s=ENGINE_GRACE_S)
    router = Member(ROUTER, lambda: router_command, folder, router_rules, world)
    engines = [Member(plan.name, partial(_on_free_port, plan), folder, engine_rules, world) for plan in plans]
    return Supervisor(router, engines, world)


def _on_free_port(plan: EnginePlan) -> Command:
    return plan.command(free_port())


@contextmanager
def counted_signals() -> Iterator[Callable[[], int]]:
    """Count SIGINT, SIGTERM and SIGHUP instead of dying of them: what was started is to be stopped in order."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield lambda: len(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log_folder(chosen: Path | None) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give a folder for logs, and a function that says that a temporary one is to be kept; after an error it is."""
    if chosen is not None:
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"--log-dir: {chosen} cannot be made: {exc.strerror}") from None
        yield chosen, lambda: None
        return
    folder = Path(tempfile.mkdtemp(prefix="ghostcacher-logs-"))
    kept: list[bool] = []
    yield folder, lambda: kept.append(True)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)

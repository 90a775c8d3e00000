"""The workers of a simulated fleet as one router knows them: a FleetPort of the router's ports.py.

Which of them are usable decides the router's own code (`Outliers`). What is simplified: a worker that is dead is known
to be down as soon as a request or a probe has failed at it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import Outliers, usable
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Outcome, WorkerState
from ghostcacher_simulator.replay.workers import MODEL, SimulatedWorker


class FleetView:
    """Implements FleetPort."""

    models_may_be_old = False

    def __init__(self, workers: Sequence[SimulatedWorker], clock: Callable[[], float]) -> None:
        self._workers = {worker.name: worker.worker for worker in workers}
        self._down = {worker.name for worker in workers if worker.dead}
        self._when_down: list[Callable[[str], None]] = []
        self._when_reported: Callable[[Sequence[Worker]], None] = lambda _: None
        self._clock = clock
        self._outliers = Outliers(FleetOptions(), clock, count=lambda *_: None, changed=self._changed)
        self._serving: list[Worker] | None = None
        self.when_changed: Callable[[], None] = lambda: None
        """Told when workers come, go, or have reported their load."""

    @property
    def workers(self) -> Mapping[str, Worker]:
        return self._workers

    def serving(self, model: str | None) -> Sequence[Worker]:  # noqa: ARG002 - there is one model
        if self._outliers.due <= self._clock():
            self._outliers.settle()
        if self._serving is None:
            up = [
                worker
                for name, worker in self._workers.items()
                if name not in self._down and worker.state is WorkerState.READY
            ]
            self._serving = usable(up, self._outliers.ejected)
        return self._serving

    def models(self) -> Sequence[str]:
        return [MODEL]

    def base_of(self, model: str | None) -> None: ...

    def limits(self) -> Mapping[str, int]:
        return self._outliers.limits()

    async def refresh_models(self) -> None: ...

    def models_changed(self) -> None: ...

    def lost(self, name: str, outcome: Outcome) -> None:  # noqa: ARG002 - only dead workers lose requests here
        self.probe_failed(name)

    def probe_failed(self, name: str) -> None:
        """Note that a worker does not answer any more."""
        if name in self._down:
            return
        self._down.add(name)
        self._outliers.forget(name)
        self._changed()
        for tell in self._when_down:
            tell(name)

    def came_back(self, worker: SimulatedWorker) -> None:
        """Note that a worker lives anew."""
        self.probe_failed(worker.name)
        self._workers[worker.name] = worker.worker
        self._down.discard(worker.name)
        self._changed()

    def drained(self, name: str) -> None:
        """Note that a worker is to get no requests, or is again."""
        if name not in self._down:
            self._outliers.forget(name)
        self._changed()

    def doubts(self, name: str) -> bool:
        return self._outliers.doubts(name)

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:
        if name not in self._down:
            self._outliers.failed(name, kind, why, sure=sure)

    def answered(self, name: str) -> None:
        self._outliers.answered(name)

    def when_down(self, tell: Callable[[str], None]) -> None:
        self._when_down.append(tell)

    def when_reported(self, tell: Callable[[Sequence[Worker]], None]) -> None:
        self._when_reported = tell

    def reported(self) -> None:
        """Note that workers have reported their load."""
        self._when_reported(list(self._workers.values()))
        self.when_changed()

    def _changed(self) -> None:
        self._serving = None
        self.when_changed()

"""Who belongs to the fleet: workers are taken in, watched by a task each, and let go.

    records in force --+
    static URLs -------+--members_of--> Worker and its Watch --> GoneWorkers, HungWorkers

One server that has both a record and a static URL is one worker, and the record wins. Data-parallel ranks behind one
server are workers of their own at one address. Another incarnation under the same name, or the same one at another
address, is another Worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from ghostcacher_connector.core.types import PdRole, WorkerRecord
from ghostcacher_router.fleet.drains import Drains
from ghostcacher_router.fleet.forever import forever
from ghostcacher_router.fleet.hung_workers import HungWorkers
from ghostcacher_router.fleet.membership.endpoints import same_server
from ghostcacher_router.fleet.membership.gone import GoneWorkers
from ghostcacher_router.fleet.membership.members import Member, Unroutable, members_of
from ghostcacher_router.fleet.watch import Watch, WatchDependencies
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint

logger = logging.getLogger(__name__)


class Roster:
    """The workers of one fleet. On the event loop only.

    workers: by name; a view that changes with the fleet. watches: of the same workers, by name. unroutable: workers
    that have a lease, but cannot be sent requests, and why, by name. gone: those that have left lately.
    """

    def __init__(
        self,
        static: Sequence[Endpoint],
        watched: WatchDependencies,
        drains: Drains,
        hung: HungWorkers,
        *,
        left: Callable[[Worker, bool], None],
        roles: Mapping[Endpoint, PdRole] = MappingProxyType({}),
    ) -> None:
        """static: the URLs of workers that are known from the beginning. watched: of each worker's watch.

        roles: of engines that do not say what they do, by `same_server`.
        left: called with each worker that has left, and whether it did for good: no other incarnation takes over.
        """
        self._static, self._watched, self._drains, self._hung, self._left = tuple(static), watched, drains, hung, left
        self._roles = roles
        self._workers: dict[str, Worker] = {}
        self.workers: Mapping[str, Worker] = MappingProxyType(self._workers)
        self.watches: dict[str, Watch] = {}
        self.unroutable: Mapping[str, Unroutable] = {}
        self.gone = GoneWorkers(watched.options.gone_ttl_s, watched.clock)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reconciled: list[WorkerRecord] | None = None

    def __repr__(self) -> str:
        return f"Roster(workers={sorted(self._workers)}, unroutable={sorted(self.unroutable)})"

    def in_order(self) -> list[Worker]:
        """Return the workers in order of name."""
        return [self._workers[name] for name in sorted(self._workers)]

    def reconcile(self, records: list[WorkerRecord]) -> None:
        """Take in and let go of workers, until they are those of these records and of the static URLs."""
        # Called twice a second: thousands of workers that are as they were cost the loop next to nothing.
        if records == self._reconciled:
            return
        self._reconciled = records
        members, unroutable = members_of(records, self._static)
        for name, trouble in unroutable.items():
            if self.unroutable.get(name) != trouble:
                logger.warning("worker %s cannot be sent requests: %s", name, trouble.why)
        self.unroutable = unroutable
        before = dict(self._workers)
        self._let_go(before.values(), members)
        for member in members.values():
            if member.name in self._workers:
                self._workers[member.name].renew(member.record)
            else:
                self._add(member, before)
        places = [(member.endpoint, member.data_parallel_rank) for member in members.values()]
        self.gone.forget(members.keys() | unroutable.keys(), places)
        if self._workers != before:
            self._drains.follow(worker.drain_id for worker in self._workers.values())
            self._watched.changed()

    def follow(self, static: Sequence[Endpoint], roles: Mapping[Endpoint, PdRole]) -> None:
        """Have these URLs be known from now on, in place of those before. roles: as above."""
        self._static, self._roles = tuple(static), roles
        records, self._reconciled = self._reconciled or [], None
        self.reconcile(records)
        told = [worker.tell_role(roles.get(same_server(worker.endpoint))) for worker in self._workers.values()]
        if any(told):
            self._watched.changed()

    async def stop(self) -> None:
        """Watch nobody any more. Idempotent."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _let_go(self, workers: Iterable[Worker], members: Mapping[str, Member]) -> None:
        for worker in workers:
            member = members.get(worker.name)
            if member is None or not member.is_same(worker):
                if member is None or member.endpoint != worker.endpoint:
                    self._hung.look_after(worker, self._watched)
                self._remove(worker, for_good=member is None)

    def _remove(self, worker: Worker, *, for_good: bool) -> None:
        del self._workers[worker.name], self.watches[worker.name]
        self._tasks.pop(worker.name).cancel()
        if for_good:
            self.gone.add(worker)
        self._left(worker, for_good)
        logger.info("worker %s: %s", worker.name, "gone" if for_good else "a new incarnation takes over")

    def _add(self, member: Member, before: Mapping[str, Worker]) -> None:
        role = self._roles.get(same_server(member.endpoint))
        worker = Worker(member.name, member.endpoint, member.record, self._watched.clock(), role)
        by_url = next((other for other in before.values() if member.takes_over(other)), None)
        if by_url is not None:
            worker.inherit(by_url)
            if by_url.draining:
                self._drains.want(worker.drain_id, True)
        watch = Watch(worker, self._watched)
        self._workers[member.name], self.watches[member.name] = worker, watch
        watch.drain(self._drains.hold(worker.drain_id))
        self._tasks[member.name] = forever(watch.run, self._watched.options.backoff_max_s)
        logger.info("worker %s: %s at %s", worker.name, worker.state.value, worker.endpoint.url)

"""READs that are given up, or fail in part: their slots are quarantined until nothing can land in them any more."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.core.types import MissReason, WorkerRecord
from ghostcacher_connector.transfer.base import PullOutcome
from ghostcacher_connector.transfer.jobs import PullJob, PullSource
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
from tests.support.emulated_reads import BIG, nixl, pull, wait_until
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory
from tests.support.owner_client import OwnerProcess


class Library:
    """NIXL's own object of a transport's present reading agent: while it is held, that agent cannot be destroyed."""

    def __init__(self, transport: NixlTransport) -> None:
        current = transport._readers._current
        assert current is not None
        self._agent = current.reader.agent
        self._held = self._agent._agent.agent

    def progress(self) -> None:
        """Let UCX do what it has to do for READs that nobody asks after any more."""
        self._held.getNotifs({}, [])

    def fail(self) -> None:
        """From now on each READ is said to have failed, as NIXL does when one of several rails reports an error."""
        self._agent.fails_whole = False
        self._agent._agent = FailingRail(self._agent._agent)

    def let_go(self) -> None:
        self._held = None


class FailingRail:
    """NIXL's interface, over which READs are posted, and of which each look at one raises an error."""

    def __init__(self, nixl: object) -> None:
        self._nixl = nixl

    def __getattr__(self, name: str) -> object:
        return getattr(self._nixl, name)

    def check_xfer_state(self, _handle: object) -> str:
        raise RuntimeError("NIXL_ERR_REMOTE_DISCONNECT")


@pytest.mark.parametrize("fault", ["overdue", "failed"])
def test_slots_stay_quarantined_until_the_reading_agent_is_gone(emulated: dict[str, object], fault: str) -> None:
    """A READ that is not over after the grace, or fails in part, lands as long as its agent lives, and then never.

    Its job's result comes no sooner; the only pulling thread serves another peer meanwhile.
    """
    memory = KvMemory(64, 4, 64 << 10)
    options = {"memory": BIG, "transport": emulated, "progress": True}
    slots, healthy = np.arange(32, dtype=np.int64), np.arange(32, 64, dtype=np.int64)
    with OwnerProcess(options) as owner, OwnerProcess(options) as other:
        transport = nixl(memory, overdue_grace_s=0.3, **emulated)
        for process in (owner, other):
            process.call("overwrite", range(64), [0] * 64)
            wait_until(lambda process=process: pull(transport, process.endpoint, slots).outcome is PullOutcome.DONE)
        puller = Puller([transport], memory.rank, namespace="n", share=Share.of(0, 1, 1), pull_threads=1)
        puller.update_peers([record_of("owner", owner), record_of("other", other)])
        # Each is probed when it is met; a probe of a stopped owner, or over a failing rail, would spoil what follows.
        wait_until(lambda: [link.connected for link in puller.links().values()] == [True, True])
        memory.clear()
        library = Library(transport)
        if fault == "failed":
            library.fail()
        owner.stop()
        seconds = 2.0 if fault == "overdue" else 60.0
        puller.submit(job("stuck", "owner", owner, slots, seconds))
        wait_until(lambda: puller.quarantined_count == 1)
        assert transport.overdue_count == (1 if fault == "overdue" else 0)
        assert transport.quarantined_count == 1
        puller.submit(job("healthy", "other", other, healthy, 60.0))
        wait_until(lambda: memory.holds(healthy, healthy, np.zeros(32, dtype=np.uint64)).all())
        owner.resume()
        wait_until(lambda: library.progress() or memory.rows[0][slots].any())
        ended = {result.job_id: result for result in puller.poll(wait_s=20.0)}
        assert ended.keys() == {"healthy"}, "something landed in slots that were given back"
        library.let_go()
        wait_until(lambda: puller.quarantined_count == 0)
        assert transport.quarantined_count == 0
        (stuck,) = puller.poll()
        assert (stuck.job_id, stuck.outcome) == ("stuck", PullOutcome.FAILED)
        assert stuck.reason is (MissReason.TIMEOUT if fault == "overdue" else MissReason.TRANSFER_FAILED)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        puller.close()


def test_read_of_a_destroyed_agent_never_lands(emulated: dict[str, object]) -> None:
    """The owner goes on after the quarantine has ended: not one byte of what it was asked for arrives."""
    memory = KvMemory(64, 4, 64 << 10)
    slots, few = np.arange(64, dtype=np.int64), np.arange(1, dtype=np.int64)
    with OwnerProcess({"memory": BIG, "transport": emulated, "progress": True}) as owner:
        transport = nixl(memory, overdue_grace_s=0.3, **emulated)
        owner.call("overwrite", slots, [0] * 64)
        wait_until(lambda: pull(transport, owner.endpoint, slots).outcome is PullOutcome.DONE)
        memory.clear()
        owner.stop()
        result = pull(transport, owner.endpoint, slots, seconds=2.0)
        assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.TIMEOUT)
        assert result.over is not None
        assert result.over.wait(60)
        owner.resume()
        wait_until(lambda: pull(transport, owner.endpoint, few).outcome is PullOutcome.DONE)
        assert not any(rows[1:].any() for rows in memory.rows)
        assert owner.alive()
        transport.close()


def test_peers_that_hang_do_not_use_up_the_bounce_buffers(emulated: dict[str, object]) -> None:
    """Probes of several stopped peers are given up; a peer that answers is pulled from all the same."""
    memory = KvMemory()
    with contextlib.ExitStack() as stack:
        options = {"transport": emulated, "progress": True}
        *stuck, healthy = [stack.enter_context(OwnerProcess(options)) for _ in range(4)]
        transport = nixl(memory, threads=1, **emulated)
        for process in (*stuck, healthy):
            wait_until(lambda process=process: transport.reaches(process.endpoint))
        for process in stuck:
            process.stop()
            with pytest.raises(TransferError):
                transport.probe(process.endpoint, np.arange(2, dtype=np.int64), timeout_s=0.3)
        slots = np.arange(8, dtype=np.int64)
        wait_until(lambda: pull(transport, healthy.endpoint, slots).outcome is PullOutcome.DONE)
        wait_until(lambda: transport.quarantined_count < 2)
        transport.close()


def record_of(worker: str, process: OwnerProcess) -> WorkerRecord:
    return rank_record(worker, process.endpoint, "n")


def job(name: str, worker: str, process: OwnerProcess, slots: np.ndarray, seconds: float) -> PullJob:
    """Return a job that pulls slots of generation 0 into the same places."""
    generations = np.zeros(len(slots), dtype=np.uint64)
    source = PullSource(worker, process.endpoint.incarnation, slots, generations)
    return PullJob(name, slots, (source,), time.monotonic() + seconds)

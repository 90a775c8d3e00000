"""What must hold at each step of a run, whatever fails: no request lost, no wrong block, everything bounded.

at each step     requests: each that came has ended once, or is under way; none waits for longer than `WAIT_S_MAX`
                 caches: no more than fits; each block lies where it is said to, under its generation
                 routers: their own invariants; no more in flight than has come; with flow control no more waiting than
                 may, nor for longer
at each pull     what was read and believed is the block that was wanted
at each ending   the tokens of a prompt are all accounted for; no request fails or finds no worker while one lives
                 that has not refused it
at the end       nothing is in flight or waits any more, no slot is referenced; the index, where Redis is there, says of
                 no block that a living worker has it which it has not, and forgets none that was withdrawn
"""

from __future__ import annotations

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_router.flow.flow_control import AGAIN, FlowControl
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_simulator.replay.policies import GhostCacher
from ghostcacher_simulator.replay.replay import ATTEMPTS_MAX, FLOW_ENDINGS, REPORTS, Ending, Replay, Served
from ghostcacher_simulator.replay.workers import LEASE_S, Pulled, SimulatedWorker

WAIT_S_MAX = 3_600.0
"""What a fleet has not served in an hour, with all its queues, it never will: nothing in a run takes that long."""
INSTANT_S = 1e-6
"""What times that are alike differ by."""


class InvariantBroken(AssertionError):
    """Something does not hold. The message says what, when and after which step."""


class Invariants:
    """Watches one run."""

    def __init__(self, replay: Replay) -> None:
        """Watch a run that has not begun."""
        self._replay = replay
        self._judged = 0
        self.steps = 0
        """How often all of it was checked."""
        self._rests = False
        self._noted: list[object] = []
        policy = replay.policy
        flow = policy.flow if isinstance(policy, GhostCacher) else None
        self._waits_s_max = 0.0 if flow is None else flow.flow_queue_timeout_s
        """For a turn in a router."""
        replay.observe = self.check
        replay.on_pulled = self._pulled

    def note(self, error: object) -> None:
        """Note an error that nobody has taken: the next check fails."""
        self._noted.append(error)

    def check(self, step: str) -> None:
        """Check what must hold always. Raises InvariantBroken."""
        self.steps += 1
        # Between two reports of a fleet without requests nothing changes: once is enough.
        rests = step == REPORTS and not self._replay.outstanding
        rested, self._rests = self._rests, rests
        try:
            assert not self._noted, f"an error that nobody has taken: {self._noted[0]!r}"
            if rests and rested:
                return
            self._check_requests()
            for worker in self._replay.workers:
                _check_caches(worker)
            if self._replay.stores is not None and self._replay.stores.objects is not None:
                self._replay.stores.objects.check_invariants()
            self._check_routers()
        except AssertionError as exc:
            raise self._broken(str(exc), step) from exc

    def check_end(self) -> None:
        """Check what must hold once all requests have ended and time has passed. Raises InvariantBroken."""
        try:
            assert not self._noted, f"an error that nobody has taken: {self._noted[0]!r}"
            assert not self._replay.outstanding, f"under way: {sorted(self._replay.outstanding)}"
            for worker in self._replay.workers:
                assert not worker.pool.referenced, f"{worker.name}: {worker.pool!r}"
                assert not worker.requests, f"{worker.name}: {worker.requests} requests"
            self._check_routers()
            self._check_routers_at_rest()
            self._check_index()
        except AssertionError as exc:
            raise self._broken(str(exc), "the end") from exc

    def _broken(self, what: str, step: str) -> InvariantBroken:
        at_s = self._replay.clock() - self._replay.began_at
        return InvariantBroken(f"at {at_s:.3f} s, after {step!r}: {what.splitlines()[0]}")

    def _check_requests(self) -> None:
        replay = self._replay
        served, under_way = len(replay.served), len(replay.outstanding)
        assert served + under_way == replay.come, f"{replay.come} came, {served} ended, {under_way} are under way"
        for request in replay.outstanding.values():
            waited_s = replay.clock() - replay.began_at - request.arrival_s
            assert waited_s < WAIT_S_MAX, f"{request.request_id} has waited for {waited_s:.0f} s"
        for each in replay.served[self._judged :]:
            _check_served(each, self._waits_s_max)
        self._judged = served

    def _check_routers(self) -> None:
        policy, under_way = self._replay.policy, len(self._replay.outstanding)
        if not isinstance(policy, GhostCacher):
            return
        for router in (*policy.routers, *policy.leaving):
            state = router.routing.state
            state.queues.check_invariants()
            state.locks.check_invariants()
            in_flight = state.queues.in_flight_total
            assert in_flight <= under_way, f"router: expected at most {under_way} in flight, got {in_flight}"
            if router.routing.flow is not None and policy.flow is not None:
                _check_queue(router.routing.flow, policy.flow, under_way)

    def _check_routers_at_rest(self) -> None:
        policy = self._replay.policy
        if isinstance(policy, GhostCacher):
            assert not policy.leaving, f"{len(policy.leaving)} routers were to end and have not"
        for router in policy.routers if isinstance(policy, GhostCacher) else ():
            state = router.routing.state
            assert not state.queues.in_flight_total, f"router: {state.queues!r}"
            flow = router.routing.flow
            assert flow is None or not (len(flow.queue) or flow.placing), f"router: {flow!r}"
            assert not len(state.locks), f"router: {state.locks!r}"

    def _check_index(self) -> None:
        stores = self._replay.stores
        if stores is None or not stores.index.reachable:
            return
        living = {
            worker.connector.ref: worker for worker in self._replay.workers if worker.connector and not worker.dead
        }
        known = [ref_of(record) for record in stores.index.workers() if ref_of(record) in living]
        for request in self._replay.load.requests:
            for hit in stores.index.lookup(known, request.prompt.blocks, locations_for=len(known)):
                worker = self._replay.worker(hit.worker)
                for block, at in zip(request.prompt.blocks, hit.locations, strict=False):
                    found = (worker.content(at), worker.generation(at))
                    assert found == (block, at.generation), f"index: {hit.worker} has no {block.hex()[:8]} at {at}"
        for ref, worker in living.items():
            assert worker.connector is not None
            entered = worker.connector.published
            for block, entry in entered.items():
                found = (worker.content(entry.location), worker.generation(entry.location))
                assert found == (block, entry.location.generation), (
                    f"{worker.name} has never withdrawn {block.hex()[:8]}"
                )
            held = sum(stores.index.renew(worker.connector.record, lease_ttl_s=LEASE_S).counts)
            assert held == len(entered), f"index: {held} entries of {ref.worker}, expected {len(entered)}"

    def _pulled(self, pulled: Pulled) -> None:
        if pulled.peer.dead:
            raise self._broken(f"{pulled.peer.name}: expected no read of a dead worker to count", "a pull")
        for block, at in zip(pulled.blocks, pulled.locations, strict=True):
            content = pulled.peer.content(at)
            if content != block:
                got = content.hex()[:8] if content else None
                what = f"{pulled.peer.name}, {at}: expected block {block.hex()[:8]}, got {got}"
                raise self._broken(what, "a pull")


def _check_caches(worker: SimulatedWorker) -> None:
    worker.pool.check_invariants()
    if worker.host is not None:
        worker.host.check_invariants()


def _check_queue(flow: FlowControl, settings: FlowSettings, under_way: int) -> None:
    queue = flow.queue
    queue.check_invariants()
    waiting = queue.by_band()
    # Those that have had their turn once are beyond the bounds.
    again = waiting.get(AGAIN, 0)
    most = settings.flow_queue_max
    assert len(queue) - again <= most, f"router: expected at most {most} to wait, got {len(queue) - again}"
    size = settings.flow_queue_bytes_max
    assert again or queue.size <= size, f"router: expected at most {size} bytes to wait, got {queue.size}"
    assert len(queue) + flow.placing <= under_way, f"router: expected at most {under_way} to wait, got {flow!r}"


def _check_served(served: Served, waits_s_max: float) -> None:
    request, name = served.request, f"{served.request.request_id} {served.ending.value}"
    brought = (served.loaded_tokens, served.pulled_tokens, served.stored_tokens)
    parts = (served.local_tokens, *brought, served.computed_tokens)
    if served.ttft_s is not None:
        assert sum(parts) == request.prompt.tokens, f"{name}: {parts} are not {request.prompt.tokens} tokens"
        assert served.ttft_s > 0, f"{name}: no time to the first token"
    begun = served.ending in {Ending.ANSWERED, Ending.BROKEN}
    assert (served.ttft_s is not None) == begun, f"{name}: first token after {served.ttft_s} s"
    most = served.attempts == ATTEMPTS_MAX
    assert most if served.ending is Ending.FAILED else served.attempts <= ATTEMPTS_MAX, (
        f"{name}: {served.attempts} times"
    )
    assert served.queued_s <= waits_s_max + INSTANT_S, f"{name}: waited {served.queued_s} s for its turn"
    assert served.ending not in FLOW_ENDINGS.values() or waits_s_max, f"{name} without flow control"
    assert not served.living_left, f"{name} while {', '.join(served.living_left)} live"

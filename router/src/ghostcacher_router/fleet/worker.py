"""One engine as the router sees it, and the table that says how its state may change.

    who reports              what
    the worker's own probe   ANSWERED: /health was fine and the models are known; FAILED: it was not, too often, or
                             nobody was there
    the HTTP proxy           FAILED: connections could not be made, too often in a row. Never ANSWERED: an answer that
                             was still under way says nothing of new connections
    people, on any replica   DRAIN, UNDRAIN

There is no state for a worker at which requests fail though its probes are fine: it is ejected for a while
(outliers.py). There is none for a worker whose lease has ended: it is no longer in the fleet, and requests in flight go
on. A new incarnation under the same name is a new Worker, whose health and drain begin afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_connector.core.index.base import WorkerRef, ref_of
from ghostcacher_connector.core.types import PdRole, WorkerRecord
from ghostcacher_router.types import Endpoint, WorkerState


class Move(Enum):
    """What happens to a worker."""

    ANSWERED = "answered"
    """It answered a probe, and its models are known."""
    FAILED = "failed"
    """Its probes failed too often, or a connection to it did."""
    DRAIN = "drain"
    """A person wants it to get no new requests."""
    UNDRAIN = "undrain"
    """A person takes that back."""


_JOINING, _READY, _DRAINING, _DOWN = WorkerState.JOINING, WorkerState.READY, WorkerState.DRAINING, WorkerState.DOWN

MOVES: Mapping[tuple[WorkerState, Move], WorkerState] = {
    (_JOINING, Move.ANSWERED): _READY,
    (_JOINING, Move.FAILED): _JOINING,
    (_JOINING, Move.DRAIN): _JOINING,
    (_JOINING, Move.UNDRAIN): _JOINING,
    (_READY, Move.ANSWERED): _READY,
    (_READY, Move.FAILED): _DOWN,
    (_READY, Move.DRAIN): _DRAINING,
    (_READY, Move.UNDRAIN): _READY,
    (_DRAINING, Move.ANSWERED): _DRAINING,
    (_DRAINING, Move.FAILED): _DOWN,
    (_DRAINING, Move.DRAIN): _DRAINING,
    (_DRAINING, Move.UNDRAIN): _READY,
    (_DOWN, Move.ANSWERED): _READY,
    (_DOWN, Move.FAILED): _DOWN,
    (_DOWN, Move.DRAIN): _DOWN,
    (_DOWN, Move.UNDRAIN): _DOWN,
}
"""A worker that has never answered stays JOINING: engines take minutes to load. A drain that is asked for while a
worker is JOINING or DOWN is remembered, and holds from its first answer on."""


class Worker:
    """One engine. Mutable, on the event loop only. Times are of the loop's clock, in seconds.

    Data-parallel ranks are several at one endpoint.
    """

    def __init__(
        self, name: str, endpoint: Endpoint, record: WorkerRecord | None, now: float, pd_role: PdRole | None = None
    ) -> None:
        """pd_role: what the engine does, where its record does not say it."""
        self.name = name
        self.endpoint = endpoint
        self._told_role = pd_role
        self.renew(record)
        self.state = WorkerState.JOINING
        self.since = now
        """When it came into this state."""
        self.draining = False
        """Whether it is to get no new requests. Holds, too, while it is JOINING or DOWN."""
        self.models: frozenset[str] = frozenset()
        """The ids of the models that it served when it last answered; kept while it is DOWN."""
        self.model_objects: tuple[Mapping[str, object], ...] = ()
        """The same models, as the engine describes them."""
        self.adapters: frozenset[str] = frozenset()
        """The ids of those that are LoRA adapters: a base model has no parent."""
        self.adapter_slots: int | None = None
        """How many adapters can be in use at a time, as its metrics said; None before that."""
        self.running_adapters: frozenset[str] = frozenset()
        """The adapters that were in use, or waited for, when its metrics were last read."""
        self.models_asked_at: float | None = None
        self.load: StampedLoad | None = None
        """The last load that it reported."""
        self.load_measured_at = now
        """When `load` was measured, as far as this router can tell."""
        self.cache_tokens: int | None = None
        """Tokens that its cache holds, as its metrics said; None before that, and where they do not say it."""
        self.failures = 0
        """Probes and connections that failed in a row."""
        self.refusals = 0
        """Requests that got no connection to it, or no whole answer, in all."""
        self.error: str | None = None
        """The last failure, for people."""

    def __repr__(self) -> str:
        return f"Worker({self.name}, {self.state.value}, {self.endpoint.url}, models={sorted(self.models)})"

    def renew(self, record: WorkerRecord | None) -> None:
        """Take over what the worker says of itself now. record: None for an engine that is known by its URL only."""
        self.record = record
        self.ref: WorkerRef | None = None if record is None else ref_of(record)
        self.namespace = None if record is None else record.namespace
        self.block_tokens = None if record is None else record.block_tokens
        self.data_parallel_rank = None if record is None else record.data_parallel_rank
        self.shares_prefill = record is None or record.shares_prefill
        self.takes_flushes = record is None or record.takes_flushes
        self.pd_role = self._told_role if record is None or record.pd_role is None else record.pd_role

    def tell_role(self, pd_role: PdRole | None) -> bool:
        """Take over what the engine does, where its record does not say it; return whether that is another role."""
        before, self._told_role = self.pd_role, pd_role
        self.renew(self.record)
        return self.pd_role is not before

    @property
    def engine(self) -> str | None:
        """Return the family of its engine, such as "vllm": as its connector says, else as its list of models does."""
        if self.record is not None and (engine := self.record.fingerprint.get("engine")) is not None:
            return engine
        owner = self.model_objects[0].get("owned_by") if self.model_objects else None
        return owner if isinstance(owner, str) else None

    @property
    def incarnation(self) -> bytes | None:
        """Return which run of the worker this is; None for one that is known by its URL only."""
        return None if self.ref is None else self.ref.incarnation

    @property
    def drain_id(self) -> str:
        """Return what a drain is stored under: this incarnation, where incarnations can be told apart."""
        return drain_id_of(self.name, self.record)

    def move(self, move: Move, now: float) -> bool:
        """Change the state as the table says; return whether it is another one now."""
        before = self.state
        if move in (Move.DRAIN, Move.UNDRAIN):
            self.draining = move is Move.DRAIN
        after = MOVES[before, move]
        if after is WorkerState.READY and self.draining:
            after = MOVES[after, Move.DRAIN]
        if after is not before:
            self.state, self.since = after, now
        self.check_invariants()
        return after is not before

    def serves(self, models: tuple[Mapping[str, object], ...], now: float) -> bool:
        """Take over the models that it says it serves; return whether they are others than before."""
        changed = self.model_objects != models
        self.model_objects, self.models_asked_at = models, now
        self.models = frozenset(str(model["id"]) for model in models)
        self.adapters = frozenset(str(model["id"]) for model in models if isinstance(model.get("parent"), str))
        return changed

    def take_load(self, load: StampedLoad | None, store_now: float, now: float) -> bool:
        """Note the load that the store has of it; return whether that is a new one. store_now: the store's time, s."""
        if load is None or (self.load is not None and load.at == self.load.at):
            return False
        self.load = load
        self.load_measured_at = now - max(0.0, store_now - load.at) - load.load.age_s
        return True

    def inherit(self, other: Worker) -> None:
        """Take over what is known of the same server under another name: its health and models, but not a drain."""
        self.models, self.model_objects, self.adapters = other.models, other.model_objects, other.adapters
        self.models_asked_at = other.models_asked_at
        self.failures, self.error = other.failures, other.error
        self.state = WorkerState.READY if other.state is WorkerState.DRAINING else other.state
        self.check_invariants()

    def check_invariants(self) -> None:
        """Assert that state, drain and what is known fit together."""
        if self.state in (WorkerState.READY, WorkerState.DRAINING):
            assert self.models_asked_at is not None, f"{self!r} was never asked for its models"
            assert self.draining is (self.state is WorkerState.DRAINING), f"{self!r}: draining={self.draining}"
        assert self.models == {model["id"] for model in self.model_objects}, f"{self!r}: its models differ"


def drain_id_of(name: str, record: WorkerRecord | None) -> str:
    """Return what a drain of a worker is stored under: see `Worker.drain_id`."""
    return name if record is None else f"{name}@{record.incarnation.hex()}"

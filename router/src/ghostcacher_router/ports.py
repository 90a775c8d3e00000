"""What routing needs of the router's other parts, as protocols. On the event loop only, unless said otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from ghostcacher_connector.core.coordination.base import Flush, PrefixMapUpdate, PromptChain, StampedLoad
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.types import PdRole, WorkerRecord
from ghostcacher_router.types import Endpoint, Outcome, Prompt, WorkerState

T = TypeVar("T")
Clock = Callable[[], float]
"""Returns the event loop's time, s."""


class Offload(Protocol):
    """Runs blocking calls elsewhere, a bounded number at a time."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


class WorkerPort(Protocol):
    """One worker. What its connector reports is None of a plain engine."""

    @property
    def name(self) -> str: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def data_parallel_rank(self) -> int | None:
        """Which of the engines at its endpoint it is; None where there is one."""

    @property
    def state(self) -> WorkerState: ...
    @property
    def record(self) -> WorkerRecord | None: ...
    @property
    def ref(self) -> WorkerRef | None:
        """The worker's present incarnation."""

    @property
    def namespace(self) -> str | None:
        """Workers of one namespace can use each other's blocks."""

    @property
    def block_tokens(self) -> int | None: ...
    @property
    def shares_prefill(self) -> bool:
        """Whether a request finds the prefix that the engine is just computing for another one."""

    @property
    def pd_role(self) -> PdRole | None:
        """What it does where prefill and decode are apart; None: all of a request."""

    @property
    def models(self) -> Collection[str]:
        """The ids of the models that it lists."""

    @property
    def adapters(self) -> Collection[str]:
        """Those of them that are LoRA adapters."""

    @property
    def adapter_slots(self) -> int | None:
        """How many adapters can be in use there at a time; None when it does not say."""

    @property
    def running_adapters(self) -> Collection[str]:
        """The adapters that were in use there when it was last asked."""

    @property
    def load(self) -> StampedLoad | None:
        """The last load report."""

    @property
    def load_measured_at(self) -> float:
        """When that load was measured; loop clock, s."""

    @property
    def cache_tokens(self) -> int | None:
        """Tokens that its cache holds, as its metrics said; None when they did not."""


class WorkersPort(Protocol):
    """All workers, by name."""

    @property
    def workers(self) -> Mapping[str, WorkerPort]: ...


class FleetPort(WorkersPort, Protocol):
    """The workers, and which of them can be used."""

    def serving(self, model: str | None) -> Sequence[WorkerPort]:
        """Return the workers that can take a request for a model (any model: None), in a stable order."""

    def models(self) -> Sequence[str]:
        """Return the models that the fleet serves."""

    def base_of(self, model: str | None) -> str | None:
        """Return the model whose workers find this one by themselves when they are asked for it; None: they do not."""

    @property
    def models_may_be_old(self) -> bool:
        """Whether asking the workers for their models now may show one that is not known."""

    async def refresh_models(self) -> None:
        """Ask the workers for their models, within a bounded time and not too often."""

    def models_changed(self) -> None:
        """Note that a worker has loaded or unloaded a model."""

    def limits(self) -> Mapping[str, int]:
        """Return how many requests may be in flight at a worker, by name, where that is limited. Mostly empty."""

    def lost(self, name: str, outcome: Outcome) -> None:
        """Note that a request got no whole answer from a worker: REFUSED, BROKE or FAILED."""

    def doubts(self, name: str) -> bool:
        """Say whether requests have failed at a worker lately."""

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:
        """Note that a request failed, and likely for a worker's sake.

        kind: a label of metrics. why: for people. sure: another worker has answered the same request.
        """

    def answered(self, name: str) -> None:
        """Note that a worker answered a request, and not with an error of its own."""

    def when_down(self, tell: Callable[[str], None]) -> None:
        """Have a function called with the name of each worker that becomes DOWN: its memory is likely gone."""

    def when_reported(self, tell: Callable[[Sequence[WorkerPort]], None]) -> None:
        """Have a function called with workers that have another load, as soon as that is known; some at a time."""


class KnownPort(Protocol):
    """A boundary of a prompt whose blocks are known."""

    @property
    def index(self) -> int:
        """Its index among the prompt's boundaries."""

    @property
    def block_count(self) -> int:
        """Blocks of the prompt before it."""

    @property
    def block_hash(self) -> bytes:
        """Chain hash of the last of these blocks."""


class PrefixMapPort(Protocol):
    """What the fleet has learned of how the text of prompts becomes blocks, by namespace."""

    def known(self, namespace: str, prompt: Prompt) -> Sequence[KnownPort]:
        """Return all known boundaries of a prompt, shallowest first."""

    def deepest(self, namespace: str, prompt: Prompt) -> KnownPort | None:
        """Return the deepest known boundary of a prompt."""

    def tokens_of(self, namespace: str, prompt: Prompt) -> int:
        """Return the estimated tokens of a prompt, 0 when there is nothing to go by."""

    def learn(self, prompt: Prompt, chain: PromptChain, namespace: str) -> PrefixMapUpdate | None:
        """Return what a worker's report of a prompt's blocks adds, to be published; None when it adds nothing."""

    def apply(self, text: PrefixMapUpdate) -> None:
        """Add what a router has published."""

    def put(self, namespace: str, entries: Mapping[bytes, bytes], bytes_per_token: float) -> None:
        """Add entries of what routers have published, packed."""

    def flush(self, flush: Flush) -> None:
        """Forget what a flush names."""


class PendingPort(Protocol):
    """Prompts by request id, until the worker has reported their blocks. Ids of several prompts are ambiguous."""

    def put(self, request_id: str, prompt: Prompt) -> None: ...

    def get(self, request_id: str) -> Prompt | None:
        """Return a prompt; None when it is unknown or ambiguous."""

    def mark_ambiguous(self, request_id: str) -> None: ...

    def is_ambiguous(self, request_id: str) -> bool: ...

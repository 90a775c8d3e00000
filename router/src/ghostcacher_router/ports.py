"""What routing needs of the other parts, and no more. On the event loop only, unless said otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from ghostcacher_connector.core.coordination.base import Flush, PrefixMapUpdate, PromptChain, StampedLoad
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.types import Endpoint, Prompt, WorkerState

T = TypeVar("T")
Clock = Callable[[], float]
"""The loop's clock, s."""


class Offload(Protocol):
    """Runs blocking calls elsewhere, a bounded number at a time."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


class WorkerPort(Protocol):
    """A worker. record, ref, namespace: None of a plain engine. load_received_at: loop clock, s, when measured."""

    @property
    def name(self) -> str: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def state(self) -> WorkerState: ...
    @property
    def record(self) -> WorkerRecord | None: ...
    @property
    def ref(self) -> WorkerRef | None: ...
    @property
    def namespace(self) -> str | None: ...
    @property
    def block_tokens(self) -> int | None: ...
    @property
    def shares_prefill(self) -> bool: ...
    @property
    def load(self) -> StampedLoad | None: ...
    @property
    def load_received_at(self) -> float: ...


class WorkersPort(Protocol):
    """The workers that there are, by name."""

    @property
    def workers(self) -> Mapping[str, WorkerPort]: ...


class FleetPort(WorkersPort, Protocol):
    """The workers, and which of them can be used."""

    def serving(self, model: str | None) -> Sequence[WorkerPort]:
        """Return the workers that can take a request for a model (any model: None), in a stable order."""

    def models(self) -> Sequence[str]: ...

    def refused(self, name: str) -> None: ...

    def answered(self, name: str) -> None: ...


class KnownPort(Protocol):
    """A boundary of a prompt whose blocks are known. index: into the prompt's boundaries."""

    @property
    def index(self) -> int: ...
    @property
    def block_count(self) -> int: ...
    @property
    def block_hash(self) -> bytes: ...


class TextPort(Protocol):
    """What was learned of how text becomes blocks."""

    def known(self, namespace: str, prompt: Prompt) -> Sequence[KnownPort]: ...

    def deepest(self, namespace: str, prompt: Prompt) -> KnownPort | None: ...

    def tokens_of(self, namespace: str, prompt: Prompt) -> int: ...

    def learn(self, prompt: Prompt, chain: PromptChain, namespace: str) -> PrefixMapUpdate | None: ...

    def apply(self, text: PrefixMapUpdate) -> None: ...

    def flush(self, flush: Flush) -> None: ...


class PendingPort(Protocol):
    """Prompts of requests on their way, until the worker reports their chains. Ids of several prompts are ambiguous."""

    def put(self, request_id: str, prompt: Prompt) -> None: ...

    def get(self, request_id: str) -> Prompt | None: ...

    def mark_ambiguous(self, request_id: str) -> None: ...

    def is_ambiguous(self, request_id: str) -> bool: ...

"""What this engine's LoRA adapters hold, by SGLang's id of each.

SGLang gives an adapter a random id when it is loaded, or one that follows from name and path when the server is started
with it, and keeps what it has read from the files for as long as it knows the id. So an id means one content for as
long as it is known, and the content is read once: when the first request for it comes, on every rank.

The id stands at the end of the keys of SGLang's tree, behind the client's own. A client whose own key ends so shares a
path of the tree with the adapter; from then on nothing of that adapter is shared. So it is with one whose id comes to
mean another object.

Driven by the scheduler's thread alone, by all ranks alike.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.engines.common.adapter_content import ADAPTER_DIGEST_BYTES, content_digest
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

ADAPTERS_MAX = 65_536
"""Ids that are remembered: each time that an adapter is loaded it has another. Beyond, none is shared, nor any key."""
UNREAD = b""
"""Stands for the digest of an adapter that is not shared."""


class Adapters:
    """The adapters of one rank."""

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks
        self._objects: dict[str, Callable[[], Any]] = {}
        self._digests: dict[str, bytes] = {}

    @property
    def full(self) -> bool:
        """Whether no key can be believed any more: it may end with the id of an adapter that is not remembered."""
        return len(self._objects) >= ADAPTERS_MAX

    def arrived(self, scheduler: Scheduler, req: Req) -> None:
        """A request has entered the queue, before anything of it is computed. Comes on every rank, in one order."""
        manager = getattr(scheduler.tp_worker.model_runner, "lora_manager", None)
        loaded: Mapping[str, Any] = manager.loras if manager is not None else {}
        for number, adapter in loaded.items():
            known = self._objects.get(number)
            if known is None and not self.full:
                self._objects[number] = weakref.ref(adapter)
            elif known is not None and known() is not adapter:
                self._objects[number] = weakref.ref(adapter)
                self._not_shared(number, "its id has come to mean another one")
        if req.lora_id is not None:
            self._learn(req.lora_id, loaded.get(req.lora_id))
        elif (meant := self.id_in(req.extra_key)) is not None:
            self._not_shared(meant, "a client's own key ends with its id")

    def id_in(self, extra_key: str | None) -> str | None:
        """Return the id of the adapter that a key of SGLang's tree ends with; None when it is of no adapter."""
        return next((number for number in self._objects if extra_key and extra_key.endswith(number)), None)

    def digest(self, number: str | None) -> bytes | None:
        """Return the digest of an adapter that is shared; None for any other."""
        found = self._digests.get(number, UNREAD) if number is not None and not self.full else UNREAD
        return found or None

    def _learn(self, number: str, adapter: Any) -> None:
        """Read an adapter, if it was not yet, and take what all ranks have read alike."""
        if number in self._digests:
            return
        if number not in self._objects and not self.full:
            self._objects[number] = _nobody  # its pages are to be told apart all the same
        everyone = self._ranks.gather(_digest_of(adapter))
        same = len(set(everyone)) == 1 and len(everyone[0]) == ADAPTER_DIGEST_BYTES
        if same:
            self._digests[number] = everyone[0]
        else:
            self._not_shared(number, "it cannot be read")

    def _not_shared(self, number: str, why: str) -> None:
        if self._digests.get(number) != UNREAD:
            self._digests[number] = UNREAD
            logger.warning("LoRA adapter %s: what is computed with it is not shared: %s", number, why)


def _nobody() -> None:
    """Stands for an object that is not there."""


def _digest_of(adapter: Any) -> bytes:
    """Return the digest of what SGLang keeps of an adapter; UNREAD when it cannot be read."""
    if adapter is None:
        return UNREAD
    try:
        layers = [dict(layer.weights) for layer in adapter.layers]
        whole = [dict(adapter.embedding_layers), dict(adapter.added_tokens_embeddings)]
        return content_digest([float(adapter.scaling), layers, whole]) if any(layers) else UNREAD
    except Exception:
        logger.exception("unexpected error while a LoRA adapter was read")
        return UNREAD

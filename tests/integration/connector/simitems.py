"""Images in a simulated engine: what a step computes of their positions depends on what is in them."""

from __future__ import annotations

from typing import Any

from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.sched.output import SchedulerOutput

from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import VOCABULARY

EMBEDS_MAX = 10_000


def image(name: str, offset: int, length: int) -> MultiModalFeatureSpec:
    """Return an image as it reaches the scheduler, at these positions of a prompt. name: what vLLM calls it."""
    place = PlaceholderRange(offset=offset, length=length)
    return MultiModalFeatureSpec(MultiModalKwargsItem.dummy(), "image", name, place, mm_hash=name)


class SimItems:
    """Has an engine take items. It must see each request's before that is scheduled."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._contents: dict[str, int] = {}
        self._update = engine.rank._update_tables
        engine.rank._update_tables = self._update_tables  # type: ignore[method-assign]
        engine.scheduler.max_num_encoder_input_tokens = EMBEDS_MAX
        engine.scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=EMBEDS_MAX)

    def add(self, request_id: str, tokens: list[int], features: list[Any], content: int, **options: Any) -> Any:
        """Add a request whose items all have this content, whatever they are called."""
        self._contents[request_id] = content
        return self._engine.add(request_id, tokens, mm_features=features, **options)

    def seen(self, request_id: str, tokens: list[int]) -> list[int]:
        """Return what stands for each position of a prompt: its token, and what is in the item there."""
        seen = list(tokens)
        for feature in self._engine.requests[request_id].mm_features:
            place = feature.mm_position
            for position in range(place.offset, place.offset + place.length):
                seen[position] += VOCABULARY * self._contents[request_id]
        return seen

    def _update_tables(self, output: SchedulerOutput) -> None:
        self._update(output)
        resumed = output.scheduled_cached_reqs.resumed_req_ids
        for request_id in [new.req_id for new in output.scheduled_new_reqs] + list(resumed):
            state = self._engine.rank._running[request_id]
            state.tokens = self.seen(request_id, state.tokens)

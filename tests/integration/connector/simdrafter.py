"""The simulated engine with a drafter like EAGLE's: one more layer, whose row of a token follows from the next one.

As a device does, the drafter works behind the step's output: its rows of one step are written when the next step begins
to compute, and not before somebody waits for the device. Behind what it knows it leaves rows of tokens that it only
guesses, in the slots of the same request, as vLLM's does. `misdrafted` tells of each row that it would have read and
that is not what it must be: with such a row drafts are worse, and no answer is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig

from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, RunnerRequest, prefix_number
from tests.integration.connector.simcaches import LAYERS, SimCache, full_spec, kv_config_of
from tests.integration.connector.simranks import SimModel, SimRank

DRAFTS = 3
LAYER = f"layer.{LAYERS}"
GUESSED = -1
WITH_DRAFTER = SimCache(lambda: [full_spec() for _ in range(LAYERS + 1)], {})


def drafting(model: Path, **options: Any) -> dict[str, Any]:
    """Return vLLM's options of an engine with such a drafter. model: a folder, where one is written."""
    model.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}
    config |= {"vocab_size": 1000, "max_position_embeddings": 2048, "torch_dtype": "float32", "rms_norm_eps": 1e-6}
    (model / "config.json").write_text(json.dumps(config))
    (model / "pytorch_model.bin").write_bytes(b"never loaded")
    return {
        "kind": DraftingEngine,
        "speculative_config": {"method": "eagle", "model": str(model), "num_speculative_tokens": DRAFTS, **options},
    }


class DraftingRank(SimRank):
    """A rank with a drafter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.drafter = SimModel()
        self.misdrafted: list[str] = []
        self._launched: list[tuple[int, int, int]] = []
        self._reads: list[tuple[str, RunnerRequest, int]] = []
        super().__init__(*args, **options)

    def get_draft_model(self) -> SimModel:
        return self.drafter

    def update_drafter(self, weight: int) -> None:
        """Change the drafter's weight, as a worker extension of an RL stack does."""
        self.finish_device_work()
        self.drafter.weight.fill_(weight)

    def finish_device_work(self) -> None:
        """Have written what the drafter was launched to write."""
        for block, offset, number in self._launched:
            self.memory[LAYER][block, offset] = number
        self._launched.clear()
        for request_id, state, end in self._reads:
            self._check_drafter(request_id, state, end)
        self._reads.clear()

    def _update_tables(self, output: SchedulerOutput) -> None:
        super()._update_tables(output)
        if output.total_num_scheduled_tokens:
            self.finish_device_work()

    def _forward(self, request_id: str, output: SchedulerOutput) -> list[int]:
        sampled = super()._forward(request_id, output)
        state, start = self._running[request_id], self._computed(request_id, output)
        end = min(start + output.num_scheduled_tokens[request_id], len(state.tokens) - 1)
        for position in range(start, end + DRAFTS - 1):
            self._launch(state, position, self.row(state, position) if position < end else GUESSED)
        # What a request has by now: tables change before the device is there.
        self._reads.append((request_id, RunnerRequest(list(state.tokens), list(state.blocks)), end))
        return sampled

    def _launch(self, state: RunnerRequest, position: int, number: int) -> None:
        if position // BLOCK_TOKENS < len(state.blocks):
            self._launched.append((state.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS, number))

    def row(self, state: RunnerRequest, position: int) -> int:
        """Return what the drafter keeps of a token: of all tokens up to the one behind it, and of its own weight."""
        weight = int(self.drafter.weight)
        return prefix_number(state.number(position), state.tokens[position + 1], position, weight)

    def drafted_right(self, state: RunnerRequest, position: int) -> bool:
        block, offset = state.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        return self.memory[LAYER][block, offset].tolist() == [self.row(state, position)] * 2

    def _check_drafter(self, request_id: str, state: RunnerRequest, end: int) -> None:
        wrong = [position for position in range(end) if not self.drafted_right(state, position)]
        if wrong:
            self.misdrafted.append(f"{self._name} {request_id}: positions {wrong[:3]} of {end}")

    def _store(self, request_id: str, state: RunnerRequest, position: int, number: int) -> None:  # noqa: ARG002
        block, offset = state.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        for layer in range(LAYERS):
            memory = self.memory[f"layer.{layer}"]
            memory[block, offset, 0], memory[block, offset, 1] = self._words(layer, number)

    def holds(self, block: int, offset: int, number: int) -> bool:
        return all(
            tuple(self.memory[f"layer.{layer}"][block, offset].tolist()) == self._words(layer, number)
            for layer in range(LAYERS)
        )

    @staticmethod
    def _make_memory(blocks: int) -> dict[str, torch.Tensor]:
        names = [f"layer.{layer}" for layer in range(LAYERS)] + [LAYER]
        return {name: torch.zeros(blocks, BLOCK_TOKENS, 2, dtype=torch.int64) for name in names}


class DraftingEngine(SimEngine):
    """An engine with a drafter, whose layer vLLM puts into the group of the others."""

    rank_class = DraftingRank
    rank: DraftingRank

    def _make_kv_config(self, cache: SimCache, blocks: int) -> KVCacheConfig:  # noqa: ARG002 - it has its own kind
        return kv_config_of(self.config, WITH_DRAFTER, blocks)

    @property
    def misdrafted(self) -> list[str]:
        """Descriptions of the steps in which the drafter would have read a wrong row."""
        return list(self.rank.misdrafted)

"""What an RL stack adds to vLLM's workers: methods that change the weights of a running engine."""

from __future__ import annotations

from typing import Any


class WeightExtension:
    """vLLM mixes it into its worker class (``--worker-extension-cls``)."""

    get_model: Any

    def scale_norms(self, factor: str) -> int:
        """Scale the norms before attention, and with them all keys and values; return how many there are."""
        norms = [
            parameter for name, parameter in self.get_model().named_parameters() if "input_layernorm.weight" in name
        ]
        for parameter in norms:
            parameter.data.mul_(float(factor))
        return len(norms)

    def say(self, text: str) -> str:
        """Do nothing that concerns the weights."""
        return text

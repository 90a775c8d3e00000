"""Lets vLLM load LLaVA where torchvision is not installed, in whatever process has this folder on its PYTHONPATH.

vLLM's LLaVA also serves models with Pixtral's encoder, and so imports one function from a module of transformers that
needs torchvision. With CLIP's encoder, as here, nobody calls it.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

MODULE = "transformers.models.pixtral.image_processing_pixtral"


def _num_image_tokens(*_: object) -> tuple[int, int]:
    raise NotImplementedError("Pixtral's encoder needs torchvision")


if importlib.util.find_spec("torchvision") is None:
    module = ModuleType(MODULE)
    vars(module)["_num_image_tokens"] = _num_image_tokens
    sys.modules[MODULE] = module

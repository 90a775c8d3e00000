"""Lets vLLM keep prefix caching for MLA on CPUs without AMX, in whatever process has this folder on its PYTHONPATH.

vLLM turns it off there, because its reference backend cannot compute several tokens behind a cached prefix. It can
compute one: a prompt of whole blocks and one token more, all but the last cached, is a decoding step.
"""

from __future__ import annotations

import importlib.util
from typing import Any

if importlib.util.find_spec("vllm") is not None:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type[CpuPlatform], vllm_config: Any) -> None:
        wanted = vllm_config.cache_config.enable_prefix_caching
        check(cls, vllm_config)
        vllm_config.cache_config.enable_prefix_caching = wanted

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)

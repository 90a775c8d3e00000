"""Names of LoRA adapters that engines find by themselves when they are first asked for them.

vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and a resolver plugin lists such an adapter only from then on, and its list
does not say that there are resolvers. So people say which names these are, and of which model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ghostcacher_connector.core.errors import ConfigError

_NAME = re.compile(r"[!-)+-<>-~]{1,256}\*?|\*")
_MODEL = re.compile(r"[!-)+-<>-~]{1,256}")


class LazyAdapters:
    """The base model of each name. Raises ConfigError, naming the setting, for what is not ``name=base-model``.

    texts: each name once, or a beginning and *; the longest one counts. Without any, no adapter is lazy.
    """

    def __init__(self, texts: Sequence[str] = (), setting: str = "lazy_adapters") -> None:
        self._exact: dict[str, str] = {}
        beginnings: dict[str, str] = {}
        for text in texts:
            name, _, base = text.rpartition("=")
            known = beginnings if name.endswith("*") else self._exact
            key = name.removesuffix("*")
            if _NAME.fullmatch(name) is None or _MODEL.fullmatch(base) is None or key in known:
                expected = "each adapter once, as name=base-model or beginning*=base-model"
                raise ConfigError(f"{setting}: expected {expected}, got {text[:300]!r}")
            known[key] = base
        self._beginnings = sorted(beginnings.items(), key=lambda each: -len(each[0]))

    def __repr__(self) -> str:
        return f"LazyAdapters({len(self._exact)} names, {len(self._beginnings)} beginnings)"

    def base_of(self, model: str) -> str | None:
        """Return the base model of an adapter that engines find by themselves; None when they do not."""
        if (exact := self._exact.get(model)) is not None:
            return exact
        for beginning, base in self._beginnings:
            if model.startswith(beginning):
                return base
        return None

"""SGLang's general-plugin entry point: registers the hooks, on the SGLang versions that they are proven on."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version

from ghostcacher_connector.engines.sglang import hooks

logger = logging.getLogger(__name__)

DISTRIBUTIONS = ("sglang",)
PROVEN_VERSIONS = ("0.5.23",)
"""Versions on which the e2e suite passes. Patch releases of SGLang change its scheduler: each is proven anew."""

OVERRIDE = "GC_ALLOW_UNPROVEN_ENGINE"


def register() -> None:
    """Register the hooks, unless this SGLang is another one; the linker then says so when it is used."""
    found = version("sglang")
    if found in PROVEN_VERSIONS or os.environ.get(OVERRIDE, "").lower() in ("1", "true"):
        hooks.install()
    else:
        logger.debug("sglang %s: no hooks, expected %s", found, ", ".join(PROVEN_VERSIONS))

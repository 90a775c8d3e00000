"""SGLang's general-plugin entry point: registers the hooks, where SGLang has all that they and the linker need."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version

from ghostcacher_connector.engines.sglang import capabilities, flags, hooks

logger = logging.getLogger(__name__)

DISTRIBUTIONS = ("sglang",)
TRIED_VERSIONS = ("0.5.23.",)
"""Versions on which the suites pass. A patch release of SGLang changes as much as a minor one."""


def register() -> None:
    """Register the hooks, unless this SGLang lacks something; then say what, to whoever asks for the linker."""
    lacking = capabilities.missing()
    if not lacking:
        hooks.install()
        return
    # An older SGLang does not get as far as the linker, which would say it: its flags know no such backend.
    asked_for = any(flags.LINKER in argument for argument in sys.argv)
    logger.log(
        logging.WARNING if asked_for else logging.DEBUG,
        "GhostCacher: sglang %s lacks what it relies on, no hooks are set: %s",
        version("sglang"),
        "; ".join(lacking),
    )

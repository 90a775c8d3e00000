"""Which versions of an engine an adapter is proven on; any other is refused at start, with the override's name.

A connector that guesses a layout or an ordering returns wrong tokens. `allow_unproven_engine`
(GC_ALLOW_UNPROVEN_ENGINE=1) lifts the version check only: it never lifts a check whose failure is known to make answers
wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ghostcacher_connector.core.errors import UnsupportedEngine

logger = logging.getLogger(__name__)


def installed_version(engine: str, distributions: Sequence[str]) -> str:
    """Return the version of an installed engine, whatever its distribution is called."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UnsupportedEngine(f"{engine}: expected one of the distributions {', '.join(distributions)}, found none")


def check_version(engine: str, found: str, proven: Sequence[str], *, allow_unproven: bool) -> None:
    """Raise UnsupportedEngine unless this version is proven or the override is set.

    proven: versions; one that ends in a dot stands for all that begin with it.
    """
    if any(found == one or (one.endswith(".") and found.startswith(one)) for one in proven):
        return
    listed = ", ".join(f"{one}*" if one.endswith(".") else one for one in proven)
    if not allow_unproven:
        raise UnsupportedEngine(
            f"{engine} version: expected {listed}, found {found}; its connector interface is not proven. "
            "Set allow_unproven_engine (GC_ALLOW_UNPROVEN_ENGINE=1) to try it at your own risk"
        )
    logger.warning("%s %s is not proven (%s is); going on because allow_unproven_engine is set", engine, found, listed)

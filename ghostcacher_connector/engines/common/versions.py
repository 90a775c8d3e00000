"""Refuses, at start and by name, versions of an engine and features of it that an adapter is not proven on.

A connector that guesses a layout or an ordering returns wrong tokens. `allow_unproven_engine`
(GC_ALLOW_UNPROVEN_ENGINE=1) lifts the check of the version only: it never lifts a check whose failure is known to make
answers wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ghostcacher_connector.core.errors import UnsupportedEngine

logger = logging.getLogger(__name__)


def installed_version(engine: str, distributions: Sequence[str]) -> str:
    """Return the version of an installed engine. Raises UnsupportedEngine when there is none.

    distributions: names under which the engine is distributed, tried in this order.
    """
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UnsupportedEngine(f"{engine}: expected one of the distributions {', '.join(distributions)}, found none")


def check_version(engine: str, found: str, proven: Sequence[str], *, allow_unproven: bool) -> None:
    """Raise UnsupportedEngine unless this version is proven or the override is set.

    proven: versions on which the adapter is proven; one that ends in a dot stands for all that begin with it.
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


def refuse_unproven(problems: Iterable[str]) -> None:
    """Raise UnsupportedEngine naming every feature in use that sharing is not proven with, if there is any."""
    found = list(problems)
    if found:
        raise UnsupportedEngine("GhostCacher does not support this configuration yet: " + "; ".join(found))

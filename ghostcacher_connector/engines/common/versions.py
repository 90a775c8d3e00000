"""Judges an engine by what it can do, whatever its version, and refuses by name what an adapter is not proven with.

A connector that guesses a layout or an ordering returns wrong tokens. So what an adapter relies on is looked for at
start; what is missing ends the engine, with its name. A version on which nothing is missing and the suites were never
run is used, with a warning that nobody overlooks.
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


def check_capabilities(engine: str, found: str, tried: Sequence[str], missing: Iterable[str]) -> None:
    """Raise UnsupportedEngine naming all that is missing; warn of a version on which the suites were never run.

    found: the version that is installed.
    tried: beginnings of the versions on which the suites pass, each with its dot.
    """
    lacking = list(missing)
    if lacking:
        raise UnsupportedEngine(f"{engine} {found} lacks what GhostCacher relies on: " + "; ".join(lacking))
    if not any(f"{found}.".startswith(each) for each in tried):
        listed = ", ".join(each.removesuffix(".") for each in tried)
        logger.warning(
            "%s %s was NEVER TRIED with GhostCacher (%s were). All that it relies on is there, so it goes on: compare "
            "answers with and without it before you trust them",
            engine,
            found,
            listed,
        )


def refuse_unproven(problems: Iterable[str]) -> None:
    """Raise UnsupportedEngine naming every feature in use that sharing is not proven with, if there is any."""
    found = list(problems)
    if found:
        raise UnsupportedEngine("GhostCacher does not support this configuration yet: " + "; ".join(found))

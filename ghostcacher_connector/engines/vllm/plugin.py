"""vLLM's general-plugin entry point: makes the connector known by name, checks its settings with the flags, and has
items marked that are hashed by their content.

Every process of vLLM loads it, also those that have never heard of the connector: it changes nothing for them.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from ghostcacher_connector.config import load_settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.engines.vllm.item_marks import mark_items
from ghostcacher_connector.engines.vllm.nesting import CONNECTOR, check_outer, settings_of, uses_us

logger = logging.getLogger(__name__)

MODULE = "ghostcacher_connector.engines.vllm"


class RefusedFlag(ConfigError, ArgumentTypeError):
    """A wrong setting, found while the flags are parsed: argparse prints its message last and exits with status 2."""


def register() -> None:
    """Register the connector with vLLM's factory. May be called more than once in a process."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: PLC0415 - optional

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
    try:
        check_with_the_flags()
        mark_items()
    except Exception as exc:
        # A vLLM that is built otherwise. The connector itself checks, too, only later; what has no mark is not shared.
        logger.debug("settings are not checked with the flags, or items not marked: %s", exc)


def check_with_the_flags() -> None:
    """Have vLLM check our settings while it parses its flags, and keep the connector that they ask for.

    May be called more than once in a process.
    """
    from vllm.config import KVTransferConfig, VllmConfig  # noqa: PLC0415 - vLLM is optional

    if KVTransferConfig.__post_init__.__module__ != __name__:
        KVTransferConfig.__post_init__ = checking(KVTransferConfig.__post_init__)
    if VllmConfig._post_init_kv_transfer_config.__module__ != __name__:
        VllmConfig._post_init_kv_transfer_config = keeping(VllmConfig._post_init_kv_transfer_config)


def checking(complete: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's ``KVTransferConfig.__post_init__`` with a check of our settings behind it.

    vLLM makes this object while it parses ``--kv-transfer-config``. The connector itself is made after the weights are
    loaded, minutes later for a large model.
    """

    def complete_and_check(config: Any, *args: Any, **kwargs: Any) -> None:
        complete(config, *args, **kwargs)
        for extra in settings_of(config):
            check_settings(extra)
        if uses_us(config) and config.kv_connector != CONNECTOR:
            check_children(config)

    return complete_and_check


def keeping(complete: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's ``_post_init_kv_transfer_config``, which may change the connector, with a check that ours is kept.

    ``--kv-offloading-size`` puts vLLM's own connector in the place of whichever one was asked for, without a word: the
    engine would serve, and never share a block.
    """

    def complete_and_check(config: Any, *args: Any, **kwargs: Any) -> None:
        asked, ours = _connector_of(config), uses_us(config.kv_transfer_config)
        complete(config, *args, **kwargs)
        found = _connector_of(config)
        if ours and found != asked:
            size = getattr(config.cache_config, "kv_offloading_size", None)
            raise RefusedFlag(
                f"GhostCacher: kv_connector: expected {asked} to stay, but vLLM has replaced it by {found}, and "
                f"nothing would be shared; --kv-offloading-size (here: {size}) does this: leave out one of the two"
            )

    return complete_and_check


def _connector_of(config: Any) -> str | None:
    transfer = config.kv_transfer_config
    return None if transfer is None else transfer.kv_connector


def check_children(config: Any) -> None:
    """Raise RefusedFlag for a MultiConnector of which our connector cannot be a child."""
    try:
        check_outer(config)
    except ConfigError as exc:
        raise RefusedFlag(f"GhostCacher: {exc}") from exc


def check_settings(extra: dict[str, object]) -> None:
    """Raise RefusedFlag for a wrong key or value of the connector's extra config, or a wrong ``GC_*`` variable."""
    try:
        load_settings(extra, os.environ)
    except ConfigError as exc:
        raise RefusedFlag(f"GhostCacher: {exc}") from exc

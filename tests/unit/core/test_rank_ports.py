"""The ports of ranks that were all given one."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.addresses import port_of_rank
from ghostcacher_connector.core.errors import ConfigError


@pytest.mark.parametrize(("port", "offset", "own"), [(0, 7, 0), (7700, 0, 7700), (7700, 7, 7707), (65_528, 7, 65_535)])
def test_every_rank_has_a_port_of_its_own(port: int, offset: int, own: int) -> None:
    """Any port stays any; others are counted from the one that is given."""
    assert port_of_rank(port, offset, "relay_listen") == own


def test_port_that_is_too_high_for_a_rank_is_refused_by_name() -> None:
    """The message says which setting, and how high it may be."""
    with pytest.raises(ConfigError, match=r"metrics_port: expected a port of at most 65528, .* got 65529"):
        port_of_rank(65_529, 7, "metrics_port")

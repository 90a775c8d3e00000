"""Which names engines find by themselves, and whose workers are asked for them."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.fleet.lazy_adapters import LazyAdapters


def test_longest_beginning_counts_and_a_name_before_all() -> None:
    """What no rule names is nobody's."""
    lazy = LazyAdapters(["org/*=m", "org/law-*=n", "org/law-1=o"])
    asked = ["org/sql", "org/law-2", "org/law-1", "org/law-12", "other", "org"]
    assert [lazy.base_of(name) for name in asked] == ["m", "n", "o", "n", None, None]
    assert LazyAdapters(["*=m"]).base_of("anything") == "m"
    assert LazyAdapters().base_of("anything") is None


@pytest.mark.parametrize(
    "texts", [["sql"], ["=m"], ["sql="], ["s*l=m"], ["sql=m*"], ["a b=m"], ["a=b=m"], ["a=m", "a=n"], ["a*=m", "a*=m"]]
)
def test_what_is_no_rule_is_refused(texts: list[str]) -> None:
    """With the setting's name and what came."""
    with pytest.raises(ConfigError, match=r"lazy_adapters: expected each adapter once") as caught:
        LazyAdapters(texts)
    assert repr(texts[-1]) in str(caught.value)

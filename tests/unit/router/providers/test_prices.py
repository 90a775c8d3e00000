"""What tokens cost: the table, whose it is, and what goes over it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import msgspec
import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.providers.choice import Provider
from ghostcacher_router.providers.costs.accounts import Accounts
from ghostcacher_router.providers.costs.prices import BUILT_IN, Price, PriceFile, PriceTable, cost_of, read_prices
from ghostcacher_router.providers.costs.usage import Usage


def test_built_in_table_is_whole_and_says_from_when_it_is() -> None:
    """Reading costs no more than computing, and writing no less."""
    table = msgspec.json.decode(BUILT_IN.read_bytes(), type=PriceFile)
    assert table.as_of >= date(2026, 11, 1)
    assert table.sources
    for name, price in table.models.items():
        write = price.input if price.write is None else price.write
        assert 0 < price.read <= price.input <= write <= (price.write_long or write), name
        assert PriceTable(table).find(name) == (name, price)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("eu.anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku-4-5"),
        ("anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("gpt-5.2-2025-12-11", "gpt-5.2"),
        ("gpt-5.2", "gpt-5.2"),
        ("gpt-5.2-nano", None),
        ("gpt-5.29", None),
        ("gpt-5-2025", None),
        ("claude-sonnet-9", None),
        ("", None),
        ("-", None),
    ],
)
def test_version_of_a_model_has_its_price_and_another_model_has_none(model: str, name: str | None) -> None:
    """A wrong price would be worse than none."""
    found = read_prices(None).find(model)
    assert (None if found is None else found[0]) == name


def test_cost_of_an_answer() -> None:
    price = Price(input=3, read=0.3, output=15, write=3.75, write_long=6)
    cost = cost_of(Usage(1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000), price)
    assert cost.total == pytest.approx(3 + 0.3 + 3.75 + 6 + 15)
    assert cost.saved == pytest.approx(2.7)
    assert cost.writing == pytest.approx(0.75 + 3)
    plain = cost_of(Usage(0, 0, 500_000, 500_000, 0), Price(input=2, read=1, output=1))
    assert (plain.total, plain.writing) == (pytest.approx(2), pytest.approx(0))


def test_file_goes_over_the_built_in_table(tmp_path: Path) -> None:
    """Model by model; what it does not name stays."""
    path = tmp_path / "prices.json"
    mine = {"input": 1, "read": 0.5, "output": 2}
    path.write_text(json.dumps({"as_of": "2027-01-02", "models": {"gpt-5.2": mine, "own": mine}}))
    table = read_prices(str(path))
    assert table.as_of == date(2027, 1, 2)
    assert table.as_of_s == 1798848000
    assert [table.find(name) for name in ("gpt-5.2", "own")] == [
        (name, Price(1, 0.5, 2)) for name in ("gpt-5.2", "own")
    ]
    assert table.find("gpt-4.1") == read_prices(None).find("gpt-4.1")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"models": {}}',
        '{"as_of": "yesterday", "models": {}}',
        '{"as_of": "2027-01-02", "models": {"a": {"input": 1, "read": 1}}}',
        '{"as_of": "2027-01-02", "models": {"a": {"input": -1, "read": 1, "output": 1}}}',
        '{"as_of": "2027-01-02", "models": {"a": {"input": 1, "read": 1, "output": 1, "wrote": 1}}}',
    ],
)
def test_wrong_table_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"provider_prices: .*prices\.json: expected a table of prices"):
        read_prices(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(str(tmp_path / "none.json"))


def test_accounts_count_what_is_known_and_name_no_unknown_model() -> None:
    """Whoever makes up names makes no series."""
    metrics = RouterMetrics()
    accounts = Accounts(metrics.providers, read_prices(None))
    usage = Usage(10, 20, 30, 40, 50)
    accounts.answered(Provider.ANTHROPIC, "claude-sonnet-5", 200, usage)
    accounts.answered(Provider.ANTHROPIC, "made-up", 200, usage)
    accounts.answered(Provider.ANTHROPIC, None, None, None)
    page = metrics.page().decode()
    for model in ("claude-sonnet-5", "other"):
        for kind, count in (("input", 10), ("cache_read", 20), ("cache_write", 70), ("output", 50)):
            series = f'gc_provider_tokens_total{{kind="{kind}",model="{model}",provider="anthropic"}} {count}.0'
            assert series in page
    assert "made-up" not in page
    assert 'gc_provider_requests_total{provider="anthropic",status="none"} 1.0' in page
    assert metrics.providers.saved_usd.total == pytest.approx(20 * (2 - 0.2) / 1e6)
    assert metrics.providers.cache_write_usd.total == pytest.approx((30 * 0.5 + 40 * 2) / 1e6)
    assert metrics.providers.usd.total == pytest.approx((10 * 2 + 20 * 0.2 + 30 * 2.5 + 40 * 4 + 50 * 10) / 1e6)

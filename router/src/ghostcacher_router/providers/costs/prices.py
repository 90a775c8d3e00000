"""What tokens cost at providers: a table with its date, in `prices.json`, which a file of the user's goes over.

Prices change, differ by region and contract, and are the provider's to say: what is counted in dollars here is an
estimate, and no bill.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.providers.costs.usage import Usage

BUILT_IN: Final = Path(__file__).with_name("prices.json")
FILE_BYTES_MAX: Final = 4 << 20
_MILLION: Final = 1_000_000
_VERSION = re.compile(r"(?:[-@]\d{8}|-\d{4}-\d{2}-\d{2}|-latest|-v\d+(?::\d+)?)*")
"""What may stand behind a model's name in the table: the day or the number of a version. All else is another model."""
_REGION = re.compile(r"(?:[a-z-]+\.)?anthropic\.")
"""Stands before Anthropic's names at Bedrock."""

Usd = Annotated[float, Meta(ge=0, le=100_000)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens of a model cost, in USD."""

    input: Usd
    """Of the prompt."""
    read: Usd
    """Of the prompt, read from the cache."""
    output: Usd
    """Of the answer."""
    write: Usd | None = None
    """Of the prompt, written to the cache for the provider's usual time; None: as `input`."""
    write_long: Usd | None = None
    """The same for an hour or more; None: as `write`."""


class PriceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of prices."""

    as_of: date
    """The day on which they were looked up."""
    models: dict[str, Price]
    """By the name of the model, without the day of its version."""
    sources: list[str] = []
    """Where they were looked up."""
    currency: str = "USD per million tokens"
    """For people."""


class Cost(NamedTuple):
    """What an answer cost by the table, in USD."""

    total: float
    saved: float
    """What the tokens that were read from the cache would have cost more without it."""
    writing: float
    """What the tokens that were written to it cost more than without it."""


class PriceTable:
    """Prices by model. as_of: the day of the latest file that they are from."""

    def __init__(self, *files: PriceFile) -> None:
        """files: a later one goes over those before it."""
        self._prices = {name: price for file in files for name, price in file.models.items()}
        self.as_of = max(file.as_of for file in files)

    def __repr__(self) -> str:
        return f"PriceTable({len(self._prices)} models, {self.as_of})"

    @property
    def as_of_s(self) -> float:
        """Return that day as seconds since 1970."""
        return datetime(self.as_of.year, self.as_of.month, self.as_of.day, tzinfo=UTC).timestamp()

    def find(self, model: str) -> tuple[str, Price] | None:
        """Return a model's name in the table, and its price; None for one that is not in it."""
        name = _REGION.sub("", model, count=1)
        while True:
            price = self._prices.get(name)
            if price is not None and _VERSION.fullmatch(_REGION.sub("", model, count=1)[len(name) :]):
                return name, price
            cut = max(name.rfind("-"), name.rfind("@"))
            if cut <= 0:
                return None
            name = name[:cut]


def cost_of(usage: Usage, price: Price) -> Cost:
    """Return what an answer cost."""
    write = price.input if price.write is None else price.write
    write_long = write if price.write_long is None else price.write_long
    written = usage.written_tokens * write + usage.written_long_tokens * write_long
    writing = written - (usage.written_tokens + usage.written_long_tokens) * price.input
    total = usage.input_tokens * price.input + usage.read_tokens * price.read + usage.output_tokens * price.output
    saved = usage.read_tokens * (price.input - price.read)
    return Cost((total + written) / _MILLION, saved / _MILLION, writing / _MILLION)


def read_prices(path: str | None) -> PriceTable:
    """Return the built-in prices, and over them those of a file. Raises ConfigError."""
    built_in = msgspec.json.decode(BUILT_IN.read_bytes(), type=PriceFile)
    if path is None:
        return PriceTable(built_in)
    try:
        with Path(path).open("rb") as stream:
            given = msgspec.json.decode(stream.read(FILE_BYTES_MAX), type=PriceFile)
    except OSError as exc:
        raise ConfigError(f"provider_prices: {path} cannot be read: {exc.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"provider_prices: {path}: expected a table of prices, as prices.json is: {exc}") from None
    return PriceTable(built_in, given)

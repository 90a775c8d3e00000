"""The price of sending a worker more than its fair share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.signals.fair_shares import MS_EACH, MS_MAX, price_column, prices

COUNTS = st.lists(st.tuples(st.floats(0, 500), st.floats(0.1, 100)), min_size=1, max_size=40)


def test_nothing_is_dearer_up_to_a_quarter_more_than_the_share_and_four_requests() -> None:
    """Beyond that each request adds the same, up to a bound; whoever has less has no price."""
    assert prices([129.0, 71.0], [1.0, 1.0]) == [0.0, 0.0]
    assert prices([130.0, 70.0], [1.0, 1.0]) == [pytest.approx(MS_EACH), 0.0]
    assert prices([139.0, 61.0], [1.0, 1.0]) == [pytest.approx(10 * MS_EACH), 0.0]
    assert prices([200.0, 0.0], [1.0, 1.0]) == [MS_MAX, 0.0]


def test_few_requests_are_never_even() -> None:
    """A fleet that was sent a handful is left alone, and so is a worker that has nobody beside it."""
    assert prices([4.0, 0.0, 0.0, 0.0], [1.0] * 4) == [0.0] * 4
    assert prices([1000.0], [1.0]) == [0.0]
    assert prices([0.0, 0.0], [1.0, 1.0]) == [0.0, 0.0]


def test_share_is_as_the_speed() -> None:
    """A worker that is three times as fast is to get three times as much."""
    assert prices([300.0, 100.0], [3.0, 1.0]) == [0.0, 0.0]
    assert prices([100.0, 300.0], [3.0, 1.0]) == [0.0, MS_MAX]


@given(COUNTS)
def test_columns_say_the_same(counts: list[tuple[float, float]]) -> None:
    """None where the worker that is asked for has no price."""
    recent, speeds = zip(*counts, strict=True)
    expected = prices(recent, speeds)
    for place, price in enumerate(expected):
        found = price_column(np.array(recent), np.array(speeds), sum(speeds), place)
        if found is None:
            assert price == pytest.approx(0.0, abs=1e-6)
        else:
            assert found.tolist() == pytest.approx(expected, abs=1e-6)
    everybody = price_column(np.array(recent), np.array(speeds), sum(speeds))
    assert everybody is not None
    assert everybody.tolist() == pytest.approx(expected, abs=1e-6)

"""Measured figures of equal engines: the typical one, and how far others are believed to differ."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.signals.equal_engines import STEADY, TypicalEngine, shrunk

FIGURES = st.floats(0.001, 1000.0)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [(1.0, 1.0), (1.4, 1.0), (0.7, 1.0), (2.25, 2.25), (5.0, 5.0), (0.1, 0.1), (1.8, 1.44), (1 / 1.8, 1 / 1.44)],
)
def test_difference_counts_as_far_as_noise_does_not_explain_it(figure: float, expected: float) -> None:
    """Up to the noise for nothing, from its square on in full, and in part between, to both sides alike."""
    assert shrunk(figure, 1.0, 1.5) == pytest.approx(expected)


@given(FIGURES, FIGURES, FIGURES, st.floats(1.01, 4.0))
def test_shrinking_keeps_the_order_and_goes_towards_the_typical_engine(
    one: float, more: float, typical: float, noise: float
) -> None:
    """A slower engine never becomes the faster one, and none is taken further away than it measured."""
    low, high = sorted((one, more))
    assert shrunk(low, typical, noise) <= shrunk(high, typical, noise) * (1 + 1e-9)
    assert min(one, typical) * (1 - 1e-9) <= shrunk(one, typical, noise) <= max(one, typical) * (1 + 1e-9)


def test_without_a_typical_engine_the_figure_counts() -> None:
    """There is nothing to shrink it towards."""
    assert shrunk(7.0, None, 2.0) == 7.0


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | FIGURES), max_size=40))
def test_typical_figure_is_about_the_median_of_what_was_told_last(told: list[tuple[int, float | None]]) -> None:
    """Engines tell it, tell it anew and stop telling it, in any order."""
    typical, last = TypicalEngine(3.0), dict[int, float | None]()
    for engine, figure in told:
        before = typical.figure
        assert typical.replace(last.get(engine), figure) is (typical.figure != before)
        last[engine] = figure
        typical.check_invariants([one for one in last.values() if one is not None])
    figures = [one for one in last.values() if one is not None]
    expected = median(figures) if figures else 3.0
    assert typical.figure == pytest.approx(expected, rel=STEADY)
    assert typical.is_empty is (not figures)


def test_typical_figure_keeps_still_while_the_median_trembles() -> None:
    """What depends on it need not be made anew for each report of an engine."""
    typical = TypicalEngine()
    typical.replace(None, 100.0)
    assert not typical.replace(100.0, 100.9)
    assert typical.figure == 100.0
    assert typical.replace(100.9, 102.0)
    assert typical.figure == 102.0

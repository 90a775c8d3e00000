"""Shrinks measured figures of engines that should be equal towards each other, so that noise does not decide.

Engines of one namespace run the same model in the same way. What each of them measures of itself, such as its prefill
rate, differs all the same: by a tenth while it is busy, by much more where it goes by a calibration or by a few steps
of long ago. A forecast that took such differences at face value would send everything to the engine that was lucky when
it measured. So differences from the typical engine that noise explains count for nothing, those far beyond it in full,
and those between in part, without a jump. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from statistics import median

STEADY = 0.01
"""The typical figure is kept while the median is within this share of it: what is made of it need not be made anew."""


class TypicalEngine:
    """The median of one figure over some engines."""

    def __init__(self, guess: float | None = None) -> None:
        """guess: the figure while no engine has told one."""
        self._guess = guess
        self._figures: list[float] = []
        self.figure: float | None = guess
        """Within STEADY of the median; the guess while there is none."""

    @property
    def is_empty(self) -> bool:
        """Whether no engine has told this figure."""
        return not self._figures

    def replace(self, before: float | None, after: float | None) -> bool:
        """Replace what one engine told before by what it tells now; return whether the typical figure changes.

        None stands for nothing told. Figures are positive.
        """
        if before == after:
            return False
        if before is not None:
            del self._figures[bisect_left(self._figures, before)]
        if after is not None:
            insort(self._figures, after)
        found, known = self._median(), self.figure
        if self._figures and found and known and abs(found - known) <= STEADY * found:
            return False
        self.figure = found
        return found != known

    def _median(self) -> float | None:
        """Return the median of what is told; the guess where nothing is."""
        figures, middle = self._figures, len(self._figures) // 2
        if not figures:
            return self._guess
        return figures[middle] if len(figures) % 2 else (figures[middle - 1] + figures[middle]) / 2

    def check_invariants(self, figures: list[float]) -> None:
        """Assert that these figures, in any order, are what was told."""
        assert self._figures == sorted(figures), f"expected {sorted(figures)}, got {self._figures}"
        found = median(figures) if figures else self._guess
        assert self.figure == found or (self.figure and found and abs(found - self.figure) <= STEADY * found)


def shrunk(figure: float, typical: float | None, noise: float) -> float:
    """Return what a measured figure of an engine is taken for, among engines that should be equal to it.

    typical: of these engines; None when it is not known, which leaves the figure as it is.
    noise: the ratio to the typical figure, above 1, that noise explains. Up to it the result is the typical figure,
        from its square on the figure itself.
    """
    if typical is None:
        return figure
    ratio = figure / typical if figure > typical else typical / figure
    if ratio <= noise:
        return typical
    if ratio >= noise * noise:
        return figure
    part = (ratio / noise) ** 2
    return typical * part if figure > typical else typical / part

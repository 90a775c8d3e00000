"""Whether an engine's weights are those of its namespace: read when in doubt, named by what they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ghostcacher_connector.engines.common.weight_watch import WeightWatch
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from ghostcacher_connector.metrics import Recorder, summary


class Ranks:
    """What the ranks of one engine read."""

    def __init__(self, *digests: str) -> None:
        self.digests: Sequence[str] = digests
        self.reads = 0
        self.recorder = Recorder()
        self.watch = WeightWatch(self.read, self.recorder)

    def read(self) -> Sequence[str]:
        self.reads += 1
        if not self.digests:
            raise RuntimeError("a rank does not answer")
        return self.digests

    def change(self, *digests: str) -> bool:
        """Change what the ranks hold behind a call that says so; return what the watch finds."""
        self.watch.may_have_changed("a call")
        self.digests = digests
        return self.watch.settle()


def test_epoch_is_the_same_for_the_same_weights_only() -> None:
    """Two engines that were given the same end in one epoch, from wherever they came; a rank more or less counts."""
    a, b, one, mixed = Ranks("s0", "s1"), Ranks("other", "start"), Ranks("s0"), Ranks("s0", "s1")
    assert all(engine.change("x0", "x1") for engine in (a, b))
    assert one.change("x0")
    assert mixed.change("x1", "x0")
    assert a.watch.epoch == b.watch.epoch != WEIGHTS_AS_STARTED
    assert len({a.watch.epoch, one.watch.epoch, mixed.watch.epoch}) == 3


def test_weights_of_the_start_have_the_epoch_of_the_start() -> None:
    ranks = Ranks("s0", "s1")
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED
    assert ranks.change("x0", "s1")
    assert ranks.change("s0", "s1")
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED


def test_unchanged_weights_are_no_change() -> None:
    """And they are counted as none."""
    ranks = Ranks("s0")
    assert not ranks.change("s0")
    assert ranks.change("x0")
    assert not ranks.change("x0")
    assert summary(ranks.recorder.drain())["gc_weight_changes_total"] == 1.0


def test_ranks_that_do_not_answer_have_an_epoch_of_their_own() -> None:
    """Nobody shares with what nobody knows, not even twice the same silence."""
    ranks, other = Ranks("s0"), Ranks("s0")
    epochs = {WEIGHTS_AS_STARTED}
    for engine in (ranks, ranks, other):
        assert engine.change()
        epochs.add(engine.watch.epoch)
    assert len(epochs) == 4
    assert ranks.change("s0")
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED


def test_many_calls_are_one_look(caplog: pytest.LogCaptureFixture) -> None:
    """However many calls an update takes, the weights are read once, and the log names the first."""
    ranks = Ranks("s0")
    for why in ("start_weight_update", "update_weights", "finish_weight_update"):
        ranks.watch.may_have_changed(why)
    assert ranks.watch.doubt == "start_weight_update"
    with caplog.at_level("INFO"):
        ranks.watch.settle()
    assert ranks.reads == 2
    assert ranks.watch.doubt is None
    assert "start_weight_update: weights are as before" in caplog.text

"""Whether an engine's weights are those of its namespace: read when in doubt, named by what they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ghostcacher_connector.engines.common.weight_watch import READ_AGAIN_FIRST_S, READ_AGAIN_MAX_S, UNREAD, WeightWatch
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from ghostcacher_connector.metrics import Recorder, summary
from tests.support.index_parts import FakeClock


class Ranks:
    """What the ranks of one engine read."""

    def __init__(self, *digests: str) -> None:
        self.digests: Sequence[str] = digests
        self.reads = 0
        self.recorder = Recorder()
        self.clock = FakeClock()
        self.watch = WeightWatch(self.read, self.recorder, self.clock)

    def read(self) -> Sequence[str]:
        self.reads += 1
        if not self.digests:
            raise RuntimeError("a rank does not answer")
        return self.digests

    def readable(self, *digests: str) -> bool:
        """Have the ranks answer again; return what the watch finds when it is due."""
        self.digests = digests
        self.clock.advance(READ_AGAIN_MAX_S)
        assert self.watch.due
        return self.watch.settle()

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


@pytest.mark.parametrize("unread", [(), (f"{UNREAD}-1", "s1")], ids=["no-answer", "one-rank"])
def test_weights_that_could_not_be_read_are_read_again(unread: tuple[str, ...]) -> None:
    """Without another call: the worker comes back to the namespace of what its ranks hold."""
    ranks = Ranks("s0", "s1")
    assert ranks.change(*unread)
    private = ranks.watch.epoch
    assert ranks.readable("s0", "s1")
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED != private
    ranks.clock.advance(READ_AGAIN_MAX_S)
    assert not ranks.watch.due
    assert ranks.change(*unread)
    assert ranks.readable("x0", "s1")
    other = Ranks("s0", "s1")
    other.change("x0", "s1")
    assert ranks.watch.epoch == other.watch.epoch


def test_another_read_that_fails_changes_nothing() -> None:
    """Nobody has touched the weights meanwhile: they are as unknown as before, and what was shared stays."""
    ranks = Ranks("s0")
    assert ranks.change()
    private = ranks.watch.epoch
    assert not ranks.readable()
    assert ranks.watch.epoch == private
    assert ranks.readable("s0")


def test_reads_that_fail_become_seldom() -> None:
    """However long they fail: at first after a second, and never later than the longest pause."""
    ranks = Ranks("s0")
    ranks.change()
    reads = ranks.reads
    for _ in range(int(10 * READ_AGAIN_MAX_S)):
        ranks.clock.advance(1.0)
        if ranks.watch.due:
            ranks.watch.settle()
    assert 10 <= ranks.reads - reads < 30
    assert ranks.readable("s0")
    ranks.change()
    ranks.clock.advance(READ_AGAIN_FIRST_S)
    assert ranks.watch.due


def test_start_whose_weights_could_not_be_read_is_known_when_they_are() -> None:
    """Nothing has changed them yet, so that they are those of the start; sharing goes on meanwhile."""
    ranks = Ranks()
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED
    assert not ranks.readable("s0")
    assert ranks.change("x0")
    assert ranks.change("s0")
    assert ranks.watch.epoch == WEIGHTS_AS_STARTED


def test_start_that_was_never_read_is_nobodys_after_a_call() -> None:
    """What the ranks hold after a call may be anything, and is not taken for the start."""
    ranks = Ranks()
    assert ranks.change()
    assert ranks.readable("s0")
    assert ranks.watch.epoch != WEIGHTS_AS_STARTED


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

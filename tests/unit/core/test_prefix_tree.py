"""The radix tree, against a list of the sequences that it holds."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_connector.core.prefix_tree import PrefixTree, Run
from tests.unit.architecture import ROOT

# Few different items and short sequences, so that most of them share something.
sequences = st.lists(st.integers(0, 2), max_size=7).map(tuple)
Stored = list[tuple[int, ...]]


def shared(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return how many leading items are equal."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def matched(stored: Stored, sequence: tuple[int, ...]) -> int:
    return max((shared(each, sequence) for each in stored), default=0)


def counted(stored: Stored, prefix: tuple[int, ...]) -> int:
    return sum(each[: len(prefix)] == prefix for each in stored)


def prefixes(stored: Stored) -> set[tuple[int, ...]]:
    return {each[:length] for each in stored for length in range(1, len(each) + 1)}


def expected_runs(stored: Stored) -> set[tuple[tuple[int, ...], Run[int]]]:
    """Return the runs of a plain radix tree, each with its whole prefix."""
    known = prefixes(stored)
    ends = Counter(stored)
    followers = Counter(prefix[:-1] for prefix in known)
    cuts = {prefix for prefix in known if ends[prefix] or followers[prefix] != 1}
    found = set()
    for prefix in cuts:
        start = max((length for length in range(1, len(prefix)) if prefix[:length] in cuts), default=0)
        found.add((prefix, Run(start, prefix[start:], counted(stored, prefix), ends[prefix])))
    return found


class PrefixTreeMachine(RuleBasedStateMachine):
    """Whatever is inserted and removed, the tree says what the list of its sequences says."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: PrefixTree[int] = PrefixTree()
        self.stored: Stored = []

    @rule(sequence=sequences)
    def insert(self, sequence: tuple[int, ...]) -> None:
        assert self.tree.insert(list(sequence)) == matched(self.stored, sequence)
        self.stored.append(sequence)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.stored))
        self.tree.remove(sequence)
        self.stored.remove(sequence)

    @rule(sequence=sequences)
    def remove_what_is_not_there(self, sequence: tuple[int, ...]) -> None:
        if sequence not in self.stored:
            with pytest.raises(KeyError):
                self.tree.remove(sequence)

    @rule(sequence=sequences)
    def ask(self, sequence: tuple[int, ...]) -> None:
        assert self.tree.match(sequence) == matched(self.stored, sequence)
        assert self.tree.count(sequence) == counted(self.stored, sequence)
        assert (sequence in self.tree) == (sequence in self.stored)
        begun = [len(each) for each in self.stored if sequence[: len(each)] == each]
        assert self.tree.longest_stored(sequence) == max(begun, default=None)

    @invariant()
    def tree_is_whole(self) -> None:
        self.tree.check_invariants()
        assert len(self.tree) == len(self.stored)
        assert self.tree.item_count == len(prefixes(self.stored))

    @invariant()
    def runs_are_those_of_a_radix_tree(self) -> None:
        found = {}
        path: tuple[int, ...] = ()
        for run in self.tree.runs():
            # Depth first: each run goes on from one that was just seen.
            assert run.start <= len(path)
            path = path[: run.start] + run.items
            assert path not in found
            assert run.end == len(path)
            found[path] = run
        assert set(found.items()) == expected_runs(self.stored)


TestPrefixTree = PrefixTreeMachine.TestCase


@given(st.lists(sequences, min_size=1))
def test_insert_order_does_not_change_runs(stored: Stored) -> None:
    """The runs are those of the set of sequences, whichever made a path first."""
    forwards, backwards = PrefixTree(stored), PrefixTree(reversed(stored))
    assert sorted(forwards.runs()) == sorted(backwards.runs())


def test_runs_are_in_order_of_insertion() -> None:
    """At each fork what came first comes first, also where it goes along a longer path."""
    tree = PrefixTree(["abc", "xy", "abd", "abe", "af", "abcz", "x"])
    assert [("." * run.start) + "".join(run.items) for run in tree.runs()] == [
        "a", ".b", "..c", "...z", "..d", "..e", ".f", "x", ".y",
    ]  # fmt: skip
    assert next(tree.runs()) == Run(0, ("a",), through=5, ends=0)


def test_sequences_of_any_type_are_their_items() -> None:
    """Lists, tuples, text and iterators of equal items are one sequence, inserted four times."""
    tree: PrefixTree[Hashable] = PrefixTree([["a", "b"], ("a", "b"), "ab", iter("ab")])
    assert len(tree) == tree.count(["a"]) == 4
    assert tree.item_count == 2
    assert repr(tree) == "PrefixTree(sequences=4, items=2)"


def test_empty_sequences_count_and_match_nothing() -> None:
    tree: PrefixTree[int] = PrefixTree([(), ()])
    assert (len(tree), tree.match([1]), tree.longest_stored([1]), () in tree) == (2, 0, 0, True)
    tree.remove(())
    tree.remove(())
    with pytest.raises(KeyError):
        tree.remove(())
    assert tree.longest_stored([1]) is None


def test_a_longer_path_than_the_stack_is_deep() -> None:
    """Nothing is done by recursion: neither growth of a prefix nor forks at every item end at Python's limit."""
    depth = 3 * sys.getrecursionlimit()
    tree = PrefixTree([range(depth)])
    for fork in range(1, depth, 2):
        assert tree.insert([*range(fork), -fork]) == fork
    tree.check_invariants()
    assert sum(len(run.items) for run in tree.runs()) == tree.item_count == depth + depth // 2
    tree.remove(range(depth))
    tree.check_invariants()


def test_import_needs_the_standard_library_alone() -> None:
    """Nothing else is loaded, also not by the packages that it lies in."""
    code = (
        "import sys; before = set(sys.modules); import ghostcacher_connector.core.prefix_tree\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new))"
    )
    # -S: what site-packages load by themselves is no matter of ours.
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ghostcacher_connector']"

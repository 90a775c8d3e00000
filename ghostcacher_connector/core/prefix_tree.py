"""A radix tree over sequences: which of them begin as this one does, and for how long.

It imports nothing but the standard library, and can be used alone:

    tree = PrefixTree()
    tree.insert([1, 2, 3, 4])
    tree.insert([1, 2, 9])
    tree.match([1, 2, 3, 7])            # 3: so many leading items are the beginning of a sequence in the tree
    tree.longest_stored([1, 2, 9, 5])   # 3: the longest sequence of the tree with which this one begins
    tree.count([1, 2])                  # 2: so many sequences begin with these
    tree.remove([1, 2, 9])

The items are anything that can be a dictionary's key and equals itself: token ids, block hashes, characters, words.
Equal items are the same item, as everywhere in Python: 1 and 1.0 are. A sequence may be of any type, and is known by
its items alone: the list [1, 2] and the tuple (1, 2) are the same. One that is inserted n times counts n times.

How it is stored: a node is a path and not only a piece between two forks. The first sequence that begins in a new way
makes a node of all its items; one that follows it and then turns off hangs at the offset where it does so. Paths are
compared in one step at the speed of C. So `insert` and `match` take one step for each time that a sequence turns off a
path, however many others turn off before that, and never divide a node. The public view (`runs`) is that of a plain
radix tree, in which runs of items end where something ends or forks.

Not safe for use by several threads at once where one of them writes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import compress, count
from operator import ne
from typing import Any, Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Run(NamedTuple, Generic[Item]):
    """A run of items of the tree, in which nothing ends and nothing forks but behind the last of them."""

    start: int
    """How many items stand before the run: the length of the prefix from which it goes on."""
    items: tuple[Item, ...]
    """The items of the run, at least one."""
    through: int
    """How many sequences have all of the run: insertions, less removals."""
    ends: int
    """How many of them end with it."""

    @property
    def end(self) -> int:
        """Return the length of the prefix that ends with the run."""
        return self.start + len(self.items)


class _Path(Generic[Item]):
    """A node: items, and what ends or turns off where. Offsets count the path's items that stand before."""

    __slots__ = ("branches", "ends", "items", "through")

    def __init__(self, items: tuple[Item, ...]) -> None:
        self.items = items
        self.through = 1
        """How many sequences come here; some of them end or turn off before the path's end."""
        self.ends = {len(items): 1}
        """Offset -> how many sequences end there; always some at the end of the path."""
        self.branches: dict[tuple[int, Item], _Path[Item]] = _NONE
        """Offset and first item -> the path that begins with it there; none at the end of the path, nor at offset 0."""


_NONE: Final[dict[Any, Any]] = {}
"""The branches of every path that has none: most have none, and a dictionary is large. Never written to."""


class PrefixTree(Generic[Item]):
    """A multiset of sequences, with longest-prefix match."""

    def __init__(self, sequences: Iterable[Iterable[Item]] = ()) -> None:
        """sequences: are inserted in their order."""
        self._roots: dict[Item, _Path[Item]] = {}
        self._empty = 0
        self._size = 0
        self._item_count = 0
        for sequence in sequences:
            self.insert(sequence)

    def __repr__(self) -> str:
        return f"PrefixTree(sequences={self._size}, items={self._item_count})"

    def __len__(self) -> int:
        """Return how many sequences there are, equal ones counted as often as they were inserted."""
        return self._size

    def __contains__(self, sequence: Iterable[Item]) -> bool:
        """Say whether this very sequence was inserted."""
        items = tuple(sequence)
        if not items:
            return self._empty > 0
        steps, matched = self._walk(items)
        return matched == len(items) and steps[-1][1] in steps[-1][0].ends

    @property
    def item_count(self) -> int:
        """Return how many items the tree holds: a prefix that several sequences share is counted once."""
        return self._item_count

    def insert(self, sequence: Iterable[Item]) -> int:
        """Add a sequence; return what `match` would have returned before."""
        items = sequence if type(sequence) is tuple else tuple(sequence)
        size = len(items)
        self._size += 1
        if not size:
            self._empty += 1
            return 0
        path = self._roots.get(items[0])
        if path is None:
            self._roots[items[0]] = _Path(items)
            self._item_count += size
            return 0
        start = 0
        while True:
            path.through += 1
            run = path.items
            offset = len(run)
            rest = items[start : start + offset]
            # Comparing all at once finds soonest that nothing differs. Where others turn off, something will; where is
            # then found without a loop in Python.
            if path.branches or rest != run:
                offset = next(compress(count(), map(ne, run, rest)), len(rest))
            start += offset
            if start == size:
                path.ends[offset] = path.ends.get(offset, 0) + 1
                return size
            branch = path.branches.get((offset, items[start]))
            if branch is None:
                self._go_on(path, offset, items[start:])
                return start
            path = branch

    def remove(self, sequence: Iterable[Item]) -> None:
        """Take a sequence away, once. Raises KeyError, and changes nothing, when it is not in the tree."""
        items = tuple(sequence)
        if items not in self:
            raise KeyError(items)
        self._size -= 1
        if not items:
            self._empty -= 1
            return
        steps, _ = self._walk(items)
        for path, _ in steps:
            path.through -= 1
        last, offset = steps[-1]
        last.ends[offset] -= 1
        if last.ends[offset] == 0:
            del last.ends[offset]
        if last.through:
            self._shorten(last)
            return
        self._item_count -= len(last.items)
        if len(steps) == 1:
            del self._roots[items[0]]
        else:
            parent, turned_off = steps[-2]
            del parent.branches[turned_off, last.items[0]]

    def match(self, sequence: Iterable[Item]) -> int:
        """Return how many leading items of a sequence are the beginning of one in the tree: from 0 to its length."""
        items = sequence if type(sequence) is tuple else tuple(sequence)
        size = len(items)
        path = self._roots.get(items[0]) if size else None
        start = 0
        while path is not None:
            run = path.items
            offset = len(run)
            rest = items[start : start + offset]
            # Comparing all at once finds soonest that nothing differs. Where others turn off, something will; where is
            # then found without a loop in Python.
            if path.branches or rest != run:
                offset = next(compress(count(), map(ne, run, rest)), len(rest))
            start += offset
            if start == size:
                break
            path = path.branches.get((offset, items[start]))
        return start

    def longest_stored(self, sequence: Iterable[Item]) -> int | None:
        """Return the length of the longest sequence of the tree with which this one begins; None when there is none.

        Takes a step more than `match` for each place where a sequence ends on the paths that this one follows.
        """
        found = 0 if self._empty else None
        start = 0
        for path, offset in self._walk(tuple(sequence))[0]:
            longest = max((end for end in path.ends if end <= offset), default=0)
            if longest:
                found = start + longest
            start += offset
        return found

    def count(self, prefix: Iterable[Item]) -> int:
        """Return how many sequences begin with these items; for no items, how many there are.

        Takes a step more than `match` for each place where one ends or turns off the path on which the prefix ends.
        """
        items = tuple(prefix)
        if not items:
            return self._size
        steps, matched = self._walk(items)
        if matched < len(items):
            return 0
        path, offset = steps[-1]
        ended = sum(number for end, number in path.ends.items() if end < offset)
        turned_off = sum(branch.through for (place, _), branch in path.branches.items() if place < offset)
        return path.through - ended - turned_off

    def runs(self) -> Iterator[Run[Item]]:
        """Yield each run of the tree once: a run before all that go on from it, these in order of insertion.

        So the order is depth first. The tree must not change meanwhile.
        """
        stack = [(0, path) for path in reversed(self._roots.values())]
        while stack:
            start, path = stack.pop()
            forks: dict[int, list[_Path[Item]]] = {}
            for (offset, _), branch in path.branches.items():
                forks.setdefault(offset, []).append(branch)
            through, done = path.through, 0
            for offset in sorted({*path.ends, *forks}):
                ends = path.ends.get(offset, 0)
                yield Run(start + done, path.items[done:offset], through, ends)
                branches = forks.get(offset, [])
                through -= ends + sum(branch.through for branch in branches)
                done = offset
                # What goes on along the path comes first; what turns off last, last.
                stack.extend((start + offset, branch) for branch in reversed(branches))

    def check_invariants(self) -> None:
        """Assert that the tree is what it should be. Takes as long as walking over all of it."""
        assert not _NONE, "branches that all paths share were written to"
        assert self._size == self._empty + sum(path.through for path in self._roots.values()), "every sequence begins"
        item_count = 0
        stack = [(first, path) for first, path in self._roots.items()]
        while stack:
            first, path = stack.pop()
            length = len(path.items)
            assert path.items[0] == first, "a path hangs under another item than its first"
            assert length in path.ends, "something ends where a path ends"
            assert all(0 < end <= length and number > 0 for end, number in path.ends.items()), "ends lie on their path"
            gone = sum(path.ends.values()) + sum(branch.through for branch in path.branches.values())
            assert path.through == gone, "every sequence ends or turns off"
            for (offset, item), branch in path.branches.items():
                assert 0 < offset < length, "paths turn off before the end"
                assert item != path.items[offset], "what goes on does not turn off"
                stack.append((item, branch))
            item_count += length
        assert item_count == self._item_count, f"expected {self._item_count} items, found {item_count}"

    def _walk(self, items: tuple[Item, ...]) -> tuple[list[tuple[_Path[Item], int]], int]:
        """Return the paths that a sequence follows, each with the offset up to which it does, and `match`."""
        steps: list[tuple[_Path[Item], int]] = []
        path = self._roots.get(items[0]) if items else None
        start = 0
        while path is not None:
            rest = items[start : start + len(path.items)]
            offset = next(compress(count(), map(ne, path.items, rest)), len(rest))
            steps.append((path, offset))
            start += offset
            path = path.branches.get((offset, items[start])) if start < len(items) else None
        return steps, start

    def _go_on(self, path: _Path[Item], offset: int, rest: tuple[Item, ...]) -> None:
        """Add what a sequence has beyond an offset of a path, which the path has not."""
        self._item_count += len(rest)
        if offset == len(path.items):
            path.items += rest
            path.ends[len(path.items)] = 1
            return
        if path.branches is _NONE:
            path.branches = {}
        path.branches[offset, rest[0]] = _Path(rest)

    def _shorten(self, path: _Path[Item]) -> None:
        """Cut off the end of a path where nothing ends any more. A branch there becomes the path's end."""
        used = max(max(path.ends, default=0), max((offset for offset, _ in path.branches), default=0))
        self._item_count -= len(path.items) - used
        path.items = path.items[:used]
        key = next((key for key in path.branches if key[0] == used), None)
        if key is None:
            return
        branch = path.branches.pop(key)
        path.items += branch.items
        path.ends |= {used + end: number for end, number in branch.ends.items()}
        path.branches |= {(used + offset, item): inner for (offset, item), inner in branch.branches.items()}

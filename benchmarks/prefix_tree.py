"""How many sequences of 100 tokens a second the radix tree takes and finds, on one core.

    python -m benchmarks.prefix_tree [--short]

The limit in the same run is a plain dictionary of tuples, which finds whole sequences and no prefix. Target: 150,000
insertions and 150,000 look-ups a second. Times are CPU time of the process, and the best of several rounds: other
programs on the machine still slow both down, so trust the ratios.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.harness.report import table
from ghostcacher_connector.core.prefix_tree import PrefixTree

TOKENS = 100
VOCABULARY = 50_000
TARGET_PER_S = 150_000
Sequences = list[list[int]]


def loads(count: int) -> Iterator[tuple[str, Sequences]]:
    """Yield what each load is, and its sequences."""
    source = random.Random(1)

    def tokens(number: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(number)]

    def turned_off(document: list[int]) -> list[int]:
        kept = source.randrange(TOKENS)
        return document[:kept] + tokens(TOKENS - kept)

    documents = [tokens(TOKENS) for _ in range(count // 100)]
    yield "nothing shared", [tokens(TOKENS) for _ in range(count)]
    yield "64 tokens of a document, then 36 others", [source.choice(documents)[:64] + tokens(36) for _ in range(count)]
    yield "any part of a document, then others", [turned_off(source.choice(documents)) for _ in range(count)]
    yield "documents again and again", [list(source.choice(documents)) for _ in range(count)]
    yield "coins: a fork at each of 14 tokens", [[source.randrange(2) for _ in range(TOKENS)] for _ in range(count)]


def best_s(work: Callable[[], object], rounds: int) -> float:
    """Return the least CPU time that some work took, in s."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def measured(sequences: Sequences, rounds: int) -> tuple[float, float, float, float]:
    """Return what one insertion and one look-up cost, in s: first the tree's, then the dictionary's."""
    # Equal tokens that are other objects, as they are when another request brings them.
    asked = [[token + VOCABULARY - VOCABULARY for token in sequence] for sequence in sequences]
    # The collector should look at what is measured, and not at what it is measured with.
    gc.collect()
    gc.freeze()
    tree = PrefixTree(sequences)
    known = {tuple(sequence): True for sequence in sequences}

    def look_up(find: Callable[[list[int]], object]) -> None:
        for sequence in asked:
            find(sequence)

    seconds = (
        best_s(lambda: PrefixTree(sequences), rounds),
        best_s(lambda: look_up(tree.match), rounds),
        best_s(lambda: {tuple(sequence): True for sequence in sequences}, rounds),
        best_s(lambda: look_up(lambda sequence: known[tuple(sequence)]), rounds),
    )
    gc.unfreeze()
    insert, match, dict_insert, dict_find = (each / len(sequences) for each in seconds)
    return insert, match, dict_insert, dict_find


def row_of(name: str, times: Sequence[float]) -> list[str]:
    insert, match, dict_insert, dict_find = times
    rates = [f"{1 / each:,.0f}" for each in (insert, match)]
    return [name, *rates, f"{insert / dict_insert:.1f}", f"{match / dict_find:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="fewer sequences and rounds, for CI")
    options = parser.parse_args()
    count, rounds = (5_000, 3) if options.short else (50_000, 7)
    rows = [row_of(name, measured(sequences, rounds)) for name, sequences in loads(count)]
    heads = (f"{count:,} sequences of {TOKENS} tokens", "inserts/s", "look-ups/s", "x dict's time", "x dict's time")
    print(table(heads, rows))
    print(f"\ntarget: {TARGET_PER_S:,} of both a second. x dict's time: against a dict of tuples in the same run")


if __name__ == "__main__":
    main()

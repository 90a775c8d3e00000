"""A bounded cache of small values that forgets what was not used for long.

It has two generations. What is put, or found in the old generation, goes into the young one. When the young generation
holds half of the entries allowed, or is half of the time to live old, it becomes the old one, and the old one is
forgotten as a whole. Finding a young entry writes nothing, and an entry carries neither links nor a time. In exchange
the moment of forgetting is not exact: a value goes when it was not used for between half and all of the time to live,
or while half as many entries as allowed were put or found again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

Table = dict[bytes, bytes]


class TwoGenerationCache:
    """Maps (namespace, key) to a value. entries_max: the limit over all namespaces, at least 2."""

    def __init__(self, *, entries_max: int, ttl_s: float, clock: Callable[[], float]) -> None:
        assert entries_max > 1
        assert ttl_s > 0
        self._young_max = entries_max // 2
        self._period_s = ttl_s / 2
        self._clock = clock
        self._young: dict[str, Table] = {}
        self._old: dict[str, Table] = {}
        self._young_count = 0
        self._born = clock()

    def __len__(self) -> int:
        return sum(len(table) for tables in (self._young, self._old) for table in tables.values())

    def find(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none. What is found counts as used."""
        self._age()
        young = self._young.get(namespace, {})
        values = list(map(young.get, keys))
        old = self._old.get(namespace)
        if old:
            for index, key in enumerate(keys):
                if values[index] is None and (value := old.get(key)) is not None:
                    values[index] = value
                    self._put(namespace, key, value)
        return values

    def from_last(self, namespace: str, keys: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield index and value of each key that has one, from the last key on. What is yielded counts as used."""
        self._age()
        young, old = self._young.get(namespace, {}), self._old.get(namespace)
        index = len(keys)
        for value in map(young.get, reversed(keys)):
            index -= 1
            if value is not None:
                yield index, value
            elif old and (value := old.get(keys[index])) is not None:
                self._put(namespace, keys[index], value)
                yield index, value

    def put(self, namespace: str, values: Mapping[bytes, bytes]) -> None:
        """Enter values, by key; each takes the place of an earlier one."""
        self._age()
        if self._young_count + len(values) > self._young_max:
            for key, value in values.items():
                self._put(namespace, key, value)
            return
        young = self._young.setdefault(namespace, {})
        count = len(young)
        young.update(values)
        self._young_count += len(young) - count
        if old := self._old.get(namespace):
            for key in old.keys() & values.keys():
                del old[key]

    def drop(self, key: bytes) -> None:
        """Forget a key in every namespace."""
        for table in self._young.values():
            self._young_count -= table.pop(key, None) is not None
        for table in self._old.values():
            table.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old, self._young_count = {}, {}, 0

    def _put(self, namespace: str, key: bytes, value: bytes) -> None:
        young = self._young.setdefault(namespace, {})
        if key not in young:
            if self._young_count >= self._young_max:
                self._change_generations()
                young = self._young.setdefault(namespace, {})
            self._old.get(namespace, {}).pop(key, None)
            self._young_count += 1
        young[key] = value

    def _age(self) -> None:
        """Change generations once for each period that has passed."""
        periods = (self._clock() - self._born) // self._period_s
        if periods >= 1:
            self._change_generations()
            if periods > 1:
                self._change_generations()
            self._born += periods * self._period_s

    def _change_generations(self) -> None:
        self._old, self._young, self._young_count = self._young, {}, 0

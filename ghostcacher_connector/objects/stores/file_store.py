"""Objects as files below a folder, which the workers of one machine share, or of many over a network file system.

A file is written under a temporary name and then linked to its own, which fails where that exists: nobody sees a part
of a file, and nobody's file is replaced. Nothing is synced: what a machine that loses power tears shows in its
checksums.

Files are written with O_DIRECT where the file system has it: as fast as the disk, and at a third of the CPU time or
less, while writes through the page cache stall once too much of it is dirty. Reads go through the page cache.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ghostcacher_connector.objects.stores.base import TEMPORARY, ListedObject, ObjectStore, StoreError, StoreFault

DIRECT_ALIGN = 4096
"""What O_DIRECT asks of addresses, offsets and sizes on the disks that there are."""

_FAULTS = {
    errno.ENOENT: StoreFault.MISSING,
    errno.EACCES: StoreFault.REFUSED,
    errno.EPERM: StoreFault.REFUSED,
    errno.EROFS: StoreFault.REFUSED,
    errno.ENOSPC: StoreFault.FULL,
    errno.EDQUOT: StoreFault.FULL,
    errno.EFBIG: StoreFault.FULL,
    errno.ETIMEDOUT: StoreFault.TIMEOUT,
    errno.ESTALE: StoreFault.UNREACHABLE,
    errno.EHOSTDOWN: StoreFault.UNREACHABLE,
}
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK})
"""What `link` says on a file system without hard links."""


class FileStore(ObjectStore):
    """Files below one folder."""

    def __init__(self, folder: Path) -> None:
        """folder: is made when something is first written."""
        self._folder = folder

    def __repr__(self) -> str:
        return f"FileStore({self._folder})"

    def create(self, name: str, data: memoryview) -> bool:
        path = self._folder / name
        partial = self._folder / TEMPORARY / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            if path.exists():
                return False
            _made(partial.parent)
            try:
                _write(partial, data)
                _made(path.parent)
                return _linked(partial, path)
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise _store_error(f"writing {name}", error) from error

    def read(self, name: str, size_bytes: int) -> memoryview:
        data = np.empty(size_bytes, np.uint8)
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # All of it at once: the kernel's own reading ahead begins small with each file.
                os.posix_fadvise(fd, 0, size_bytes, os.POSIX_FADV_WILLNEED)
                got = _complete(lambda at: os.preadv(fd, [data[at:].data], at), size_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            raise _store_error(f"reading {name}", error) from error
        return data.data[:got]

    def walk(self, prefix: str, count_max: int) -> Iterator[ListedObject]:
        left = count_max
        folders = [self._folder / prefix]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(Path(entry.path))
                            continue
                        with suppress(FileNotFoundError):
                            facts = entry.stat(follow_symlinks=False)
                            name = str(Path(entry.path).relative_to(self._folder))
                            yield ListedObject(name, facts.st_size, facts.st_mtime)
                            left -= 1
                        if left <= 0:
                            return
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _store_error(f"listing {prefix}", error) from error

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise _store_error(f"deleting {name}", error) from error

    def move(self, name: str, to: str) -> None:
        try:
            _made((self._folder / to).parent)
            (self._folder / name).rename(self._folder / to)
        except OSError as error:
            raise _store_error(f"moving {name}", error) from error


def _made(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, data: memoryview) -> None:
    fd = _open_new(path, data)
    try:
        written = _complete(lambda at: os.pwrite(fd, data[at:], at), len(data))
        if written < len(data):
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes")
    finally:
        os.close(fd)


def _open_new(path: Path, data: memoryview) -> int:
    """Open a new file for writing, past the page cache where file system and memory allow it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    address = np.frombuffer(data, np.uint8).ctypes.data if len(data) else 0
    if len(data) % DIRECT_ALIGN == 0 and address % DIRECT_ALIGN == 0:
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)
    return os.open(path, flags, 0o600)


def _complete(move: Callable[[int], int], size_bytes: int) -> int:
    """Call `move` with how many bytes are done, until all are or it moves none; return how many are done."""
    done = 0
    while done < size_bytes:
        count = move(done)
        if count == 0:
            break
        done += count
    return done


def _linked(partial: Path, path: Path) -> bool:
    """Give a finished file its own name; return False where that is taken."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Two writers at the same instant both come through here: their files are equal.
        if path.exists():
            return False
        partial.rename(path)
    return True


def _store_error(what: str, error: OSError) -> StoreError:
    return StoreError(_FAULTS.get(error.errno or 0, StoreFault.OTHER), f"{what}: {error.strerror}")

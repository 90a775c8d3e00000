"""The Redis of the chart, started with its own script, rules and configuration by a real server."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_connector.core.redis.embedded import find_server
from tests.support.emulated_reads import wait_until
from tests.support.helm_chart import SECRETS, needs_tools, rendered

pytestmark = needs_tools

PROGRAMS = ("worker", "router", "doctor")


class Laid:
    """A folder with all that the container would have, at a port of loopback."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        data = next(each for each in rendered("plain") if each["kind"] == "ConfigMap")["data"]
        # What a container has for itself: all addresses, and its folder.
        config = data["redis.conf"].replace("dir /run/redis", f"dir {folder}")
        config = config.replace("port 6379", f"port {self.port}\nbind 127.0.0.1")
        self.files = {name: folder / name for name in ("redis.conf", "users.acl", "start.sh")}
        for name, path in self.files.items():
            path.write_text(config if name == "redis.conf" else data[name])
        self.passwords = folder / "passwords"
        self.passwords.mkdir()
        for program in PROGRAMS:
            name = f"redis-{program}-password"
            (self.passwords / name).write_text(SECRETS[name])
        self.users = folder / "made.acl"
        (folder / "bin").mkdir()
        (folder / "bin" / "redis-server").symlink_to(find_server())
        self.env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        self.log = folder / "log"

    @property
    def command(self) -> list[str]:
        """What the container runs, with our folders."""
        files = self.files
        places = [self.passwords, files["users.acl"], self.users, files["redis.conf"]]
        return ["sh", *map(str, [files["start.sh"], *places])]

    def client(self, user: str, password: str) -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=password, socket_timeout=5, retry=None)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    found = Laid(tmp_path_factory.mktemp("redis"))
    server = GuardedProcess(found.command, log=found.log, env=found.env)

    def answers() -> bool:
        assert server.poll() is None, found.log.read_text()
        with contextlib.suppress(redis.ConnectionError):
            found.client("gc-doctor", SECRETS["redis-doctor-password"]).ping()
            return True
        return False

    try:
        wait_until(answers)
        yield found
    finally:
        server.stop()


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_gets_in_with_its_password_alone(laid: Laid, program: str) -> None:
    """The user's own password is taken and no other one, and it may do no more than its list says."""
    user, password = f"gc-{program}", SECRETS[f"redis-{program}-password"]
    laid.client(user, password).get("gc2:any")
    with pytest.raises(redis.AuthenticationError):
        laid.client(user, SECRETS["index-key"]).get("gc2:any")
    for words in (["FLUSHALL"], ["CONFIG", "GET", "*"], ["ACL", "LIST"], ["GET", "other:key"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            laid.client(user, password).execute_command(*words)


def test_nobody_gets_in_without_a_user(laid: Laid) -> None:
    """The default user is off."""
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=laid.port, socket_timeout=5, retry=None).get("gc2:any")


def test_worker_uses_it_as_its_index(laid: Laid) -> None:
    """What a worker runs at its start works with these users."""
    index = RedisIndex(f"redis://gc-worker:{SECRETS['redis-worker-password']}@127.0.0.1:{laid.port}/0", timeout_s=5)
    try:
        assert list(index.workers(None)) == []
    finally:
        index.close()


def test_memory_is_bounded_and_entries_may_go(laid: Laid) -> None:
    """As the doctor wants it: a bound, and volatile-lru."""
    found = laid.client("gc-doctor", SECRETS["redis-doctor-password"]).info("memory")
    assert found["maxmemory"] == 12 << 30
    assert found["maxmemory_policy"] == "volatile-lru"


def test_only_hashes_are_written(laid: Laid) -> None:
    """No password stands in the file of users, which nobody but its owner reads."""
    text = laid.users.read_text()
    assert not any(SECRETS[f"redis-{program}-password"] in text for program in PROGRAMS)
    assert "HASH_OF" not in text
    assert laid.users.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_missing_password_ends_it(tmp_path: Path, text: str | None) -> None:
    """It does not start with a user that anybody could be, and says which file is meant."""
    found = Laid(tmp_path)
    path = found.passwords / "redis-router-password"
    path.unlink() if text is None else path.write_text(text)
    ended = subprocess.run(found.command, env=found.env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert str(path) in ended.stderr
    assert not found.users.exists()

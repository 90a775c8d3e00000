"""The InferencePool of a Kubernetes cluster: which pods belong to it, read from the API again and again.

    pool object --selector, targetPorts--> pods with these labels --ready, each port--> the fleet's workers by URL

A pod that also is in Redis is one worker, and its record wins, as ever. Workers that are in Redis alone are not picked:
they may belong to another pool. While the API does not answer, the pool stays as it was.

Pods say by the label `llm-d.ai/role` what they do where prefill and decode are apart, as llm-d labels them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.fleet.forever import forever
from ghostcacher_router.types import Endpoint

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GROUP = "inference.networking.k8s.io/v1"
ROLE_LABEL = "llm-d.ai/role"

POLL_S = 2.0
"""A pod that is gone is found out by its probes, and by requests, sooner than that."""
ANSWER_S_MAX = 5.0
ANSWER_BYTES_MAX = 64 << 20
PAGE_PODS = 500
PAGES_MAX = 20
HTTP_OK = 200


class PoolUnread(Exception):
    """The API did not answer, or not with a pool and its pods."""


class Member(NamedTuple):
    """A port of a pod of the pool."""

    endpoint: Endpoint
    role: PdRole | None


class KubernetesApi:
    """Reads objects of a cluster. Blocks; one call at a time."""

    def __init__(self, url: str, *, account: Path = ACCOUNT) -> None:
        """url: of the API server. account: the folder with token and ca.crt; the token is read for each call."""
        self._url, self._account = urlsplit(url), account

    def __repr__(self) -> str:
        return f"KubernetesApi({self._url.netloc})"

    @classmethod
    def of_pod(cls) -> KubernetesApi:
        """Return the API of the cluster that this process is a pod of. Raises ConfigError outside of one."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
        if not host or not port or not (ACCOUNT / "token").exists():
            raise ConfigError(
                "pool: expected to run in a pod with a service account's token, to read it from the Kubernetes API"
            )
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}")

    def get(self, path: str) -> Any:
        """Return an object. Raises PoolUnread."""
        try:
            connection = self._connect()
            try:
                token = (self._account / "token").read_text().strip()
                headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                data = answer.read(ANSWER_BYTES_MAX + 1)
            finally:
                connection.close()
        except (OSError, HTTPException) as exc:
            raise PoolUnread(f"the Kubernetes API does not answer: {exc or type(exc).__name__}") from exc
        except ValueError:  # Which would show the token.
            raise PoolUnread("the service account's token cannot be sent: expected one line of ASCII") from None
        if answer.status != HTTP_OK or len(data) > ANSWER_BYTES_MAX:
            raise PoolUnread(f"GET {path[:200]}: expected status 200, got {answer.status} {data[:200]!r}")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise PoolUnread(f"GET {path[:200]}: expected JSON: {exc}") from exc

    def _connect(self) -> HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return HTTPConnection(host, port, timeout=ANSWER_S_MAX)
        context = ssl.create_default_context(cafile=self._account / "ca.crt")
        return HTTPSConnection(host, port, timeout=ANSWER_S_MAX, context=context)


class PoolWatch:
    """Keeps the fleet's workers by URL as the pool has them. On the event loop only, but for `read`.

    members: `ip:port` of all; empty before it was read. It is the same object until they change.
    """

    def __init__(
        self, api: KubernetesApi, pool: str, follow: Callable[[list[Endpoint], Mapping[Endpoint, PdRole]], None]
    ) -> None:
        """pool: namespace/name. follow: takes the workers by URL, and what they do, each time that they change."""
        self._api, self._follow = api, follow
        self._namespace, _, self._name = pool.partition("/")
        self.members: frozenset[str] = frozenset()
        self.has_read = False
        """Whether it was read at least once."""
        self._trouble: str | None = None
        self._known: list[Member] = []
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"PoolWatch({self._namespace}/{self._name}, members={len(self.members)})"

    async def start(self) -> None:
        """Read it once, for a bounded time, and then again and again."""
        await self.look()
        self._task = forever(self.look, POLL_S)

    async def stop(self) -> None:
        """Read it no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Read it once. When that fails it stays as it was."""
        try:
            found = await asyncio.to_thread(self.read)
        except PoolUnread as exc:
            if str(exc) != self._trouble:
                logger.warning("pool %s/%s stays as it was: %s", self._namespace, self._name, exc)
            self._trouble = str(exc)
            return
        self._trouble, self.has_read = None, True
        if found != self._known:
            self._known = found
            self.members = frozenset(member.endpoint.name for member in found)
            logger.info("pool %s/%s: %d endpoints", self._namespace, self._name, len(found))
            roles = {member.endpoint: member.role for member in found if member.role is not None}
            self._follow([member.endpoint for member in found], roles)

    def read(self) -> list[Member]:
        """Return the ready members, in order of name. Blocks; raises PoolUnread."""
        pool = self._api.get(f"/apis/{GROUP}/namespaces/{self._namespace}/inferencepools/{quote(self._name)}")
        try:
            labels, ports = pool["spec"]["selector"]["matchLabels"], pool["spec"]["targetPorts"]
            numbers = [int(port["number"]) for port in ports]
            selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
            found = [member for pod in self._pods(selector) for member in _members(pod, numbers)]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise PoolUnread(f"expected an InferencePool of {GROUP} and pods, got none: {exc!r}") from exc
        return sorted(found, key=lambda member: member.endpoint)

    def _pods(self, selector: str) -> Iterator[Mapping[str, Any]]:
        after = ""
        for _ in range(PAGES_MAX):
            query = {"labelSelector": selector, "limit": PAGE_PODS} | ({"continue": after} if after else {})
            page = self._api.get(f"/api/v1/namespaces/{self._namespace}/pods?{urlencode(query)}")
            yield from page["items"]
            after = page["metadata"].get("continue", "")
            if not after:
                return
        raise PoolUnread(f"expected at most {PAGES_MAX * PAGE_PODS} pods, got more")


def _members(pod: Mapping[str, Any], ports: list[int]) -> Iterator[Member]:
    """Yield the ports of a pod that is ready and does not end."""
    status, metadata = pod.get("status", {}), pod["metadata"]
    conditions = status.get("conditions") or ()
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    address = status.get("podIP")
    if not ready or not address or metadata.get("deletionTimestamp"):
        return
    label = metadata.get("labels", {}).get(ROLE_LABEL)
    role = PdRole(label) if label in set(PdRole) else None
    for port in ports:
        yield Member(Endpoint(str(address), port, False, ""), role)

"""The InferencePool of a Kubernetes cluster: which pods belong to it, read from the API again and again.

    pool object --selector, targetPorts--> pods with these labels --ready, each port--> the fleet's workers by URL

A pod that also is in Redis is one worker, and its record wins, as ever. Workers that are in Redis alone are not picked:
they may belong to another pool. While the API does not answer, the pool stays as it was. A pool that is deleted has no
pods, and its picker is not ready, as with the extension's own picker.

Pods say by the label `llm-d.ai/role` what they do where prefill and decode are apart, as llm-d labels them, and by an
annotation which of the pool's ports they serve, where that is not all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httptools
import msgspec

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.epp.cluster_objects import Failure, Pod, PodList, Pool
from ghostcacher_router.fleet.forever import forever
from ghostcacher_router.fleet.probes import Answer, read_answer
from ghostcacher_router.types import Endpoint

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GROUP = "inference.networking.k8s.io/v1"
ROLE_LABEL = "llm-d.ai/role"
ACTIVE_PORTS = "inference.networking.k8s.io/active-ports"
"""Annotation of a pod: which of the pool's ports it serves, separated by commas."""

POLL_S = 2.0
"""A pod that is gone is found out by its probes, and by requests, sooner than that."""
ANSWER_S_MAX = 5.0
"""From connecting to the last byte."""
ANSWER_BYTES_MAX = 64 << 20
PAGE_PODS = 250
PAGES_MAX = 40
HTTP_OK, HTTP_NOT_FOUND = 200, 404

_T = TypeVar("_T")


class PoolUnread(Exception):
    """The API did not answer, or not with a pool and its pods."""


class PoolGone(Exception):
    """The API says that there is no such pool, or that it is being deleted."""


class Member(NamedTuple):
    """A port of a pod of the pool."""

    endpoint: Endpoint
    role: PdRole | None


class KubernetesApi:
    """Reads objects of a cluster, each by a connection of its own. On the event loop only."""

    def __init__(self, url: str, *, account: Path = ACCOUNT, answer_s_max: float = ANSWER_S_MAX) -> None:
        """url: of the API server. account: the folder with token and ca.crt; the token is read for each call.

        answer_s_max: the longest that a call may take, from connecting to the last byte.
        """
        self._url, self._account, self._answer_s_max = urlsplit(url), account, answer_s_max

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

    async def get(self, path: str, kind: type[_T]) -> _T | None:
        """Return an object; None where the API says that there is none. Raises PoolUnread."""
        try:
            async with asyncio.timeout(self._answer_s_max):
                answer = await self._ask(path)
        except TimeoutError as exc:
            raise PoolUnread(f"the Kubernetes API does not answer within {self._answer_s_max:g} s") from exc
        except (OSError, ValueError, httptools.HttpParserError) as exc:
            raise PoolUnread(f"the Kubernetes API does not answer: {exc or type(exc).__name__}") from exc
        if answer.status == HTTP_NOT_FOUND and _says_not_found(answer.body):
            return None
        if answer.status != HTTP_OK:
            raise PoolUnread(f"GET {path[:200]}: expected status 200, got {answer.status} {answer.body[:200]!r}")
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise PoolUnread(f"GET {path[:200]}: expected a {kind.__name__} as JSON: {exc}") from exc

    async def _ask(self, path: str) -> Answer:
        token = (self._account / "token").read_text().strip()
        if not token.isascii() or not token.isprintable():  # The message would show the token.
            raise ValueError("the service account's token cannot be sent: expected one line of ASCII")
        url, tls = self._url, None
        if url.scheme != "http":
            tls = ssl.create_default_context(cafile=self._account / "ca.crt")
        reader, writer = await asyncio.open_connection(url.hostname or "", url.port or 443, ssl=tls)
        try:
            lines = (
                f"GET {path} HTTP/1.1",
                f"Host: {url.netloc}",
                f"Authorization: Bearer {token}",
                *("Accept: application/json", "Connection: close"),
            )
            writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))
            return await read_answer(reader, ANSWER_BYTES_MAX)
        finally:
            writer.transport.abort()


def _says_not_found(body: bytes) -> bool:
    """Say whether a 404 is of an object that is not there, and not of a path that the server does not know."""
    try:
        return msgspec.json.decode(body, type=Failure).reason == "NotFound"
    except msgspec.MsgspecError:
        return False


class PoolWatch:
    """Keeps the fleet's workers by URL as the pool has them. On the event loop only.

    members: `ip:port` of all; empty before it was read. It is the same object until they change.
    """

    def __init__(
        self, api: KubernetesApi, pool: str, follow: Callable[[list[Endpoint], Mapping[Endpoint, PdRole]], None]
    ) -> None:
        """pool: namespace/name. follow: takes the workers by URL, and what they do, each time that they change."""
        self._api, self._follow = api, follow
        self._namespace, _, self._name = pool.partition("/")
        self.members: frozenset[str] = frozenset()
        self.is_known = False
        """Whether it was read, and was there when it was read last."""
        self._trouble: str | None = None
        self._found: list[Member] = []
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
        """Read it once. When that fails it stays as it was; when it is gone it has no pods."""
        try:
            found = await self.read()
        except PoolUnread as exc:
            self._warn(f"stays as it was: {exc}")
            return
        except PoolGone as exc:
            self._warn(f"has no endpoints: {exc}")
            self.is_known = False
            self._take([])
            return
        self._trouble, self.is_known = None, True
        self._take(found)

    def _take(self, found: list[Member]) -> None:
        if found != self._found:
            self._found = found
            self.members = frozenset(member.endpoint.name for member in found)
            logger.info("pool %s/%s: %d endpoints", self._namespace, self._name, len(found))
            roles = {member.endpoint: member.role for member in found if member.role is not None}
            self._follow([member.endpoint for member in found], roles)

    def _warn(self, trouble: str) -> None:
        """Log what is wrong, once for each time that it begins."""
        if trouble != self._trouble:
            logger.warning("pool %s/%s %s", self._namespace, self._name, trouble)
        self._trouble = trouble

    async def read(self) -> list[Member]:
        """Return the ready members, in order of name. Raises PoolUnread, PoolGone."""
        path = f"/apis/{GROUP}/namespaces/{self._namespace}/inferencepools/{quote(self._name)}"
        pool = await self._api.get(path, Pool)
        if pool is None:
            raise PoolGone("there is no such InferencePool")
        if pool.metadata.deletion_timestamp:
            raise PoolGone("it is being deleted")
        numbers = [port.number for port in pool.spec.target_ports]
        selector = ",".join(f"{key}={value}" for key, value in sorted(pool.spec.selector.match_labels.items()))
        found = [member async for pod in self._pods(selector) for member in _members(pod, numbers)]
        return sorted(found, key=lambda member: member.endpoint)

    async def _pods(self, selector: str) -> AsyncIterator[Pod]:
        after = ""
        for _ in range(PAGES_MAX):
            query: dict[str, Any] = {"labelSelector": selector, "limit": PAGE_PODS}
            query |= {"continue": after} if after else {}
            page = await self._api.get(f"/api/v1/namespaces/{self._namespace}/pods?{urlencode(query)}", PodList)
            if page is None:
                raise PoolUnread("expected a list of pods, got none")
            for pod in page.items or ():
                yield pod
            after = page.metadata.following
            if not after:
                return
        raise PoolUnread(f"expected at most {PAGES_MAX * PAGE_PODS} pods, got more")


def _members(pod: Pod, ports: list[int]) -> Iterator[Member]:
    """Yield the ports of a pod that is ready and does not end."""
    ready = any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
    if not ready or not pod.status.pod_ip or pod.metadata.deletion_timestamp:
        return
    label = (pod.metadata.labels or {}).get(ROLE_LABEL)
    role = PdRole(label) if label in set(PdRole) else None
    active = (pod.metadata.annotations or {}).get(ACTIVE_PORTS)
    named = None if active is None else {part.strip() for part in active.split(",")}
    for port in ports:
        if named is None or str(port) in named:
            yield Member(Endpoint(pod.status.pod_ip, port, False, ""), role)

"""The endpoint picker's manifests fit the fleet beside them, the picker's settings and what it asks the cluster for."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.settings import parse_listen
from ghostcacher_router.config import load_settings
from ghostcacher_router.epp.pool import KubernetesApi, PoolWatch
from ghostcacher_router.epp.settings import PickerSettings
from tests.support.helm_chart import DEPLOY, SECRETS, Pod, environment, needs_tools, pods, rendered
from tests.unit.deploy.test_chart_objects import validate

FILE = DEPLOY / "kubernetes" / "examples" / "endpoint-picker.yaml"


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


def picker_of(objects: list[dict[str, Any]]) -> tuple[Pod, PickerSettings]:
    pod = next(pods(objects))
    return pod, load_settings(PickerSettings, {}, None, environment(pod.containers[0]))


@needs_tools
def test_objects_fit_their_schemas(objects: list[dict[str, Any]]) -> None:
    for found in objects:
        validate(found)


def test_picker_takes_its_environment_and_ends_in_time(objects: list[dict[str, Any]]) -> None:
    """Each variable is a setting; the pod has time for the pause, for streams and for the router's own end."""
    pod, settings = picker_of(objects)
    container = pod.containers[0]
    assert (settings.index_key, settings.admin_token) == (SECRETS["index-key"], SECRETS["admin-token"])
    assert parse_redis_url(settings.redis_url or "").username == "gc-router"
    ports = {parse_listen(text, "listen").port for text in (settings.listen, settings.grpc_listen)}
    assert {port["containerPort"] for port in container["ports"]} == ports
    assert container["readinessProbe"]["grpc"]["port"] == parse_listen(settings.grpc_listen, "grpc_listen").port
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > pause_s + 2 * settings.drain_timeout_s


def test_pool_service_and_route_name_each_other(objects: list[dict[str, Any]]) -> None:
    """The route leads to the pool, the pool to the Service, and that to the picker, which reads that pool."""
    pod, settings = picker_of(objects)
    (pool,), (route,), (service,) = (of_kind(objects, kind) for kind in ("InferencePool", "HTTPRoute", "Service"))
    assert settings.pool == f"{pool['metadata']['namespace']}/{pool['metadata']['name']}"
    assert [rule["backendRefs"] for rule in route["spec"]["rules"]] == [
        [{"group": pool["apiVersion"].partition("/")[0], "kind": "InferencePool", "name": pool["metadata"]["name"]}]
    ]
    picker = pool["spec"]["endpointPickerRef"]
    assert (picker["name"], picker["port"]["number"]) == (
        service["metadata"]["name"],
        service["spec"]["ports"][0]["port"],
    )
    assert service["spec"]["selector"].items() <= pod.labels.items()


@needs_tools
def test_pool_selects_the_engines_of_the_fleet_at_their_port(objects: list[dict[str, Any]]) -> None:
    """And nothing else of it; the gateway may connect to them, and the picker to Redis and to them."""
    fleet = rendered("plain")
    spec = of_kind(objects, "InferencePool")[0]["spec"]
    labels = spec["selector"]["matchLabels"]
    selected = [pod for pod in pods(fleet) if labels.items() <= pod.labels.items()]
    assert selected
    assert {pod.component for pod in selected} == {"engine"}
    ports = {
        port["containerPort"] for pod in selected for port in pod.containers[-1]["ports"] if port["name"] == "http"
    }
    assert {port["number"] for port in spec["targetPorts"]} == ports
    opened = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["spec"]["podSelector"]["matchLabels"] == labels
    ]
    assert [{"port": port} for port in ports] == opened[0]["ingress"][0]["ports"]
    picker = next(pods(objects))
    reached = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for policy in of_kind(fleet, "NetworkPolicy")
        for rule in policy["spec"]["ingress"]
        for peer in rule.get("from", [])
        if peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= picker.labels.items()
    }
    assert {"engine", "redis"} <= reached


class Recorded(KubernetesApi):
    """Remembers what is asked for."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.asked: list[str] = []

    def get(self, path: str) -> Any:
        self.asked.append(urlsplit(path).path)
        if "inferencepools" in path:
            return {"spec": {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 8000}]}}
        return {"metadata": {}, "items": []}


def test_role_allows_what_the_picker_asks_for_and_no_more(objects: list[dict[str, Any]]) -> None:
    """The picker reads one pool, and lists pods of its namespace."""
    _, settings = picker_of(objects)
    api = Recorded()
    assert PoolWatch(api, settings.pool or "", lambda *_: None).read() == []
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    namespace = role["metadata"]["namespace"]
    allowed = []
    for rule in role["rules"]:
        (group,), (resource,), (verb,) = rule["apiGroups"], rule["resources"], rule["verbs"]
        base = f"/apis/{group}/v1" if group else "/api/v1"
        names = [f"/{name}" for name in rule.get("resourceNames", [])] if verb == "get" else [""]
        allowed += [f"{base}/namespaces/{namespace}/{resource}{name}" for name in names]
    assert api.asked == allowed
    pod, _ = picker_of(objects)
    assert binding["subjects"][0]["name"] == pod.spec["serviceAccountName"]
    assert pod.spec["automountServiceAccountToken"] is True

"""The chart's endpoint picker fits the fleet beside it, the picker's settings and what it asks the cluster for."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.settings import parse_listen
from ghostcacher_router.config import load_settings
from ghostcacher_router.epp.messages import DESTINATION, PREFILLER
from ghostcacher_router.epp.pool import KubernetesApi, PoolWatch
from ghostcacher_router.epp.settings import PickerSettings
from tests.support.helm_chart import DEPLOY, SECRETS, Pod, all_values, environment, needs_tools, pods, render, rendered
from tests.unit.deploy.test_chart_objects import validate
from tests.unit.deploy.test_egress import pods_reached, reaches

pytestmark = needs_tools

EXAMPLES = DEPLOY / "kubernetes" / "examples"
WITH_PICKER = ("endpoint-picker", "everything")
GATEWAYS = {"gateways": [{"namespaceSelector": {}}]}
PLAIN = {"epp": {"enabled": True}, "networkPolicy": GATEWAYS}
"""Values of a picker that reads no pool."""


def of_kind(objects: list[dict[str, Any]], kind: str, name: str = "") -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind and found["metadata"]["name"].endswith(name)]


def picker_of(objects: list[dict[str, Any]]) -> tuple[Pod, PickerSettings]:
    pod = next(each for each in pods(objects) if each.component == "epp")
    return pod, load_settings(PickerSettings, {}, None, environment(pod.containers[0]))


@pytest.mark.parametrize("file", ["endpoint-picker.yaml", "gateway.yaml"])
def test_objects_of_the_examples_fit_their_schemas(file: str) -> None:
    for found in yaml.safe_load_all((EXAMPLES / file).read_text()):
        validate(found)


def test_picker_is_off_by_default() -> None:
    """And then nothing of it is there."""
    assert not [found for found in render({}) if found["metadata"]["name"].endswith("-epp")]


@pytest.mark.parametrize("name", WITH_PICKER)
def test_picker_takes_its_environment_and_ends_in_time(name: str) -> None:
    """Each variable is a setting; the pod has time for the pause, for streams and for the router's own end."""
    objects, values = rendered(name), all_values()[name]["epp"]
    pod, settings = picker_of(objects)
    container = pod.containers[0]
    assert (settings.index_key, settings.admin_token) == (SECRETS["index-key"], SECRETS["admin-token"])
    assert parse_redis_url(settings.redis_url or "").username == "gc-router"
    (deployment,) = of_kind(objects, "Deployment", "-epp")
    assert settings.replicas == deployment["spec"]["replicas"] == values.get("replicas", 2)
    for given, value in values.get("settings", {}).items():
        assert getattr(settings, given) == value
    ports = {parse_listen(text, "listen").port for text in (settings.listen, settings.grpc_listen)}
    assert {port["containerPort"] for port in container["ports"]} == ports
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > pause_s + 2 * settings.drain_timeout_s
    (service,) = of_kind(objects, "Service", "-epp")
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {each["name"] for each in container["ports"]}
    assert settings.buffered_bytes_max + 6 * settings.body_bytes_max <= 256 << 20, "half of the memory limit"


@pytest.mark.parametrize("name", WITH_PICKER)
def test_readiness_is_asked_for_as_the_port_speaks(name: str) -> None:
    """Over gRPC, and where that is with TLS, which the kubelet does not speak there, over HTTP."""
    pod, settings = picker_of(rendered(name))
    container, probe = pod.containers[0], pod.containers[0]["readinessProbe"]
    (service,) = of_kind(rendered(name), "Service", "-epp")
    (port,) = (each for each in service["spec"]["ports"] if each["name"] == "grpc")
    if name == "endpoint-picker":
        assert probe["grpc"] == {"port": parse_listen(settings.grpc_listen, "").port, "service": "readiness"}
        assert (settings.grpc_certificate, settings.grpc_key, port["appProtocol"]) == (None, None, "http2")
        return
    assert (probe["httpGet"], port["appProtocol"]) == ({"path": "/ready", "port": "http"}, "https")
    (volume,) = (each["secret"] for each in pod.spec["volumes"] if each["name"] == "grpc-tls")
    assert volume["secretName"] == "picker-tls"
    (mount,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "grpc-tls")
    files = [f"{mount}/{item['path']}" for item in volume["items"]]
    assert files == [settings.grpc_certificate, settings.grpc_key]


@pytest.mark.parametrize("name", WITH_PICKER)
def test_pool_service_and_picker_name_each_other(name: str) -> None:
    """The pool leads to the Service, that to the picker, and this one reads that pool."""
    objects = rendered(name)
    pod, settings = picker_of(objects)
    (pool,), (service,) = of_kind(objects, "InferencePool"), of_kind(objects, "Service", "-epp")
    assert settings.pool == f"{pool['metadata']['namespace']}/{pool['metadata']['name']}"
    picker = pool["spec"]["endpointPickerRef"]
    assert picker["name"] == service["metadata"]["name"]
    assert picker["port"]["number"] == next(p["port"] for p in service["spec"]["ports"] if p["name"] == "grpc")
    assert service["spec"]["selector"].items() <= pod.labels.items()
    given = all_values()[name]["gateway"]["inferencePool"].get("failureMode", "FailOpen")
    assert picker["failureMode"] == given


def test_route_leads_to_the_pool_and_comes_from_the_gateway_of_the_example() -> None:
    """HTTPRoute -> InferencePool; the Gateway lets its namespace in, and takes from clients what is the picker's."""
    objects = rendered("endpoint-picker")
    (route,), (pool,) = of_kind(objects, "HTTPRoute"), of_kind(objects, "InferencePool")
    (rule,) = route["spec"]["rules"]
    group = pool["apiVersion"].partition("/")[0]
    assert rule["backendRefs"] == [{"group": group, "kind": "InferencePool", "name": pool["metadata"]["name"]}]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1"]
    around = list(yaml.safe_load_all((EXAMPLES / "gateway.yaml").read_text()))
    (gateway,), (policy,) = of_kind(around, "Gateway"), of_kind(around, "ClientTrafficPolicy")
    where = {key: gateway["metadata"][key] for key in ("name", "namespace")}
    assert route["spec"]["parentRefs"] == [where]
    (listener,) = gateway["spec"]["listeners"]
    allowed = listener["allowedRoutes"]["namespaces"]["selector"]["matchLabels"]
    assert allowed == {"kubernetes.io/metadata.name": route["metadata"]["namespace"]}
    assert [target["name"] for target in policy["spec"]["targetRefs"]] == [gateway["metadata"]["name"]]
    taken = policy["spec"]["headers"]["earlyRequestHeaders"]["remove"]
    assert set(taken) == {DESTINATION, PREFILLER}


@pytest.mark.parametrize(("replicas", "asked"), [(0, "ghostcacher-epp:8000"), (1, "ghostcacher-router:8000")])
def test_fleet_without_a_router_is_tested_by_its_picker(replicas: int, asked: str) -> None:
    objects = render({**PLAIN, "router": {"replicas": replicas}})
    (test,) = of_kind(objects, "Pod")
    assert f'"http://{asked}/ready"' in test["spec"]["containers"][0]["args"][0]
    (service,) = of_kind(objects, "Service", asked.partition(":")[0])
    assert 8000 in [port["port"] for port in service["spec"]["ports"]]


def test_picker_of_yours_may_be_the_pools() -> None:
    """And ours may read a pool of yours."""
    named = {"enabled": True, "endpointPicker": {"name": "yours", "port": 9100}}
    (pool,) = of_kind(render({"gateway": {"inferencePool": named}}), "InferencePool")
    assert (pool["spec"]["endpointPickerRef"]["name"], pool["spec"]["endpointPickerRef"]["port"]) == (
        "yours",
        {"number": 9100},
    )
    objects = render({**PLAIN, "epp": {"enabled": True, "pool": "yours"}})
    assert picker_of(objects)[1].pool == "ghostcacher/yours"
    (role,) = of_kind(objects, "Role", "-epp")
    assert role["rules"][0]["resourceNames"] == ["yours"]
    assert not of_kind(objects, "InferencePool")


def test_pool_selects_the_engines_of_the_fleet_at_their_port() -> None:
    """And nothing else of it; the gateway may connect to them, and the picker to Redis and to them."""
    objects = rendered("endpoint-picker")
    spec = of_kind(objects, "InferencePool")[0]["spec"]
    labels = spec["selector"]["matchLabels"]
    selected = [pod for pod in pods(objects) if labels.items() <= pod.labels.items()]
    assert {pod.component for pod in selected} == {"engine"}
    ports = {
        port["containerPort"] for pod in selected for port in pod.containers[-1]["ports"] if port["name"] == "http"
    }
    assert {port["number"] for port in spec["targetPorts"]} == ports
    picker, _ = picker_of(objects)
    reached = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for policy in of_kind(objects, "NetworkPolicy")
        for rule in policy["spec"]["ingress"]
        for peer in rule.get("from", [])
        if peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= picker.labels.items()
    }
    assert {"engine", "redis"} <= reached


def test_egress_of_pickers_is_what_they_connect_to() -> None:
    """Redis, engines, name servers, workers of their own settings, and the Kubernetes API where they read a pool."""
    engines = [{"name": "a", "model": "m"}]
    policies = {**GATEWAYS, "egress": {"enabled": True}}
    own = {"enabled": True, "settings": {"workers": ["http://10.1.2.3:9000"]}}
    routers = {"settings": {"workers": ["http://10.1.2.3:9001"]}}
    for pool in ("", "fleet"):
        epp = {"enabled": True, "pool": pool} if pool else own
        objects = render({"engines": engines, "router": routers, "epp": epp, "networkPolicy": policies})
        policy = of_kind(objects, "NetworkPolicy", "-epp")[0]["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert pods_reached(policy) == {"redis": [6379], "engine": [8000]}
        assert reaches(policy, "10.1.2.3", 9000) is not bool(pool)
        assert [reaches(policy, "10.96.0.1", port) for port in (443, 6443)] == [bool(pool)] * 2
        assert not reaches(policy, "10.1.2.3", 9001), "a worker of the routers"


class Recorded(KubernetesApi):
    """Remembers what is asked for."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.asked: list[str] = []

    async def get(self, path: str, kind: Any) -> Any:
        self.asked.append(urlsplit(path).path)
        pool = {"spec": {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 8000}]}}
        return msgspec.convert(pool if "inferencepools" in path else {}, kind)


@pytest.mark.parametrize("name", WITH_PICKER)
def test_role_allows_what_the_picker_asks_for_and_no_more(name: str) -> None:
    """The picker reads one pool, and lists pods of its namespace."""
    objects = rendered(name)
    pod, settings = picker_of(objects)
    api = Recorded()
    assert asyncio.run(PoolWatch(api, settings.pool or "", lambda *_: None).read()) == []
    (role,), (binding,) = of_kind(objects, "Role", "-epp"), of_kind(objects, "RoleBinding", "-epp")
    namespace = role["metadata"]["namespace"]
    allowed = []
    for rule in role["rules"]:
        (group,), (resource,), (verb,) = rule["apiGroups"], rule["resources"], rule["verbs"]
        base = f"/apis/{group}/v1" if group else "/api/v1"
        names = [f"/{each}" for each in rule.get("resourceNames", [])] if verb == "get" else [""]
        allowed += [f"{base}/namespaces/{namespace}/{resource}{each}" for each in names]
    assert api.asked == allowed
    assert binding["subjects"][0]["name"] == pod.spec["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert of_kind(objects, "ServiceAccount", pod.spec["serviceAccountName"])
    assert pod.spec["automountServiceAccountToken"] is True


def test_picker_without_a_pool_gets_no_rights() -> None:
    """Redis says who is there, so it asks the Kubernetes API for nothing."""
    objects = render(PLAIN)
    pod, settings = picker_of(objects)
    assert (settings.pool, settings.finds_workers) == (None, True)
    assert pod.spec["automountServiceAccountToken"] is False
    assert of_kind(objects, "Role") == of_kind(objects, "RoleBinding") == []

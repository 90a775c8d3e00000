"""What the chart renders is valid for Kubernetes, whatever is turned on, and wrong values are refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from ghostcacher_router.config import load_router_settings
from tests.support.helm_chart import CHART, NAME, all_values, environment, needs_tools, pods, render, rendered
from tests.unit.deploy.custom_kinds import SPECS

pytestmark = needs_tools

VERSIONS = ("1.30", "1.37")
"""The oldest Kubernetes that the chart allows, and the newest that can be checked."""
CLUSTER_WIDE = {"Namespace"}


def validate(found: dict[str, Any]) -> None:
    """Raise when an object does not fit its schema, or has a field that the schema does not know."""
    import kubernetes_validate

    spec = SPECS.get((found["apiVersion"], found["kind"]))
    if spec is not None:
        jsonschema.validate(found["spec"], spec)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("name", all_values())
def test_objects_fit_their_schemas(name: str) -> None:
    """Each object that any of our values gives, in the oldest and the newest version of Kubernetes."""
    objects = rendered(name)
    assert len(objects) > 10
    for found in objects:
        validate(found)
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    assert {found["metadata"].get("namespace") for found in objects if found["kind"] not in CLUSTER_WIDE} == {NAME}


def test_everything_renders_each_template() -> None:
    """A template that our values never turn on would never be checked."""
    kinds = {found["kind"] for name in all_values() for found in rendered(name)}
    texts = [path.read_text() for path in CHART.glob("templates/**/*.yaml")]
    written = {line.removeprefix("kind: ") for text in texts for line in text.splitlines() if line.startswith("kind: ")}
    # The operators' files are rendered as far as they are there.
    assert written - {"PrometheusRule"} <= kinds, written - kinds
    has_rules = any((CHART / "files" / "prometheus").glob("*.rules.yml"))
    assert ("PrometheusRule" in kinds) == has_rules


def test_chart_has_nothing_that_helm_lint_warns_of() -> None:
    """Findings above mere information (an icon is recommended) are errors here."""
    import helm_python

    found = helm_python.lint(str(CHART))
    assert not found["errors"]
    assert [message for message in found["messages"] if message["severity"] > 1] == []


ENGINE = {"name": "a", "model": "m"}
GATEWAY = {"enabled": True, "parentRefs": [{"name": "public"}]}
WITHOUT_REDIS = {
    "router": {"settings": {"redis": False, "workers": ["http://w:8000"]}},
    "networkPolicy": {"gateways": [{"namespaceSelector": {}}]},
}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"engine": [ENGINE]}, "additional properties 'engine' not allowed"),
        ({"engines": [{"model": "m"}]}, "missing property 'name'"),
        ({"engines": [{"name": "a"}]}, "engines: a: expected a model, got none"),
        ({"engines": [{**ENGINE, "name": "Upper"}]}, "does not match pattern"),
        ({"engines": [ENGINE, ENGINE]}, "engines: a: expected names that no other engine"),
        ({"engines": [{**ENGINE, "name": "redis"}]}, "engines: redis: expected names that no other engine"),
        ({"engines": [{**ENGINE, "tensorParalel": 2}]}, "additional properties 'tensorParalel' not allowed"),
        ({"engines": [{**ENGINE, "settings": {"lease_ttl": 3}}]}, "lease_ttl"),
        ({"engines": [{**ENGINE, "settings": {"worker_id": "x"}}]}, "worker_id"),
        ({"router": {"settings": {"retries": 3}}}, "retries"),
        ({"router": {"settings": {"admin_token": "secret-that-shows"}}}, "admin_token"),
        ({"engines": [{**ENGINE, "kind": "sglang", "dataParallel": 2}]}, "engines: a: dataParallel: "),
        (
            {"engines": [{**ENGINE, "kind": "sglang", "tensorParallel": 2, "hostTierGib": 8}]},
            "engines: a: hostTierGib: ",
        ),
        ({"engines": [{**ENGINE, "kind": "sglang", "device": "cpu"}]}, "engines: a: device: "),
        ({"engines": [{**ENGINE, "kind": "sglang", "kvRole": "kv_consumer"}]}, "engines: a: kvRole: "),
        ({"engines": [{**ENGINE, "kind": "sglang", "pdRole": "decode"}]}, "engines: a: pdRole: "),
        ({"engines": [{**ENGINE, "pdRole": "prefil"}]}, "'/engines/0/pdRole'"),
        ({"engines": [ENGINE], "nixl": {"tcpPorts": {"first": 30000}}}, "nixl.tcpPorts: expected the first port"),
        ({"engines": [{**ENGINE, "models": {"existingClaim": "c", "hostPath": "/p"}}]}, "engines: a: models: "),
        ({"engines": [{**ENGINE, "resources": {"limits": {"memory": "8G"}}}]}, "'/engines/0/resources/limits/memory'"),
        (
            {"secrets": {"existing": "a", "external": {"enabled": True}}},
            "secrets: expected existing or external, got both",
        ),
        ({"secrets": {"external": {"enabled": True}}}, "secrets.external.store.name: "),
        ({"redis": {"url": "redis://u:p@host"}}, "'/redis/url'"),
        ({"redis": {"tls": {"enabled": True}}}, "redis.tls.secret: expected a Secret"),
        ({"router": {"settings": {"redis": False}}}, "router.settings.redis: expected workers or upstreams"),
        ({"redis": {"users": {"worker": ""}}}, "redis.users.worker: expected a name"),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs: expected at least one Gateway"),
        ({"gateway": {"inferencePool": {"enabled": True}}}, "gateway.inferencePool.endpointPicker.name: "),
        ({"gateway": {**GATEWAY, "backend": "inferencePool"}}, "gateway.backend: expected router, or "),
        ({"gateway": {**GATEWAY, "backend": "engines"}}, "'/gateway/backend'"),
        ({"gateway": {"inferencePool": {"failureMode": "open"}}}, "'/gateway/inferencePool/failureMode'"),
        ({"epp": {"enabled": True}}, "networkPolicy.gateways: expected who asks"),
        ({**WITHOUT_REDIS, "epp": {"enabled": True, "settings": {"redis": False}}}, "epp.settings.redis: expected a "),
        ({"epp": {"settings": {"upstreams": ["https://api.openai.com"]}}}, "upstreams"),
        ({"epp": {"settings": {"processes": 2}}}, "processes"),
        ({"epp": {"settings": {"pool": "a/b"}}}, "pool"),
        ({"epp": {"pool": "other/fleet"}}, "'/epp/pool'"),
        ({"engines": [{**ENGINE, "name": "epp"}]}, "engines: epp: expected names that no other engine"),
        ({"router": {"preStopSeconds": 0}}, "'/router/preStopSeconds'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    """What cannot work is said when the chart is installed, and not by a pod that does not start."""
    import helm_python

    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("upstreams", "paths"),
    [
        ([], {"/v1"}),
        (["anthropic=https://api.anthropic.com"], {"/v1"}),
        (["bedrock=https://bedrock-runtime.eu-west-1.amazonaws.com"], {"/v1", "/model"}),
        ("https://api.openai.com,https://bedrock-runtime.eu-west-1.amazonaws.com", {"/v1", "/model"}),
    ],
)
def test_gateway_has_the_paths_of_engines_and_providers(upstreams: Any, paths: set[str]) -> None:
    """And no others: the admin API stays inside."""
    gateway = {"enabled": True, "parentRefs": [{"name": "public"}]}
    objects = render({"gateway": gateway, "router": {"settings": {"upstreams": upstreams}}})
    route = next(found for found in objects if found["kind"] == "HTTPRoute")
    validate(route)
    assert {match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]} == paths


def test_defaults_alone_render() -> None:
    """A chart without values gives routers and Redis, for engines that are run elsewhere."""
    components = {found["metadata"]["labels"].get("app.kubernetes.io/component") for found in render({})}
    assert components == {None, "router", "redis"}


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        ({"router": {"settings": {"redis": False, "upstreams": ["anthropic=https://api.anthropic.com"]}}}, False),
        ({"router": {"settings": {"redis": "False", "workers": ["http://10.0.0.1:8000"]}}}, False),
        ({"router": {"settings": {"redis": "true"}}}, True),
        ({"router": {"settings": {"redis": False, "workers": ["http://w:8000"]}}, "engines": [ENGINE]}, True),
        ({"redis": {"url": "redis://h"}}, False),
        ({**WITHOUT_REDIS, "epp": {"enabled": True}}, True),
        ({**WITHOUT_REDIS, "epp": {"enabled": True, "pool": "fleet", "settings": {"redis": False}}}, False),
    ],
)
def test_redis_is_run_only_where_somebody_uses_it(values: dict[str, Any], runs: bool) -> None:
    """Engines always do, routers unless they are told not to; then nothing of it is left over, and they start."""
    policy = {**values.get("networkPolicy", {}), "egress": {"enabled": True}}
    objects = render({**values, "networkPolicy": policy})
    kinds = {found["kind"] for found in objects if found["metadata"]["name"] == f"{NAME}-redis"}
    expected = {"ServiceAccount", "ConfigMap", "StatefulSet", "Service", "NetworkPolicy"}
    assert kinds == (expected if runs else set())
    router = next(pod for pod in pods(objects) if pod.component == "router").containers[0]
    settings = load_router_settings({}, None, environment(router))
    assert settings.redis == ("GC_REDIS_URL" in str(router["env"]))
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    ports = {port["port"] for rule in policies[f"{NAME}-router"]["egress"] for port in rule["ports"]}
    assert (6379 in ports) == settings.redis
    for found in objects:
        validate(found)


def test_default_values_are_valid_themselves() -> None:
    """Each value of values.yaml is one that the schema knows."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        jsonschema.validate(chart.values, json.loads((CHART / "values.schema.json").read_text()))

"""The chart of deploy/helm as a cluster would get it, and what its containers would see."""

from __future__ import annotations

import functools
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "ghostcacher"
EXAMPLES = {path.stem: path for path in sorted((DEPLOY / "helm" / "examples").glob("*.yaml"))}
NAME = "ghostcacher"
SECRETS = {
    "redis-worker-password": "of-the-worker",
    "redis-router-password": "of-the-router",
    "redis-doctor-password": "of-the-doctor",
    "index-key": "key-of-the-index-0123",
    "admin-token": "token-of-admins-0123",
    "relay-token": "token-of-relays-0123",
    "token": "of-hugging-face",
}
"""What the Secrets hold that pods read."""
POD_NAME = "ghostcacher-vllm-7d9c5b8f4-x2lqz"
POD_IP = {"IPv4": "10.8.3.17", "IPv6": "fd00:10::17"}
"""Family -> what a pod learns as its own address."""

needs_tools = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="helm-python-sdk and compose-spec have no wheels for this machine: deploy/ is not checked",
)

EVERYTHING: dict[str, Any] = {
    "fullnameOverride": "fleet",
    "namespace": {"create": True},
    "ipFamily": "IPv6",
    "image": {"registry": "registry.example.com/llm/", "tag": "1.2.3", "pullSecrets": ["pull"]},
    "rbac": {"operators": [{"kind": "Group", "name": "sre", "apiGroup": "rbac.authorization.k8s.io"}]},
    "serviceAccount": {
        "engineAnnotations": {"example.com/role": "bucket"},
        "routerAnnotations": {"example.com/role": "bedrock"},
    },
    "redis": {
        "tls": {"enabled": True, "secret": "redis-tls"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "c"}],
    },
    "router": {
        "settings": {
            "drain_timeout_s": 90,
            "allowed_origins": ["https://a.example", "https://b.example"],
            "ghost_lock": False,
            "flow_queue_max": 100,
            "upstreams": ["anthropic=https://api.anthropic.com", "openai=https://llm.example.com:8443/v1"],
            "provider_prices": "/etc/prices/prices.json",
        },
        "autoscaling": {"enabled": True},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "prices", "configMap": {"name": "prices"}}],
        "extraVolumeMounts": [{"name": "prices", "mountPath": "/etc/prices", "readOnly": True}],
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "c"}],
        "affinity": {"podAntiAffinity": {}},
    },
    "epp": {
        "enabled": True,
        "replicas": 3,
        "port": 9102,
        "httpPort": 8100,
        "settings": {"pick_timeout_s": 5, "drain_timeout_s": 40, "flow_queue_max": 100, "section_hints": False},
        "tls": {"secret": "picker-tls"},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "c"}],
        "affinity": {"podAntiAffinity": {}},
    },
    "engines": [
        {"name": "sgl", "kind": "sglang", "model": "m", "tensorParallel": 2, "gpu": {"runtimeClassName": "nvidia"}},
        {
            "name": "host",
            "model": "m",
            "hostNamespaces": True,
            "rdma": {"enabled": True},
            "models": {"hostPath": "/models"},
            "settings": {"object_url": "s3://bucket/prefix", "eviction_policy": "lru", "object_max_gib": 1000000},
            "hostTierGib": 1.5,
            "dataParallel": 2,
            "podAnnotations": {"a": "b"},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "c"}],
            "affinity": {"podAntiAffinity": {}},
            "extraEnv": [{"name": "UCX_NET_DEVICES", "value": "mlx5_0:1"}],
            "huggingFaceToken": {"secret": "hf"},
        },
        {"name": "consumer", "model": "m", "device": "cpu", "kvRole": "kv_consumer", "image": "own"},
        {"name": "decode", "model": "m", "dataParallel": 2, "pdRole": "decode"},
    ],
    "networkPolicy": {
        "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "gateways": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}],
        "namespaces": ["apps"],
        "egress": {"enabled": True, "extra": [{"ports": [{"port": 4318}]}]},
    },
    "monitoring": {"monitors": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "gateway": {
        "enabled": True,
        "parentRefs": [{"name": "public"}],
        "hostnames": ["llm.example.com"],
        "inferencePool": {"enabled": True, "failureMode": "FailClose"},
    },
}
"""Every part of the chart that can be turned on, but for what excludes another one."""


@functools.cache
def all_values() -> dict[str, dict[str, Any]]:
    """Return name -> values, of all that the chart is rendered with."""
    return {name: yaml.safe_load(path.read_text()) for name, path in EXAMPLES.items()} | {"everything": EVERYTHING}


def engines_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what some values say of each engine: its own over those for all."""
    return [values.get("engineDefaults", {}) | engine for engine in values.get("engines", [])]


@functools.cache
def rendered(name: str) -> list[dict[str, Any]]:
    """Return the objects of one of `all_values`. Nobody may change them."""
    return render(all_values()[name])


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that the chart makes of some values. Raises helm_python.HelmError."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(dict(values), name=NAME, namespace=NAME)
    return [
        found for path, text in texts.items() if path.endswith(".yaml") for found in yaml.safe_load_all(text) if found
    ]


class Pod(NamedTuple):
    """A pod, or what makes pods."""

    where: str
    """Kind and name of the object."""
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        """router, epp, engine, redis, or nothing."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: list[dict[str, Any]]) -> Iterator[Pod]:
    """Yield every pod of some objects."""
    for found in objects:
        where = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield Pod(where, found["metadata"]["labels"], found["spec"])
        elif "template" in found.get("spec", {}):
            template = found["spec"]["template"]
            yield Pod(where, template["metadata"]["labels"], template["spec"])


def environment(container: Mapping[str, Any], family: str = "IPv4") -> dict[str, str]:
    """Return the variables of a container as the kubelet makes them: ``$(NAME)`` stands for one that comes before."""
    pod = {"metadata.name": POD_NAME, "status.podIP": POD_IP[family]}
    seen: dict[str, str] = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            value = SECRETS[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            value = pod[source["fieldRef"]["fieldPath"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda match: seen.get(match[1], match[0]), variable["value"])
        seen[variable["name"]] = value
    return seen

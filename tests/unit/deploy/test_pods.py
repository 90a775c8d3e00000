"""How pods are run: what they may do, what they are selected by, what they need, how they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ghostcacher_router.config import load_router_settings
from tests.support.helm_chart import (
    DEPLOY,
    Pod,
    all_values,
    engines_of,
    environment,
    needs_tools,
    pods,
    render,
    rendered,
)

pytestmark = needs_tools

ROUTER_LEAVES_S = 2
"""Beyond drain_timeout_s, as docs/operating/router.md says."""
PART_OF = "app.kubernetes.io/part-of"
GIB = 1024
"""In MiB."""


def every_pod() -> list[Pod]:
    return [pod for name in all_values() for pod in pods(rendered(name))]


def engine(**values: Any) -> Mapping[str, Any]:
    """Return the container of an engine with these values."""
    objects = render({"engines": [{"name": "a", "model": "m", **values}]})
    return next(pod for pod in pods(objects) if pod.component == "engine").containers[0]


def test_no_pod_gets_a_token_or_more_rights() -> None:
    """Nothing calls the Kubernetes API but a picker that reads a pool, writes to its image or gains privileges."""
    for pod in every_pod():
        reads_pool = any(each["name"] == "GC_ROUTER_POOL" for each in pod.containers[0].get("env", []))
        assert pod.spec["automountServiceAccountToken"] is reads_pool, pod.where
        assert not reads_pool or pod.component == "epp"
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod.containers:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert "privileged" not in security
            assert "limits" in container["resources"]


def test_capabilities_and_root_come_only_with_what_needs_them() -> None:
    """IPC_LOCK with RDMA, SYS_PTRACE with tracing; root only then, since they reach no process of another user."""
    seen = set()
    for name, values in all_values().items():
        for pod in pods(rendered(name)):
            given = {each["name"]: each for each in engines_of(values)}
            own = given.get(pod.labels.get("ghostcacher/engine", ""), {})
            rdma = own.get("rdma", {}).get("enabled", False)
            host, traced = own.get("hostNamespaces", False), own.get("sysPtrace", False)
            expected = [*(["IPC_LOCK"] if rdma else []), *(["SYS_PTRACE"] if host or traced else [])]
            assert pod.containers[0]["securityContext"]["capabilities"].get("add", []) == expected, pod.where
            security = pod.spec["securityContext"]
            root = security["runAsUser"] == 0
            assert root == bool(expected)
            assert security.get("runAsNonRoot", False) == (not root)
            assert pod.spec.get("hostPID", False) == pod.spec.get("hostIPC", False) == host
            assert ("rdma/" in str(pod.containers[0]["resources"])) == rdma
            seen.add((rdma, host, traced))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("own", "level"),
    [
        ({}, "restricted"),
        ({"sysPtrace": True}, "privileged"),
        ({"rdma": {"enabled": True}}, "privileged"),
        ({"hostNamespaces": True}, "privileged"),
        ({"models": {"hostPath": "/models"}}, "privileged"),
    ],
)
def test_namespace_asks_for_no_lower_level_than_its_pods_need(own: dict[str, Any], level: str) -> None:
    """Pod Security lets in what the engines are, and nothing that they are not."""
    objects = render({"namespace": {"create": True}, "engines": [{"name": "a", "model": "m", **own}]})
    namespace = next(found for found in objects if found["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == level


@pytest.mark.parametrize("name", all_values())
def test_all_that_reads_secrets_is_restarted_by_the_one_command_of_the_docs(name: str) -> None:
    """Nothing else restarts it when they change."""
    objects = rendered(name)
    fleet = next(pod for pod in pods(objects) if pod.component == "router").labels[PART_OF]
    found = [each for each in objects if "template" in each.get("spec", {})]
    assert {each["kind"] for each in found} <= {"Deployment", "StatefulSet"}
    assert all(each["metadata"]["labels"][PART_OF] == fleet for each in found)
    text = (DEPLOY.parent / "docs" / "operating" / "kubernetes.md").read_text()
    assert f"rollout restart deployment,statefulset -l {PART_OF}=" in text


def selected(objects: list[dict[str, Any]], labels: Mapping[str, str]) -> set[str]:
    """Return the components of the pods that have these labels."""
    return {pod.component for pod in pods(objects) if labels.items() <= pod.labels.items()}


@pytest.mark.parametrize("name", all_values())
def test_selectors_find_what_they_are_for(name: str) -> None:
    """Services, budgets, spreads, monitors and policies select pods of one component, and none selects nothing."""
    objects, seen = rendered(name), set()
    for found in objects:
        spec, kind = found.get("spec", {}), found["kind"]
        if kind in ("ServiceMonitor", "PodMonitor"):
            component = found["metadata"]["name"].rpartition("-")[2].removesuffix("s")
            assert selected(objects, spec["selector"]["matchLabels"]) == {component}
            seen.add(component)
        elif kind in ("Deployment", "StatefulSet", "PodDisruptionBudget", "InferencePool"):
            assert len(selected(objects, spec["selector"]["matchLabels"])) == 1
        elif kind == "Service":
            assert len(selected(objects, spec["selector"])) == 1
        elif kind == "NetworkPolicy":
            assert len(selected(objects, spec["podSelector"]["matchLabels"])) == 1
        elif kind == "HorizontalPodAutoscaler":
            names = {
                each["metadata"]["name"]: each for each in objects if each["kind"] == spec["scaleTargetRef"]["kind"]
            }
            assert "replicas" not in names[spec["scaleTargetRef"]["name"]]["spec"]
    runs = {pod.component for pod in pods(objects)} - {"redis", ""}
    assert seen == (runs if all_values()[name].get("monitoring", {}).get("monitors") else set())
    for pod in pods(objects):
        for spread in pod.spec.get("topologySpreadConstraints", []):
            assert selected(objects, spread["labelSelector"]["matchLabels"]) == {pod.component}


def test_policies_let_in_the_fleet_and_no_others() -> None:
    """Redis takes nobody but the fleet; engines take relays' readers from engines alone; both with ports.

    Gateways are let in where pickers are, to these and to engines, and to nothing else of them.
    """
    for name, values in all_values().items():
        objects, gateways = rendered(name), values.get("networkPolicy", {}).get("gateways")
        let_in = set()
        for found in (each for each in objects if each["kind"] == "NetworkPolicy"):
            target = selected(objects, found["spec"]["podSelector"]["matchLabels"])
            for rule in found["spec"]["ingress"]:
                assert rule["ports"]
                if target == {"router"}:
                    continue
                if gateways and rule["from"] == gateways:
                    let_in |= {(*target, port["port"]) for port in rule["ports"]}
                    continue
                peers = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
                assert peers
                relays = any("endPort" in port or port.get("protocol") == "UDP" for port in rule["ports"])
                allowed = {component for labels in peers for component in selected(objects, labels)}
                assert "router" not in allowed if relays else "router" in allowed
                if target == {"redis"}:
                    assert len(peers) == len(rule["from"])
        port = values.get("epp", {}).get("port", 9002)
        assert let_in == ({("epp", port), ("engine", 8000)} if gateways else set())


def test_routers_have_time_to_end() -> None:
    """The pod is given the pause before SIGTERM, the time for requests, and what the router takes to leave."""
    drains = set()
    for name, values in all_values().items():
        for pod in (each for each in pods(rendered(name)) if each.component == "router"):
            container = pod.containers[0]
            drain = load_router_settings({}, None, environment(container)).drain_timeout_s
            pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod.spec["terminationGracePeriodSeconds"] > pause + drain + ROUTER_LEAVES_S
            drains.add(drain)
            assert values.get("router", {}).get("settings", {}).get("drain_timeout_s", 30) == drain
    assert drains == {30, 90}


def test_engines_have_time_to_load_and_to_end() -> None:
    """A model may load for startupSeconds before anything restarts the pod, and requests end before it is killed."""
    objects = render({"engines": [{"name": "a", "model": "m", "startupSeconds": 3605, "drainSeconds": 200}]})
    pod = next(each for each in pods(objects) if each.component == "engine")
    probe = pod.containers[0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 3605
    deployment = next(
        each for each in objects if each["kind"] == "Deployment" and each["metadata"]["name"].endswith("-a")
    )
    assert deployment["spec"]["progressDeadlineSeconds"] > 3605
    assert "--shutdown-timeout=200" in pod.containers[0]["args"]
    assert pod.spec["terminationGracePeriodSeconds"] > 200


def test_memory_counts_all_that_lies_in_it() -> None:
    """The pod's memory is the engine's, the relay's, /dev/shm and, for each copy, host tier and a CPU's KV cache."""
    plain = engine()["resources"]
    assert plain["requests"] == {"cpu": "4500m", "memory": f"{(16 + 2 + 8) * GIB}Mi", "nvidia.com/gpu": "1"}
    assert plain["limits"] == {"memory": f"{(32 + 8 + 8) * GIB}Mi", "nvidia.com/gpu": "1"}
    tiers = engine(hostTierGib=1.5, dataParallel=2, tensorParallel=4)["resources"]
    assert tiers["limits"] == {"memory": f"{(32 + 8 + 8 + 3) * GIB}Mi", "nvidia.com/gpu": "8"}
    cpu = engine(device="cpu", cpuKvCacheGib=5, resources={"limits": {"cpu": "2.5", "memory": "6Gi"}})["resources"]
    assert cpu["limits"] == {"cpu": "6500m", "memory": f"{(6 + 8 + 8 + 5) * GIB}Mi"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"device": "cpu"}, "0"),
        ({"device": "cpu", "tensorParallel": 2}, None),
        ({"device": "gpu"}, None),
    ],
)
def test_engine_of_one_rank_on_a_cpu_has_no_process_for_it(values: dict[str, Any], expected: str | None) -> None:
    """As `ghostcacher up` starts it; several ranks need theirs."""
    assert environment(engine(**values)).get("VLLM_ENABLE_V1_MULTIPROCESSING") == expected


def test_defaults_of_routers_and_redis() -> None:
    """What is asked for and the limits, where values say nothing."""
    found = {pod.component: pod.containers[0]["resources"] for pod in pods(render({}))}
    assert found["router"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"cpu": "500m", "memory": "512Mi"},
    }
    assert found["redis"] == {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"cpu": "4", "memory": "16Gi"}}


def test_long_bodies_fit_into_the_router() -> None:
    """Bodies that are held, and one that is parsed (six times its size at most), leave the router half its limit."""
    pod = next(each for each in pods(render({})) if each.component == "router")
    settings = load_router_settings({}, None, environment(pod.containers[0]))
    assert settings.buffered_bytes_max + 6 * settings.body_bytes_max <= 256 << 20

"""Whatever a manifest names exists in the code, which gets each container's settings as it would in a cluster."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ghostcacher_cli.up.launch import transfer_config
from ghostcacher_cli.up.sglang import linker_arguments
from ghostcacher_connector.config import Settings, load_settings
from ghostcacher_connector.core.addresses import port_of_rank
from ghostcacher_connector.core.redis.permissions import PROGRAMS, acl_rules
from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.settings import parse_listen, types_of
from ghostcacher_router.admin import admin
from ghostcacher_router.config import RouterSettings, load_router_settings
from ghostcacher_router.epp.settings import PickerSettings
from ghostcacher_router.fleet import probes
from tests.support.helm_chart import (
    CHART,
    DEPLOY,
    POD_IP,
    POD_NAME,
    SECRETS,
    Pod,
    all_values,
    engines_of,
    environment,
    needs_tools,
    pods,
    rendered,
)

SIDECAR = DEPLOY / "kubernetes" / "examples" / "sidecar.yaml"
SET_BY_CHART = {
    "connectorSettings": {
        *("redis_url", "index_key", "worker_id", "http_url", "relay_listen", "relay_token"),
        *("host_tier_gib", "metrics_port", "metrics_host"),
    },
    "routerSettings": {"listen", "redis_url", "index_key", "admin_token"},
    "pickerSettings": {
        *("listen", "redis_url", "index_key", "admin_token", "grpc_listen", "grpc_certificate", "grpc_key", "pool"),
        *("processes", "upstreams", "provider_models", "provider_fallbacks", "provider_cache", "provider_ttl"),
        *("provider_prices", "provider_ca_file", "provider_connect_timeout_s", "bedrock_sign", "bedrock_region"),
    },
}
"""Settings that values cannot set: the chart does, secrets would show, the engine's own page is scraped, or a picker
would refuse it."""
OTHER_VARIABLES = {
    *("POD_NAME", "POD_IP", "REDIS_PASSWORD", "HOME", "HF_HOME", "HF_TOKEN", "VLLM_CPU_KVCACHE_SPACE"),
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    *("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT", "UCX_TCP_PORT_RANGE"),
}
SIDE_CHANNEL = 5600
"""Of NixlConnector, by default."""
GIVEN_BY_VALUES = {"TZ", "UCX_NET_DEVICES", "OMP_NUM_THREADS"}


class Program(NamedTuple):
    """One of our containers: of which values, of which pod, and its environment."""

    values: Mapping[str, Any]
    pod: Pod
    container: Mapping[str, Any]
    env: Mapping[str, str]
    objects: list[dict[str, Any]]
    """All that is rendered of these values."""

    @property
    def given(self) -> Mapping[str, Any]:
        """What the values say of this engine."""
        return next(each for each in engines_of(self.values) if each["name"] == self.pod.labels["ghostcacher/engine"])

    @property
    def policy(self) -> Mapping[str, Any]:
        """The NetworkPolicy of this engine."""
        name = self.pod.where.partition(" ")[2]
        found: list[Mapping[str, Any]] = [each for each in self.objects if each["kind"] == "NetworkPolicy"]
        return next(each["spec"] for each in found if each["metadata"]["name"] == name)


def programs(kind: str) -> Iterator[Program]:
    """Yield every router, picker or engine of all our values; of routers the sidecar as well."""
    for name, values in all_values().items():
        for pod in pods(rendered(name)):
            if pod.component == kind:
                env = environment(pod.containers[0], values.get("ipFamily", "IPv4"))
                yield Program(values, pod, pod.containers[0], env, rendered(name))
    if kind == "router":
        pod = next(pods([yaml.safe_load(SIDECAR.read_text())]))
        yield Program({}, pod, pod.containers[0], environment(pod.containers[0]), [])


@needs_tools
def test_routers_take_their_environment() -> None:
    """Every GC_ROUTER_* variable is a setting with a value in its range, and is what the values say."""
    seen = list(programs("router"))
    assert len(seen) > 4
    for program in seen:
        settings = load_router_settings({}, None, program.env)
        assert settings.index_key == SECRETS["index-key"]
        given = program.values.get("router", {})
        scaled = given.get("autoscaling", {}).get("enabled", False)
        sidecar = not program.objects
        assert settings.replicas == (1 if sidecar else 2 if scaled else given.get("replicas", 2))
        port = parse_listen(settings.listen, "listen").port
        assert [each["containerPort"] for each in program.container.get("ports", [])] in ([port], [])
        target = parse_redis_url(settings.redis_url or "")
        assert (target.username, target.password) == ("gc-router", SECRETS["redis-router-password"])
        for name, value in given.get("settings", {}).items():
            assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)


@needs_tools
def test_engines_take_their_environment() -> None:
    """Every GC_* variable is a setting with a value in its range; names and addresses are the pod's own."""
    seen = list(programs("engine"))
    assert len(seen) > 5
    for program in seen:
        settings = load_settings({}, program.env)
        assert settings.worker_id == POD_NAME
        address = POD_IP["IPv4"] if program.values.get("ipFamily") != "IPv6" else f"[{POD_IP['IPv6']}]"
        ports = {each["name"]: each["containerPort"] for each in program.container["ports"]}
        assert settings.http_url == f"http://{address}:{ports['http']}"
        any_address = "::" if program.values.get("ipFamily") == "IPv6" else "0.0.0.0"
        assert {f"--host={any_address}", f"--port={ports['http']}"} < set(program.container["args"])
        assert settings.index_key == SECRETS["index-key"]
        target = parse_redis_url(settings.redis_url or "")
        assert (target.username, target.password) == ("gc-worker", SECRETS["redis-worker-password"])
        assert settings.host_tier_gib == program.given.get("hostTierGib", 0)
        for name, value in program.given.get("settings", {}).items():
            assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)


@needs_tools
@pytest.mark.parametrize("kind", ["router", "epp", "engine"])
def test_variables_that_are_no_settings_are_known(kind: str) -> None:
    """None begins with GC_, which the code would refuse, and each is one that something reads."""
    for program in programs(kind):
        others = {name for name in program.env if not name.startswith("GC_")}
        assert others <= OTHER_VARIABLES | GIVEN_BY_VALUES
        # Kubernetes would add GC_..._SERVICE_HOST for a Service whose name begins so, VLLM_PORT for one called vllm.
        assert program.pod.spec["enableServiceLinks"] is False
        assert not any("$(" in value for value in program.env.values())


@needs_tools
def test_certificates_are_where_the_url_says() -> None:
    """With TLS, the file that GC_REDIS_URL names is mounted, and Redis listens with TLS."""
    found = 0
    for program in [*programs("router"), *programs("epp"), *programs("engine")]:
        target = parse_redis_url(program.env["GC_REDIS_URL"])
        mounts = {mount["mountPath"]: mount["name"] for mount in program.container["volumeMounts"]}
        assert target.tls == ("ssl_ca_certs" in target.options)
        if target.tls:
            found += 1
            path = Path(target.options["ssl_ca_certs"])
            volumes = {volume["name"]: volume for volume in program.pod.spec["volumes"]}
            items = volumes[mounts[str(path.parent)]]["secret"]["items"]
            assert {item["path"] for item in items} == {path.name}
    assert found > 3


@needs_tools
def test_relay_ports_are_those_of_the_ranks() -> None:
    """Each rank's port is declared, and the policy lets through the first to the last."""
    without = 0
    for program in programs("engine"):
        settings = load_settings({}, program.env)
        declared = [each["containerPort"] for each in program.container["ports"] if each["name"].startswith("relay-")]
        ranges = [rule["ports"] for rule in program.policy["ingress"] if "endPort" in rule["ports"][0]]
        if settings.relay_listen is None:
            without += 1
            assert declared == []
            assert all(ports[0]["port"] == SIDE_CHANNEL for ports in ranges)
            continue
        assert settings.relay_token == SECRETS["relay-token"]
        first = parse_listen(settings.relay_listen, "relay_listen").port
        ranks = program.given.get("tensorParallel", 1) * program.given.get("dataParallel", 1)
        assert declared == [port_of_rank(first, rank, "relay_listen") for rank in range(ranks)]
        assert ranges[0] == [{"port": declared[0], "endPort": declared[-1]}]
    assert without > 0


@needs_tools
def test_engines_that_hand_prompts_over_reach_each_other() -> None:
    """Each copy in a pod has a side channel, and it and UCX listen where other engines, and nobody else, are let in."""
    roles = set()
    for program in programs("engine"):
        role = program.given.get("pdRole")
        assert program.pod.labels.get("ghostcacher/pd-role") == role
        opened = [rule for rule in program.policy["ingress"] if rule["ports"][0]["port"] == SIDE_CHANNEL]
        declared = [each["containerPort"] for each in program.container["ports"] if each["name"].startswith("nixl-")]
        if role is None:
            assert opened == declared == []
            assert not any("NIXL" in name or name == "UCX_TCP_PORT_RANGE" for name in program.env)
            continue
        roles.add(role)
        assert declared == [SIDE_CHANNEL + copy for copy in range(program.given.get("dataParallel", 1))]
        assert program.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == str(SIDE_CHANNEL)
        assert program.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == program.env["POD_IP"]
        first, last = map(int, program.env["UCX_TCP_PORT_RANGE"].split("-"))
        assert [rule["ports"] for rule in opened] == [
            [{"port": declared[0], "endPort": declared[-1]}, {"port": first, "endPort": last}]
        ]
        (peer,) = opened[0]["from"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "engine"
    assert roles == {"prefill", "decode"}


def path_of(probe: Mapping[str, Any]) -> str:
    """Return the path that a probe asks for, by itself or by a command."""
    if "httpGet" in probe:
        return str(probe["httpGet"]["path"])
    found = re.search(r"http://127\.0\.0\.1:\d+([^']*)'", probe["exec"]["command"][-1])
    assert found is not None
    return found[1]


@needs_tools
def test_paths_are_served() -> None:
    """Probes, monitors and `helm test` ask for paths that the router answers itself, and asks engines for."""
    kinds = ("startupProbe", "livenessProbe", "readinessProbe")
    for program in programs("router"):
        asked = {kind: path_of(program.container[kind]) for kind in kinds if kind in program.container}
        assert set(asked.values()) == {"/health", "/ready"} < set(admin._OPEN)
        assert asked["livenessProbe"] == "/health"
        assert asked.get("readinessProbe", asked["startupProbe"]) == "/ready"
    for program in programs("engine"):
        assert {path_of(program.container[kind]) for kind in kinds} == {"/health"}
    asks_engines = inspect.getsource(probes)
    assert all(f'"{path}"' in asks_engines for path in ("/health", "/metrics"))
    ends = [
        end["path"]
        for name in all_values()
        for found in rendered(name)
        for kind, key in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints"))
        if found["kind"] == kind
        for end in found["spec"][key]
    ]
    assert set(ends) == {"/metrics"} < set(admin._OPEN)
    test = next(found for found in rendered("plain") if found["kind"] == "Pod")["spec"]["containers"][0]["args"][0]
    assert re.findall(r":8000(\S*)\"", test) == ["/ready"]


@needs_tools
def test_connector_is_named_as_it_is_called() -> None:
    """The flags that turn the connector on are those with which `ghostcacher up` starts engines."""
    vllm = {
        key: value
        for key, value in json.loads(transfer_config({}, 1, module_path=False)).items()
        if key != "kv_connector_extra_config"
    }
    sglang = linker_arguments({}, 1)
    linker = {key: value for key, value in json.loads(sglang[-1]).items() if key != "linker_extra_config"}
    kinds = set()
    for program in programs("engine"):
        flags = dict(argument.partition("=")[::2] for argument in program.container["args"])
        kinds.add(program.container["command"][-1])
        if "--kv-transfer-config" in flags:
            config = json.loads(flags["--kv-transfer-config"])
            # With a role, beside NixlConnector: tests/integration/deploy has vLLM and our own check read that.
            ours = config["kv_connector_extra_config"]["connectors"][-1] if "pdRole" in program.given else config
            assert ours | {"kv_role": "kv_both"} == vllm
        else:
            assert json.loads(flags[sglang[-2]]) == linker
            assert sglang[0] in flags
            assert flags[sglang[1]] == sglang[2]
    assert kinds == {"vllm.entrypoints.openai.api_server", "sglang.launch_server"}


def test_values_know_every_setting_and_no_other() -> None:
    """A setting that the schema lacks could not be set, one that the code lacks would end a pod."""
    definitions = json.loads((CHART / "values.schema.json").read_text())["$defs"]
    for name, code in (
        ("connectorSettings", Settings),
        ("routerSettings", RouterSettings),
        ("pickerSettings", PickerSettings),
    ):
        assert set(definitions[name]["propertyNames"]["enum"]) == set(types_of(code)) - SET_BY_CHART[name], name


def test_users_of_redis_may_do_what_the_code_does() -> None:
    """Each ACL user has the commands that its program runs, and the default user is off."""
    lines = (CHART / "files" / "redis" / "users.acl").read_text().splitlines()
    expected = [
        f"user NAME_OF_{name} on #HASH_OF_{name} {' '.join(acl_rules(commands))}" for name, commands in PROGRAMS.items()
    ]
    assert lines == ["user default off", *expected]

"""The compose file is valid, and whatever it names exists: variables, settings, files, ports, addresses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ghostcacher_cli.up.launch import IN_ONE_PROCESS
from ghostcacher_connector.config import load_settings
from ghostcacher_connector.core.settings import parse_listen
from ghostcacher_router.config import load_router_settings
from ghostcacher_router.config import load_settings as load_settings_of
from ghostcacher_router.epp.settings import PickerSettings
from tests.support.helm_chart import DEPLOY, needs_tools

FOLDER = DEPLOY / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::([-?])([^}]*))?\}")
SECRET = "a-secret-for-the-test"
UPSTREAM = "https://api.anthropic.com"
OPTIONAL = {"HF_TOKEN", "GC_UPSTREAM_URL"}
"""Empty in the example, and may stay so."""
APART = ("prefill-0", "prefill-1", "decode-0")
ENGINES = {
    "gpu": ("gpu-0", "gpu-1"),
    "cpu": ("cpu-0", "cpu-1"),
    "gpu-pd": tuple(f"gpu-{name}" for name in APART),
    "cpu-pd": tuple(f"cpu-{name}" for name in APART),
}
"""Profile -> the engines that it starts."""


def example() -> dict[str, str]:
    """Return the variables of .env.example, as somebody would have filled them in."""
    lines = (FOLDER / ".env.example").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value or (UPSTREAM if name == "GC_UPSTREAM_URL" else SECRET) for name, value in found.items()}


def compose() -> dict[str, Any]:
    """Return the file with the variables of the example in it, its anchors resolved."""
    found: dict[str, Any] = filled(yaml.safe_load(TEXT), example())
    return {name: value for name, value in found.items() if not name.startswith("x-")}


def filled(value: Any, variables: dict[str, str]) -> Any:
    """Return a value with variables in its texts, which stay texts."""
    if isinstance(value, dict):
        return {key: filled(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: variables.get(match[1]) or match[3] or "", value)
    return value


SERVICES = compose()["services"]


@needs_tools
def test_file_fits_the_specification() -> None:
    """Every key is one of the Compose Specification, with a value of its kind."""
    from compose_spec import PyCompose

    PyCompose.from_json(json.dumps(compose())).validate()


def test_example_has_every_variable_and_no_other() -> None:
    """COMPOSE_PROFILES is read by docker itself."""
    assert {match[1] for match in VARIABLE.finditer(TEXT)} | {"COMPOSE_PROFILES"} == set(example())
    assert example()["COMPOSE_PROFILES"] in ENGINES
    required = {match[1] for match in VARIABLE.finditer(TEXT) if match[2] == "?"}
    empty = {name for name, value in example().items() if value == SECRET} - OPTIONAL
    assert required - {"MODEL"} == empty


def test_defaults_are_those_of_the_example() -> None:
    """Who leaves a line out gets what the example says."""
    defaults = {match[1]: match[3] for match in VARIABLE.finditer(TEXT) if match[2] == "-"}
    given = example() | dict.fromkeys(OPTIONAL, "")
    assert {name: value for name, value in defaults.items() if value != given[name]} == {}


def test_router_takes_its_environment() -> None:
    """Its variables are settings, and it listens on the port that is published and probed."""
    router = SERVICES["router"]
    settings = load_router_settings({}, None, router["environment"])
    assert settings.admin_token == SECRET
    assert settings.upstreams == (UPSTREAM,)
    assert load_router_settings({}, None, router["environment"] | {"GC_UPSTREAM_URL": ""}).upstreams == ()
    assert router["ports"][0].rsplit(":", 1)[1] == str(parse_listen(settings.listen, "listen").port)
    assert seconds(router["stop_grace_period"]) > settings.drain_timeout_s + 2


def test_envoy_asks_the_picker_and_sends_to_engines() -> None:
    """Each at its name and port; the picker has time to end twice, for streams and for its HTTP port."""
    picker, envoy = SERVICES["picker"], SERVICES["envoy"]
    assert picker["profiles"] == envoy["profiles"] == ["envoy"]
    settings = load_settings_of(PickerSettings, {}, None, picker["environment"])
    assert settings.admin_token == SECRET
    assert seconds(picker["stop_grace_period"]) > 2 * settings.drain_timeout_s + 2
    folder, inside, _ = envoy["volumes"][0].split(":")
    path = envoy["command"][1].removeprefix(f"{inside}/")
    config = yaml.safe_load((FOLDER / folder / path).read_text())["static_resources"]
    listener = config["listeners"][0]["address"]["socket_address"]
    assert envoy["ports"][0].rsplit(":", 1)[1] == str(listener["port_value"])
    reached = {
        cluster["name"]: [
            (found["address"], found["port_value"])
            for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            for found in [each["endpoint"]["address"]["socket_address"]]
        ]
        for cluster in config["clusters"]
    }
    assert reached["picker"] == [("picker", parse_listen(settings.grpc_listen, "grpc_listen").port)]
    for profile in ("gpu", "cpu"):
        urls = [SERVICES[name]["environment"]["GC_HTTP_URL"] for name in ENGINES[profile]]
        assert [f"http://{host}:{port}" for host, port in reached["pool"]] == urls


@pytest.mark.parametrize("profile", ENGINES)
def test_engines_take_their_environment(profile: str) -> None:
    """Their variables are settings; names differ, and each URL is the engine's own alias with its port."""
    names = set()
    for name in ENGINES[profile]:
        service = SERVICES[name]
        assert service["profiles"] == [profile]
        settings = load_settings({}, {key: str(value) for key, value in service["environment"].items()})
        alias = service["networks"]["default"]["aliases"][0]
        arguments = [*service["entrypoint"], *service["command"]]
        port = next(argument for argument in arguments if argument.startswith("--port=")).partition("=")[2]
        assert settings.http_url == f"http://{alias}:{port}"
        assert "--host=0.0.0.0" in arguments
        assert settings.index_key == settings.relay_token == SECRET
        assert settings.redis_url == "redis://redis:6379/0"
        assert f":{port}/health" in service["healthcheck"]["test"][-1]
        # As `ghostcacher up` starts engines of one rank.
        in_one_process = IN_ONE_PROCESS.items() <= service["environment"].items()
        assert in_one_process == profile.startswith("cpu"), name
        names.add(settings.worker_id)
    assert names == {f"engine-{number}" for number in range(len(ENGINES[profile]))}


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_engines_that_hand_prompts_over_find_each_other(device: str) -> None:
    """Each is reached at its own name, which it can listen on, and two compute prompts for one that answers."""
    names = ENGINES[f"{device}-pd"]
    roles = []
    for name in names:
        service = SERVICES[name]
        alias = service["networks"]["default"]["aliases"][0]
        assert service["environment"]["VLLM_NIXL_SIDE_CHANNEL_HOST"] == service["hostname"] == alias
        (argument,) = service["command"]
        config = json.loads(argument.removeprefix("--kv-transfer-config="))
        first, last = config["kv_connector_extra_config"]["connectors"]
        (alone,) = SERVICES[f"{device}-0"]["command"]
        assert last == json.loads(alone.removeprefix("--kv-transfer-config="))
        roles.append((first["kv_connector"], first["kv_role"]))
    assert roles == [("NixlConnector", role) for role in ("kv_producer", "kv_producer", "kv_consumer")]
    shown = [SERVICES[name]["environment"].get("CUDA_VISIBLE_DEVICES", "").split(",") for name in names]
    assert device == "cpu" or [sorted(each) for each in shown] == [["0", "1", "2"]] * 3
    assert device == "cpu" or len({each[0] for each in shown}) == 3


def test_prometheus_scrapes_what_is_there() -> None:
    """Every target is a service or an alias, with the port on which it serves; rules are beside the file."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    }
    engines = {SERVICES[name]["environment"]["GC_WORKER_ID"] for names in ENGINES.values() for name in names}
    assert targets == {"router:8000", *(f"{engine}:8000" for engine in engines)}
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    assert Path(config["rule_files"][0]).parent.as_posix() == mounts["../prometheus"]
    source = yaml.safe_load((DEPLOY / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    dashboards = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yml").read_text())["providers"][0]
    assert f":{dashboards['options']['path']}:ro" in str(SERVICES["grafana"]["volumes"])


def test_files_that_are_named_exist() -> None:
    """Files that are mounted, and those that images are built from."""
    volumes = set(compose()["volumes"])
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in volumes
        if "build" in service:
            context = (FOLDER / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()


def test_nothing_is_published_beyond_this_machine_and_nothing_without_need() -> None:
    """Redis and engines have no port outside, and the others are on loopback unless .env says otherwise."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"router", "envoy", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    for name in ("router", "picker", "envoy", "redis"):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def seconds(text: str) -> int:
    """Return how long "40s" or "2m" is."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]

"""The plain manifests are what the chart renders now, and the sidecar beside them fits them."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import yaml

from tests.support.helm_chart import DEPLOY, needs_tools, pods, rendered
from tests.unit.deploy.test_chart_objects import validate

FOLDER = DEPLOY / "kubernetes"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_tools
def test_files_are_up_to_date(script: ModuleType) -> None:
    """Each file is what `make manifests` would write, and there are no others."""
    expected = script.manifests()
    written = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")}
    assert set(expected) == written - {"examples/sidecar.yaml", "examples/gateway.yaml"}
    outdated = [file for file, text in expected.items() if (FOLDER / file).read_text() != text]
    assert not outdated, f"run `make manifests`: {outdated}"


@needs_tools
def test_files_hold_all_objects_in_an_order_that_can_be_applied(script: ModuleType) -> None:
    """The namespace comes first, and nothing that is rendered for Helm's users is missing but what is Helm's own."""
    texts = [text for file, text in script.manifests().items() if not file.startswith("examples/")]
    found = [each for text in texts for each in yaml.safe_load_all(text) if each]
    assert found[0]["kind"] == "Namespace"
    expected = [each for each in rendered("plain") if "helm.sh/hook" not in each["metadata"].get("annotations", {})]
    assert {(each["kind"], each["metadata"]["name"]) for each in found} == {
        (each["kind"], each["metadata"]["name"]) for each in expected
    }
    assert len(found) == len(expected)


@needs_tools
def test_sidecar_fits_the_fleet() -> None:
    """It is valid, ends later than its router, may reach Redis and engines, and is no router of the Service."""
    found = yaml.safe_load((FOLDER / "examples" / "sidecar.yaml").read_text())
    validate(found)
    pod = next(pods([found]))
    fleet = rendered("plain")
    policies = [each["spec"] for each in fleet if each["kind"] == "NetworkPolicy"]
    reached = [
        policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for policy in policies
        for rule in policy["ingress"]
        for peer in rule.get("from", [])
        if "podSelector" in peer and peer["podSelector"]["matchLabels"].items() <= pod.labels.items()
    ]
    assert sorted(reached) == ["engine", "redis"]
    service = next(each for each in fleet if each["kind"] == "Service" and each["metadata"]["name"].endswith("-router"))
    assert not service["spec"]["selector"].items() <= pod.labels.items()
    hosts = {each["metadata"]["name"] for each in fleet if each["kind"] == "Service"}
    assert any(f"@{host}:" in str(pod.containers[0]["env"]) for host in hosts)
    app = {each["name"]: each["value"] for each in pod.spec["containers"][0]["env"]}
    listen = next(each["value"] for each in pod.containers[0]["env"] if each["name"] == "GC_ROUTER_LISTEN")
    assert app["OPENAI_BASE_URL"] == f"http://{listen.replace('127.0.0.1', 'localhost')}/v1"
    assert pod.containers[0]["restartPolicy"] == "Always"

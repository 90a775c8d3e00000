"""What the chart's NetworkPolicies let routers connect to is what their settings have them connect to."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_router.config import load_router_settings
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint
from ghostcacher_router.providers.choice import parse_upstream
from tests.support.helm_chart import environment, needs_tools, pods, render

pytestmark = needs_tools

ON: Mapping[str, Any] = {"egress": {"enabled": True}}
PUBLIC, METADATA, INSIDE = "8.8.8.8", "169.254.169.254", "10.1.2.3"


def policy_of_routers(values: Mapping[str, Any]) -> Mapping[str, Any]:
    found: list[Mapping[str, Any]] = [each for each in render(values) if each["kind"] == "NetworkPolicy"]
    return next(each["spec"] for each in found if each["metadata"]["name"] == "ghostcacher-router")


def reaches(policy: Mapping[str, Any], address: str, port: int) -> bool:
    """Say whether a policy lets through a connection to an address that is no pod's."""
    return any(
        port in [each["port"] for each in rule["ports"]]
        and ("to" not in rule or any(_holds(peer, address) for peer in rule["to"]))
        for rule in policy["egress"]
    )


def _holds(peer: Mapping[str, Any], address: str) -> bool:
    block = peer.get("ipBlock")
    if block is None:
        return False
    excepted = any(ip_address(address) in ip_network(each) for each in block["except"])
    return ip_address(address) in ip_network(block["cidr"]) and not excepted


def pods_reached(policy: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the components of this release that a policy lets through to, and the ports."""
    return {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: [each["port"] for each in rule["ports"]]
        for rule in policy["egress"]
        for peer in rule.get("to", [])
        if "podSelector" in peer
    }


def test_what_is_sent_is_held_up_only_where_values_ask_for_it() -> None:
    """And then name servers, Redis and engines are reached, and nothing else is."""
    engines = [{"name": "a", "model": "m"}]
    assert policy_of_routers({"engines": engines})["policyTypes"] == ["Ingress"]
    assert "egress" not in policy_of_routers({"engines": engines})
    policy = policy_of_routers({"engines": engines, "networkPolicy": ON})
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert pods_reached(policy) == {"redis": [6379], "engine": [8000]}
    assert {("UDP", 53), ("TCP", 53)} == {(each["protocol"], each["port"]) for each in policy["egress"][0]["ports"]}
    assert reaches(policy, METADATA, 53)
    assert not any(reaches(policy, PUBLIC, port) for port in (80, 443, 6379, 8000))


@pytest.mark.parametrize(
    "settings",
    [
        {"upstreams": ["anthropic=https://api.anthropic.com"]},
        {"upstreams": "https://api.openai.com,bedrock=https://bedrock-runtime.us-east-1.amazonaws.com"},
        {"upstreams": ["openai=https://llm.example.com:8443/v1", "anthropic=https://api.anthropic.com"]},
        {"workers": ["http://8.8.8.8:9000", "http://8.8.8.8", "https://[2001:4860::1]:9443"]},
    ],
)
def test_urls_in_settings_are_reached(settings: Mapping[str, Any]) -> None:
    """At the ports that the router will connect to; providers nowhere in a private network."""
    values = {"networkPolicy": ON, "router": {"settings": settings}}
    policy = policy_of_routers(values)
    pod = next(each for each in pods(render(values)) if each.component == "router")
    found = load_router_settings({}, None, environment(pod.containers[0]))
    ports = [parse_endpoint(url, "workers").port for url in found.workers]
    for port in ports:
        assert reaches(policy, INSIDE, port)
    for text in found.upstreams:
        port = parse_upstream(text, "upstreams").endpoint.port
        assert reaches(policy, PUBLIC, port)
        assert reaches(policy, "2001:4860:4860::8888", port)
        assert not any(reaches(policy, address, port) for address in (METADATA, INSIDE, "fd00::1", "::1"))
    assert not reaches(policy, PUBLIC, 6379)
    assert not reaches(policy, PUBLIC, 4318)


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("redis://redis.internal", ()),
        ("rediss://redis.internal:6380/0", ()),
        ("rediss://[fd00::1]:7000/0?ssl_check_hostname=0", ()),
        ("redis+cluster://a:7001,b:7002,c", ()),
        ("redis+sentinel://a,b:26380/service", (6379,)),
    ],
)
def test_redis_of_yours_is_reached(url: str, more: tuple[int, ...]) -> None:
    """Each host of its URL at its port; behind Sentinel, the server that it names."""
    policy = policy_of_routers({"networkPolicy": ON, "redis": {"url": url}})
    assert pods_reached(policy) == {}
    ports = [port for _, port in parse_redis_url(url).nodes] + list(more)
    assert ports
    assert all(reaches(policy, INSIDE, port) for port in ports)


def test_more_rules_are_taken_as_they_are() -> None:
    """For what the chart cannot know of, such as a collector of traces."""
    more = {"to": [{"namespaceSelector": {}}], "ports": [{"port": 4318}]}
    policy = policy_of_routers({"networkPolicy": {"egress": {"enabled": True, "extra": [more]}}})
    assert policy["egress"][-1] == more

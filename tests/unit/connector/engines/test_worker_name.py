"""What a worker is called when nobody has named it."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.common import worker_name
from ghostcacher_connector.engines.common.worker_name import address_name, chosen_name

HERE = "node-7"
OURS = ("10.0.0.7", "2001:db8::7")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: HERE)
    monkeypatch.setattr(worker_name, "_is_assigned", lambda address: str(address) in OURS)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7-8000"),
        ("https://node-7.example.com:8443/", "node-7.example.com-8443"),
        ("http://Node-7:8443", "node-7-8443"),
        ("http://[2001:db8::7]:8000", "2001-db8--7-8000"),
        ("http://127.0.0.1:8000", "node-7-8000"),
        ("http://localhost:8001", "node-7-8001"),
        ("http://[::1]:8001", "node-7-8001"),
        ("http://10.0.0.8:8000", None),
        ("http://service:8000", None),
        ("http://gateway", None),
        ("http://gateway:80/engine-1", None),
        (f"http://node-7.{'x' * 130}:8000", None),
        ("http://[fe80::1%25eth0]:8000", None),
    ],
)
def test_name_is_made_of_host_and_port(url: str, name: str | None) -> None:
    """Only where they stand for one engine in the whole fleet: loopback does on its own machine alone."""
    assert address_name(url) == name


def test_given_name_wins_and_the_engines_id_is_the_last_resort() -> None:
    """Every worker has a name that nobody else has."""
    url = "http://10.0.0.7:8000"
    assert chosen_name(Settings(worker_id="w", http_url=url), "id") == "w"
    assert chosen_name(Settings(http_url=url), "id") == "10.0.0.7-8000"
    assert chosen_name(Settings(http_url="http://gateway/"), "id") == "id"
    assert chosen_name(Settings(), "id") == "id"


def test_engines_behind_one_service_have_names_of_their_own() -> None:
    """A URL that several engines were given must not make them one worker."""
    settings = Settings(http_url="http://service:8000")
    assert {chosen_name(settings, "one"), chosen_name(settings, "two")} == {"one", "two"}


def test_machines_that_are_all_called_localhost_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback on a machine without a name of its own says nothing."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert address_name("http://127.0.0.1:8000") is None


def test_own_addresses_are_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By binding to them: loopback is every machine's, a documentation address nobody's."""
    monkeypatch.undo()
    assert worker_name._is_assigned(ipaddress.ip_address("127.0.0.1"))
    assert not worker_name._is_assigned(ipaddress.ip_address("192.0.2.1"))


def test_names_are_fit_to_be_given() -> None:
    """What is made here would also be taken as `worker_id`."""
    name = address_name("http://[2001:db8::7]:8000")
    assert Settings(worker_id=name).worker_id == name

"""What a worker is called when nobody has named it."""

from __future__ import annotations

import socket

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.common.worker_name import address_name, chosen_name

HERE = "node-7"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: HERE)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7-8000"),
        ("https://gpu-3.example.com:8443/", "gpu-3.example.com-8443"),
        ("http://[2001:db8::7]:8000", "2001-db8--7-8000"),
        ("http://127.0.0.1:8000", "node-7-8000"),
        ("http://localhost:8001", "node-7-8001"),
        ("http://[::1]:8001", "node-7-8001"),
        ("http://0.0.0.0:8001", "node-7-8001"),
        ("http://gateway", None),
        ("http://gateway:80/engine-1", None),
        (f"http://{'x' * 130}:8000", None),
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


def test_names_are_fit_to_be_given() -> None:
    """What is made here would also be taken as `worker_id`."""
    name = address_name("http://[2001:db8::7]:8000")
    assert Settings(worker_id=name).worker_id == name

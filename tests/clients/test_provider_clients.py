"""Clients that other people wrote reach hosted models through the router, and find what it has had cached.

The servers in the places of OpenAI and Anthropic refuse what these would refuse.
"""

from __future__ import annotations

import pytest

from tests.clients.hosted import KEY, Hosted
from tests.clients.served import CLIENTS_PYTHON, HERE, report_of, with_clients, with_node

TEXTS = {"openai": "Hello there", "anthropic": "Hello"}
CACHED_TOKENS_MIN = 1024


def check(hosted: Hosted, command: list[str], name: str, providers: set[str]) -> None:
    """Run a program that asks twice for the same long prompt: a second time it is read from the provider's cache."""
    report = report_of([*command, hosted.url, KEY, f"I am {name}. " + "Answer in one word. " * 400])
    assert set(report) == providers
    for provider, found in report.items():
        assert all(text.startswith(TEXTS[provider]) for text in found["texts"]), found
        assert found["cached"] >= CACHED_TOKENS_MIN
        assert found["wrong key"] == "refused"


@with_clients
@pytest.mark.parametrize(
    ("name", "providers"),
    [
        ("openai", {"openai"}),
        ("anthropic", {"anthropic"}),
        ("litellm", {"openai", "anthropic"}),
        ("langchain", {"openai", "anthropic"}),
        ("llama_index", {"openai"}),
    ],
)
def test_python_client_of_hosted_models(hosted: Hosted, name: str, providers: set[str]) -> None:
    check(hosted, [CLIENTS_PYTHON, str(HERE / "python" / "providers" / f"{name}_provider.py")], name, providers)


@with_node
def test_ai_sdk_of_hosted_models(hosted: Hosted) -> None:
    check(hosted, ["node", str(HERE / "node" / "ai_sdk_provider.mjs")], "ai", {"openai", "anthropic"})

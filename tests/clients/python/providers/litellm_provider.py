"""litellm, for hosted models of OpenAI and Anthropic: streamed and not, and a wrong key."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

URL, KEY, PROMPT = sys.argv[1:]
PROVIDERS = {"openai": ("openai/gpt-4.1", f"{URL}/v1"), "anthropic": ("anthropic/claude-sonnet-5", URL)}
MESSAGES = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "How are you?"}]


def ask(provider: str, **changes: Any) -> Any:
    model, base = PROVIDERS[provider]
    given = {"messages": MESSAGES, "max_tokens": 9, "num_retries": 0, "api_key": KEY, **changes}
    return litellm.completion(model=model, api_base=base, **given)


def main() -> None:
    report = {}
    for provider in PROVIDERS:
        first, second = ask(provider), ask(provider)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(provider, stream=True))
        try:
            ask(provider, api_key="wrong")
            error = "no error"
        except litellm.AuthenticationError:
            error = "refused"
        cached = second.usage.prompt_tokens_details.cached_tokens
        report[provider] = {"texts": [first.choices[0].message.content, streamed], "cached": cached, "wrong key": error}
    print(json.dumps(report))


main()

"""litellm, with the providers for OpenAI's, vLLM's and Anthropic's API."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

URL, MODEL = sys.argv[1:]
QUESTION = [{"role": "user", "content": "How are you?"}]
PROVIDERS = {"openai": f"{URL}/v1", "hosted_vllm": f"{URL}/v1", "anthropic": URL}


def ask(provider: str, **changes: Any) -> Any:
    call = {"messages": QUESTION, "max_tokens": 8, "temperature": 0, "num_retries": 0, "api_key": "none", **changes}
    return litellm.completion(model=f"{provider}/{call.pop('named', MODEL)}", api_base=PROVIDERS[provider], **call)


def error_of(provider: str) -> list[Any]:
    try:
        ask(provider, named="nobody")
    except litellm.exceptions.APIError as exc:
        return ["an API error", exc.status_code]
    except Exception as exc:
        return [type(exc).__name__, getattr(exc, "status_code", None)]
    return ["no error"]


def main() -> None:
    report = {}
    for provider in PROVIDERS:
        answer = ask(provider)
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask(provider, stream=True)]
        report[provider] = {
            "chat": [
                answer.choices[0].message.content,
                answer.choices[0].finish_reason,
                answer.usage.completion_tokens,
            ],
            "streamed": "".join(pieces),
            "unknown model": error_of(provider),
        }
    print(json.dumps(report))


main()

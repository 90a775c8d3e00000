"""anthropic: messages, streamed and not, with a system prompt in parts, token counts and errors."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic

URL, MODEL = sys.argv[1:]
ASKED: Any = {
    "model": MODEL,
    "max_tokens": 10,
    "extra_body": {"temperature": 0},
    "system": [{"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "How are you?"}]}],
}


def error_of(call: Any) -> list[Any]:
    """Return the class and the status of the error that a call raises."""
    try:
        call()
    except anthropic.APIStatusError as exc:
        return [type(exc).__name__, exc.status_code]
    return ["no error"]


def main() -> None:
    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    answer = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    turn = [{"role": "assistant", "content": answer.content[0].text}, {"role": "user", "content": "And now?"}]
    second = client.messages.create(**{**ASKED, "messages": [*ASKED["messages"], *turn]})
    report = {
        "message": [answer.content[0].text, answer.stop_reason, answer.usage.output_tokens],
        "streamed": [text, final.stop_reason, final.usage.output_tokens],
        "second turn": [second.content[0].text, second.stop_reason],
        "count": client.messages.count_tokens(model=MODEL, messages=ASKED["messages"]).input_tokens,
        "unknown model": error_of(lambda: client.messages.create(**{**ASKED, "model": "nobody"})),
        "bad parameter": error_of(lambda: client.messages.create(**{**ASKED, "extra_body": {"temperature": -1}})),
    }
    print(json.dumps(report))


main()

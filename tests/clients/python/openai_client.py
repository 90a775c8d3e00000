"""openai: every kind of call that an engine answers, then errors, a client that leaves, and many at once."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai

URL, MODEL = sys.argv[1:]
QUESTION: Any = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "How are you?"}]
AT_ONCE = 12


def choices(answer: Any) -> list[Any]:
    """Return what an answer says, without what differs from run to run."""
    said = [one.message.content if hasattr(one, "message") else one.text for one in answer.choices]
    return [[one.index, one.finish_reason, text] for one, text in zip(answer.choices, said, strict=True)]


def error_of(call: Any) -> list[Any]:
    """Return the class and the status of the error that a call raises."""
    try:
        call()
    except openai.APIStatusError as exc:
        return [type(exc).__name__, exc.status_code]
    return ["no error"]


def streamed_chat(client: openai.OpenAI) -> list[Any]:
    text, reasons, tokens = "", [], []
    asked: Any = {"max_tokens": 12, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(model=MODEL, messages=QUESTION, **asked):
        for one in chunk.choices:
            text += one.delta.content or ""
            reasons += [one.finish_reason] if one.finish_reason else []
        tokens += [chunk.usage.completion_tokens] if chunk.usage else []
    return [text, reasons, tokens]


def streamed_response(client: openai.OpenAI) -> list[Any]:
    text, kinds = "", []
    with client.responses.stream(model=MODEL, input="Say it.", max_output_tokens=8, temperature=0) as events:
        for event in events:
            kinds += [event.type] if event.type not in kinds else []
            text += event.delta if event.type == "response.output_text.delta" else ""
    return [text, kinds]


def leave_early(client: openai.OpenAI) -> str:
    """Close a stream after its first chunk; the connection pool must be good for the next call."""
    stream = client.completions.create(model=MODEL, prompt="One two", max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    return "left"


async def many() -> list[Any]:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
        calls = [
            client.completions.create(model=MODEL, prompt=f"{number} is", max_tokens=4, temperature=0)
            for number in range(AT_ONCE)
        ]
        return [choices(answer) for answer in await asyncio.gather(*calls)]


def main() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    asked = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    chat, text = client.chat.completions.create, client.completions.create
    answer = chat(messages=QUESTION, logprobs=True, top_logprobs=2, **asked)
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    formatted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=8, temperature=0)
    report = {
        "models": [model.id for model in client.models.list()],
        "chat": choices(answer),
        "logprobs": [one.token for one in answer.choices[0].logprobs.content],
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "streamed chat": streamed_chat(client),
        "text": choices(text(prompt=["def main():", "class A:"], echo=True, **asked)),
        "token ids": choices(text(prompt=[5, 6, 7, 8], **asked)),
        "json": choices(chat(messages=QUESTION, response_format=formatted, **{**asked, "max_tokens": 40})),
        "response": response.output_text,
        "streamed response": streamed_response(client),
        "unknown model": error_of(lambda: chat(messages=QUESTION, model="nobody")),
        "bad parameter": error_of(lambda: chat(messages=QUESTION, **{**asked, "temperature": -1})),
        "too long": error_of(lambda: text(prompt=[5] * 5000, **asked)),
        "leaves": leave_early(client),
        "many": asyncio.run(many()),
    }
    print(json.dumps(report))


main()

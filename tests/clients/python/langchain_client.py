"""langchain-openai and langchain-anthropic: a chain, a stream, a batch."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL = sys.argv[1:]
PROMPT = ChatPromptTemplate([("system", "You are terse."), ("user", "What is {thing}?")])
COMMON: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8, "api_key": "none", "max_retries": 0}


def main() -> None:
    chats = {
        "chat": ChatOpenAI(base_url=f"{URL}/v1", **COMMON),
        "responses": ChatOpenAI(base_url=f"{URL}/v1", use_responses_api=True, **COMMON),
        "anthropic": ChatAnthropic(base_url=URL, **COMMON),
    }
    report: dict[str, Any] = {}
    for name, chat in chats.items():
        chain = PROMPT | chat | StrOutputParser()
        report[name] = {
            "invoked": chain.invoke({"thing": "rain"}),
            "streamed": "".join(chain.stream({"thing": "rain"})),
            "batch": chain.batch([{"thing": str(number)} for number in range(6)]),
        }
    report["text"] = OpenAI(base_url=f"{URL}/v1", **COMMON).invoke("def main():")
    print(json.dumps(report))


main()

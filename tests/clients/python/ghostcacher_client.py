"""ghostcacher.client: both APIs, whole and streamed, errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "sdk" / "python" / "src"))

from ghostcacher.client import GhostCacherClient, StatusError

url, model = sys.argv[1:]
GIVEN = {
    "model": model,
    "max_tokens": 8,
    "temperature": 0,
    "system": "You are terse.",
    "documents": ["The sky is blue.", "Grass is green."],
    "messages": [{"role": "user", "content": "How are you?"}],
}
report = {}
for provider in ("anthropic", "openai"):
    with GhostCacherClient(provider=provider, ghostcacher_url=url, retries_max=0) as client:
        answer = client.messages.create(**GIVEN)
        with client.messages.create(**GIVEN, stream=True) as stream:
            streamed = "".join(stream.texts())
        try:
            client.messages.create(**GIVEN | {"model": "nobody"})
            error = "no error"
        except StatusError as exc:
            error = exc.status
        report[provider] = [answer.text, streamed == answer.text, error]
with GhostCacherClient(provider="openai", ghostcacher_url=url) as client:
    report["completion"] = client.completions.create(model=model, prompt="One two", max_tokens=8, temperature=0).text
print(json.dumps(report))

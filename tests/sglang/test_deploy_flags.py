"""SGLang's own parser, on the flags with which the chart starts it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from sglang.srt.server_args import ServerArgs

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "ghostcacher" / "templates" / "_engine.tpl"


def test_sglang_takes_the_flags_of_the_chart() -> None:
    """SGLang knows each flag of its branch of the template, and of the part that both engines share."""
    text = TEMPLATE.read_text()
    command = text[text.index("command: [python3, -m, sglang.launch_server]") :]
    branch, _, rest = command.partition("{{- else -}}")
    shared = rest[rest.index('{{- end }}\n  - "--host') : rest.index("range $engine.extraArgs")]
    flags = re.findall(r"--[a-z-]+", branch + shared)
    assert len(flags) == 9, flags
    linker = re.search(r"--unified-cache-external-linker-config=(\{.*\})$", branch, re.MULTILINE)
    assert linker is not None
    assert json.loads(linker[1])["linker"] == "GhostCacherLinker"
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(flags) <= known, set(flags) - known

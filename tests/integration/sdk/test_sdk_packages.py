"""The two packages as people get them: what is in them, that they can be imported, and that their types hold."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.sdk.conftest import TYPESCRIPT
from tests.unit.architecture import ROOT
from tests.unit.sdk.test_event_decoder import EVENTS, STREAM

TIMEOUT_S = 300.0
CONSUMER = """
import { GhostCacherClient, StatusError, type Message, type Worker } from "@ghostcacher/client";
const anthropic = new GhostCacherClient({ provider: "anthropic", ghostcacherUrl: "http://r" });
const openai = new GhostCacherClient({ provider: "openai", ghostcacherUrl: "http://r", retriesMax: 1 });
const messages = [{ role: "user", content: "Why?" }];
export async function use(): Promise<string> {
  const message: Message = await anthropic.messages.create({ model: "m", max_tokens: 1, messages, documents: ["d"] });
  const chat = await openai.messages.create({ model: "m", messages }, { signal: AbortSignal.timeout(1000) });
  const ms: number | null = chat.cache.savedMs;
  for await (const event of await anthropic.messages.create({ model: "m", max_tokens: 1, messages, stream: true })) {
    const type: string = event.type;
    if (type === "ping") continue;
  }
  const workers: Worker[] = await openai.admin.workers();
  await openai.admin.flush("doc", { request: openai.messages.prepare({ model: "m", messages }) });
  // @ts-expect-error: Anthropic's API requires max_tokens.
  await anthropic.messages.create({ model: "m", messages });
  // @ts-expect-error: a field that there is not.
  await openai.messages.create({ model: "m", messages, documnts: [] });
  // @ts-expect-error: no scope.
  await openai.admin.flush("everything");
  return message.id + chat.text + String(ms) + workers.length + String(StatusError);
}
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_wheel_holds_the_client_alone(tmp_path: Path) -> None:
    """Its one package is part of a namespace, typed, with its licence; it can be imported from there."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT / "sdk" / "python", cwd=tmp_path)
    (wheel,) = tmp_path.glob("ghostcacher_client-*.whl")
    archive = zipfile.ZipFile(wheel)
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = ROOT / "sdk" / "python" / "src"
    assert names == {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "ghostcacher/client/py.typed" in names
    assert "ghostcacher/__init__.py" not in names
    (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    archive.extractall(tmp_path / "site")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ghostcacher.client as c; print(c.__file__)"
    assert run(sys.executable, "-I", "-c", code, tmp_path / "site", cwd=tmp_path).startswith(str(tmp_path / "site"))


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("use.mjs", 'import { GhostCacherClient } from "@ghostcacher/client"; console.log(typeof GhostCacherClient);'),
        (
            "use.cjs",
            'const { GhostCacherClient } = require("@ghostcacher/client"); console.log(typeof GhostCacherClient);',
        ),
    ],
)
def test_node_package_can_be_had_in_both_ways(package: Path, name: str, program: str) -> None:
    folder = package.parents[2]
    (folder / name).write_text(program)
    assert run("node", name, cwd=folder) == "function\n"


CUTS = """
const { EventDecoder } = await import("./node_modules/@ghostcacher/client/dist/esm/event-decoder.js");
const [bytes, events] = [Buffer.from(process.argv[2], "hex"), process.argv[3]];
for (let first = 0; first <= bytes.length; first++) {
  for (let second = first; second <= bytes.length; second++) {
    const decoder = new EventDecoder();
    const pieces = [bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)];
    const found = JSON.stringify(pieces.flatMap((piece) => decoder.feed(piece)).map(({ name, data }) => [name, data]));
    if (found !== events) throw new Error(`${first} ${second}: ${found}`);
  }
}
console.log(bytes.length);
"""


def test_node_reads_the_same_events_however_bytes_are_cut(package: Path) -> None:
    """As Python's client does, of the same stream, cut at every two places."""
    folder = package.parents[2]
    (folder / "cuts.mjs").write_text(CUTS)
    events = json.dumps(EVENTS, ensure_ascii=False, separators=(",", ":"))
    assert run("node", "cuts.mjs", STREAM.hex(), events, cwd=folder) == f"{len(STREAM)}\n"


LONG = """
const { EventDecoder } = await import("./node_modules/@ghostcacher/client/dist/esm/event-decoder.js");
const decoder = new EventDecoder();
const [mebi, enough] = [Buffer.alloc(1 << 20, "x"), 40];
decoder.feed(Buffer.from("data:"));
for (let piece = 0; piece < enough; piece++) decoder.feed(mebi);
decoder.feed(Buffer.from("\\n"));
const [event] = decoder.feed(Buffer.from("\\n"));
console.log(event.data.length >> 20);
for (const endless of [mebi, Buffer.from("data:\\n".repeat(1 << 18))]) {
  const another = new EventDecoder();
  try {
    for (let piece = 0; piece < 80; piece++) another.feed(endless);
  } catch (error) {
    console.log(error.message);
  }
}
"""


def test_node_takes_an_event_of_the_bound_however_it_comes(package: Path) -> None:
    """And one without an end is bounded, be it of empty lines, as Python's client does it."""
    folder = package.parents[2]
    (folder / "long.mjs").write_text(LONG)
    size, *errors = run("node", "long.mjs", cwd=folder).splitlines()
    assert size == "40"
    assert errors == [f"expected events of at most {64 << 20} characters, got a longer one"] * 2


def test_node_package_needs_nothing_and_its_types_hold(package: Path) -> None:
    """For modules of both kinds: what is right compiles, and what is wrong does not."""
    described = json.loads((package / "package.json").read_text())
    assert "dependencies" not in described
    # A copy: npm leaves out what is a link.
    assert not (TYPESCRIPT / "LICENSE").is_symlink()
    assert (TYPESCRIPT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    folder = package.parents[2]
    for name in ("use.mts", "use.cts"):
        (folder / name).write_text(CONSUMER)
    options = ["--noEmit", "--strict", "--module", "NodeNext", "--target", "ES2022", "--lib", "ES2022,DOM,DOM.Iterable"]
    run("node", TYPESCRIPT / "node_modules" / "typescript" / "bin" / "tsc", *options, "use.mts", "use.cts", cwd=folder)

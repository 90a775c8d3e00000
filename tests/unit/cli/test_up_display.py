"""What `ghostcacher up` reads from logs and shows of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ghostcacher_cli.terminal.live import Live
from ghostcacher_cli.up.arguments import parse
from ghostcacher_cli.up.diagnosis import exit_text, explain
from ghostcacher_cli.up.display import Standing, readiness, ready_lines, standing_lines, summary
from ghostcacher_cli.up.follow import READ_BYTES_MAX, LogFollower, phase_of, tail
from ghostcacher_cli.up.supervisor import State

LOG = """\
(APIServer pid=1) INFO 11-23 15:51:58 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}
(EngineCore pid=2) INFO 11-23 15:52:03 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m'
(Worker pid=3) INFO 11-23 15:52:15 [cpu_model_runner.py:68] Starting to load model m... (torch.compile is off)
Loading safetensors checkpoint shards:   0% Completed | 0/2\rLoading safetensors checkpoint shards:  50% Completed | 1/2
(Worker pid=3) INFO 11-23 15:52:16 [default_loader.py:501] Loading weights took 0.19 seconds
(EngineCore pid=2) INFO 11-23 15:52:18 [kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens
(APIServer pid=1) INFO 11-23 15:52:25 [entry.py:140] Starting vLLM server on http://127.0.0.1:39459
"""

WAITING = Standing("w2", "cores 1", State.WAITING, "", 3.0, "")
READY = Standing("w1", "cores 0", State.READY, "http://127.0.0.1:1", 3.0, "")
LOADING = Standing("w10", "cores 10,11", State.STARTING, "http://127.0.0.1:2", 75.0, "loading weights, 50%")


@pytest.mark.parametrize(
    ("lines", "phase"),
    [
        (0, "starting"),
        (1, "reading the model's configuration"),
        (2, "starting its processes"),
        (3, "loading weights"),
        (4, "loading weights, 50%"),
        (5, "preparing its cache"),
        (6, "warming up"),
        (7, "opening its port"),
    ],
)
def test_phase_follows_the_log(lines: int, phase: str) -> None:
    """How far a start is, is what the last telling line of vLLM's log says."""
    assert phase_of("\n".join(LOG.split("\n")[:lines])) == phase


def test_follower_whole_lines_once(tmp_path: Path) -> None:
    """Each line is shown once, when it is whole, with its name; a progress bar's steps are lines, too."""
    path, follower = tmp_path / "log", LogFollower("w1")
    assert follower.new_lines(path) == []
    path.write_bytes(b"one\r\ntwo 50%\rtwo 99%\nthr")
    assert follower.new_lines(path) == ["[w1] one", "[w1] two 50%", "[w1] two 99%"]
    with path.open("ab") as stream:
        stream.write(b"ee\n")
    assert follower.new_lines(path) == ["[w1] three"]
    assert follower.new_lines(path) == []


def test_follower_next_log_begun_anew(tmp_path: Path) -> None:
    """The log of the next life is read from its beginning."""
    follower = LogFollower("w1")
    (tmp_path / "a").write_text("a1\na2")
    (tmp_path / "b").write_text("b1\n")
    assert follower.new_lines(tmp_path / "a") == ["[w1] a1"]
    assert follower.new_lines(tmp_path / "b") == ["[w1] b1"]


def test_follower_flood_read_in_pieces(tmp_path: Path) -> None:
    """A flood is read piece by piece, and a line without an end does not grow in memory."""
    path, follower = tmp_path / "log", LogFollower("w1")
    path.write_bytes(b"x" * (2 * READ_BYTES_MAX + 10) + b"\nend\n")
    assert len(follower.new_lines(path)[0]) == len("[w1] ") + READ_BYTES_MAX
    follower.new_lines(path)
    assert follower.new_lines(path)[-1] == "[w1] end"


def test_follower_control_characters_removed(tmp_path: Path) -> None:
    """What a log says cannot move the cursor or ring a bell."""
    path = tmp_path / "log"
    path.write_bytes(b"\x1b[36mred\x1b[0m\x07 \x9b2J \xff\n")
    (line,) = LogFollower("w1").new_lines(path)
    assert line.startswith("[w1] red? ")
    assert "\x1b" not in line


def test_tail_of_no_file_is_empty(tmp_path: Path) -> None:
    """A log that is not there yet has nothing to say."""
    assert tail(tmp_path / "none") == ""


def test_explain_begins_with_the_cause() -> None:
    """The cause, deep in the log, comes first; then advice, and the end of the log."""
    log = "\n".join(["(EngineCore pid=2) ERROR 11-23 [core.py:1] ValueError: KV cache is too small"] + ["at x"] * 50)
    text = explain("w1 ended with status 1.", log + "\nlarger than the available KV cache memory", Path("/l"))
    lines = text.splitlines()
    assert lines[0] == "w1 ended with status 1."
    assert lines[1] == "ValueError: KV cache is too small"
    assert lines[2].startswith("Likely: the KV cache must hold max_model_len")
    assert len(lines) < 20


def test_explain_killed_engine_process_says_memory() -> None:
    """vLLM's own server lives on to say that the process behind it was killed: what that mostly means is told."""
    log = "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}"
    assert "Likely: a process of the engine was killed" in explain("w1 ended with status 1.", log, Path("/l"))
    assert "Likely" not in explain("w1 ended with status 1.", log.replace("-9", "-90"), Path("/l"))
    later = "WARNING 11-29 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
    assert "the engine's process was killed" in explain("w1 ended with status 0.", later, Path("/l"))


def test_explain_model_that_is_not_to_be_had() -> None:
    """A name with a typing error, or no network: what ends the engine is a traceback of the client's."""
    error = "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder"
    lines = explain("w1 ended with status 1.", f"Traceback\n{error}", Path("/l")).splitlines()
    assert lines[1] == error
    assert lines[2].startswith("Likely: the model cannot be had from Hugging Face")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (128, "ended with status 128"),
        (137, "ended with status 137 (128 + 9: it was killed, mostly by the system's out-of-memory killer)"),
        (139, "ended with status 139 (128 + 11: SIGSEGV)"),
        (255, "ended with status 255"),
    ],
)
def test_exit_text_names_the_signal(status: int, text: str) -> None:
    """A status above 128 is explained by the signal that it stands for; others stand for themselves."""
    assert exit_text(status) == text


def test_standing_lines_in_columns() -> None:
    """Each server is a line: who, where, how far, and for how long."""
    first, second = standing_lines([READY, LOADING])
    assert first == "w1   cores 0      ready at http://127.0.0.1:1"
    assert second == "w10  cores 10,11  loading weights, 50% (1 min 15 s)"


def test_readiness_says_who_is_missing() -> None:
    """The status line counts the ready ones, and names the others."""
    assert readiness([READY, WAITING]) == "1 of 2 engines ready; w2 ended, to be started again"
    assert summary([READY, LOADING]) == "w1 ready at http://127.0.0.1:1; w10 loading weights, 50% (1 min 15 s)"


def test_banner_names_the_served_model() -> None:
    """The example can be copied: it has the name under which the model is served."""
    text = "\n".join(ready_lines(parse(["o/m", "--served-model-name", "x", "--port", "81"], {})))
    assert "http://127.0.0.1:81/v1" in text
    assert '"model": "x"' in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_without_terminal_prints_lines_only() -> None:
    """Where nothing can be overwritten no control character appears, and no region."""
    stream = io.StringIO()
    live = Live(stream)
    live.show(["region"])
    live.note("a", "b")
    live.clear()
    assert stream.getvalue() == "a\nb\n"


def test_live_region_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is erased before anything else is written, and cut at the terminal's width."""
    monkeypatch.setenv("COLUMNS", "8")
    stream = Terminal()
    live = Live(stream)
    live.show(["one", "0123456789"])
    live.note()
    live.note("n")
    assert stream.getvalue() == "one\n012345~\n" + "\r\x1b[2A\x1b[J" + "n\none\n012345~\n"
    live.clear()
    assert stream.getvalue().endswith("\x1b[J")

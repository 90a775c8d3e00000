"""The router's commands: words in, settings or messages out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ghostcacher_cli import main as cli
from ghostcacher_cli.main import COMMANDS, router_options
from ghostcacher_connector import __version__
from ghostcacher_connector.core.errors import ConfigError, IndexUnavailable
from ghostcacher_router.config import RouterSettings


def test_router_no_words_gives_defaults() -> None:
    """Without options a router has its defaults."""
    assert router_options([], {}) == RouterSettings()


def test_router_options_over_file_over_environment(tmp_path: Path) -> None:
    """The command line wins over the file that it names, which wins over the environment."""
    file = tmp_path / "r.toml"
    file.write_text('listen = "127.0.0.1:2"\nretries_max = 2\nadmin_token = "0123456789abcdef"')
    words = ["--config", str(file), "--listen", "127.0.0.1:1"]
    settings = router_options(words, {"GC_ROUTER_RETRIES_MAX": "3", "GC_ROUTER_SESSION_TTL_S": "9"})
    assert (settings.listen, settings.retries_max, settings.session_ttl_s) == ("127.0.0.1:1", 2, 9)
    assert settings.admin_token == "0123456789abcdef"


def test_router_workers_and_switches() -> None:
    """Workers are named one by one; switches have a form that turns them off."""
    words = ["--worker", "http://a:1", "--worker", "http://b:2", "--no-redis", "--access-log", "--no-ghost-lock"]
    settings = router_options(words, {})
    assert settings.workers == ("http://a:1", "http://b:2")
    assert (settings.redis, settings.access_log, settings.ghost_lock) == (False, True, False)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--retries-max many", ("--retries-max", "an int from 0 to 16", "many")),
        ("--worker a:1", ("workers", "a:1")),
        ("--no-redis", ("workers", "redis is off")),
        ("--worker http://a:1 --worker http://b:2 --worker http://a:1", ("workers", "once", "'http://a:1' 2 times")),
        ("--worker http://u:hunter2@a --worker http://u:hunter2@a", ("workers", "once", "@a' 2 times")),
        ("--config /no/such.toml", ("--config", "/no/such.toml")),
        ("--redis-url http://:hunter2@h", ("redis_url",)),
    ],
)
def test_router_bad_option_refused_by_name(words: str, parts: tuple[str, ...]) -> None:
    """A bad option is refused; the message names it, and holds no secret."""
    with pytest.raises(ConfigError) as caught:
        router_options(words.split(), {})
    assert all(part in str(caught.value) for part in parts)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("words", ["--admin-token x", "--index-key x", "--work http://a:1", "x"])
def test_router_unknown_option_is_wrong_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Secrets have no option, since every user of a machine sees command lines; nothing is abbreviated."""
    with pytest.raises(SystemExit):
        router_options(words.split(), {})
    assert "usage: ghostcacher router" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("router --listenn 127.0.0.1:1", "did you mean --listen?"),
        ("router --acess-log=x", "did you mean --access-log?"),
        ("simulate chat --worker 3", "did you mean --workers?"),
        ("analyze x.jsonl --prefixs 3", "did you mean --prefixes?"),
        ("status --ulr http://h:1", "did you mean --url?"),
        ("doctor --nothing-like-it", "unrecognized arguments: --nothing-like-it\n"),
    ],
)
def test_misspelt_option_is_told_in_a_few_lines(words: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, and what was probably meant; not a screen of options."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words.split())
    printed = capsys.readouterr().err
    assert caught.value.code == cli.EXIT_USAGE
    assert hint in printed
    assert len(printed.splitlines()) == 3


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command is known to `ghostcacher`, and explains itself."""
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: ghostcacher {name}" in capsys.readouterr().out


def test_commands_listed_where_they_are_dispatched(capsys: pytest.CaptureFixture[str]) -> None:
    """What `ghostcacher --help` lists is what there is."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"    {name} " in printed for name in COMMANDS)


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    """The way that every program has."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ghostcacher {__version__}\n"


def test_output_that_nobody_reads_ends_quietly() -> None:
    """`ghostcacher version | head -0`: no traceback."""
    command = f"{sys.executable} -m ghostcacher_cli.main version | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode in {0, cli.EXIT_BROKEN_PIPE}
    assert done.stderr == ""


def test_errors_are_told_without_the_names_of_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """People read what is wrong, not what it is called in the code."""

    def fail(_: object) -> int:
        raise IndexUnavailable("Redis at h does not answer")

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Command("", fail))
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "ghostcacher: Redis at h does not answer\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("router", "--retries-max", "99"), "--retries-max: expected an int from 0 to 16"),
        (("up", "o/m", "--workers", "0"), "--workers: expected a number from 1 to 256, got 0"),
        (("status", "--url", "localhost:8000"), "--url: expected http[s]://"),
        (("top", "--token-env", "NO_SUCH_VARIABLE"), "--token-env: expected the variable NO_SUCH_VARIABLE"),
    ],
)
def test_command_bad_input_exits_with_2(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person can mend is one line and exit code 2, never a traceback."""
    assert cli.main(words) == 2
    assert f"ghostcacher: {message}" in capsys.readouterr().err

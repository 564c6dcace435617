"""The boundary of the command line: start-up, exit codes, and what a user sees of an error."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commonweight import __version__
from commonweight.cli.main import MOUNTS

REPO = Path(__file__).parents[2]
HELP_LIMIT_S = 0.3


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commonweight", *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=30,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
    )


def run_main(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `main` in a process in which `setup` has been executed first."""
    program = f"import sys\nsys.argv = ['commonweight', *{list(arguments)!r}]\n{setup}\n"
    program += "from commonweight.cli.main import main\nmain()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO, timeout=30)


def failing_command(error: str) -> str:
    """A stand-in for the `keys` commands, whose only command raises."""
    return f"""
import types, typer
from commonweight.errors import *
module = types.ModuleType("commonweight.cli.keys")
module.app = typer.Typer()
@module.app.command("fail")
def fail() -> None:
    raise {error}
sys.modules["commonweight.cli.keys"] = module
"""


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    check = "import atexit, json\natexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))"
    result = run_main(check, "--help")
    assert result.returncode == 0
    assert all(mount.name in result.stdout and mount.help in result.stdout for mount in MOUNTS)
    loaded = {name.partition(".")[0] for name in json.loads(result.stderr)}
    assert not loaded & {"torch", "web3", "grpc", "numpy", "pydantic", "rich", "node", "coordinator", "sqlalchemy"}


def test_help_takes_less_than_a_third_of_a_second() -> None:
    # Processor time, and the best of five: another process on the same machine mustn't fail this.
    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(5)) < HELP_LIMIT_S


def test_version() -> None:
    assert run("--version").stdout == f"commonweight {__version__}\n"


def test_version_in_the_environment_is_nothing_to_us() -> None:
    assert "Usage" in run("--help", COMMONWEIGHT_VERSION="1").stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["onwership"], "Did you mean 'ownership'?"),
        (["keys", "nwe"], "Did you mean 'new'?"),
        (["--confg", "x"], "--config"),
        (["keys", "show", "--pasword-file", "x"], "--password-file"),
        (["keys", "show"], "Missing argument 'FILE'"),
    ],
)
def test_what_is_not_understood_exits_2_with_a_suggestion(arguments: list[str], hint: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        ("SpecError('what is wrong')", "SPEC_INVALID", 2),
        ("PeerUnreachable('what is wrong')", "WIRE_UNREACHABLE", 3),
        ("InsufficientFunds('what is wrong')", "CHAIN_NO_FUNDS", 4),
        ("CheckpointError('what is wrong')", "STATE_CHECKPOINT", 5),
    ],
)
def test_an_error_of_ours_is_one_line_with_its_code(error: str, code: str, exit_code: int) -> None:
    result = run_main(failing_command(error), "keys", "fail")
    assert result.stderr == f"Error: [{code}] what is wrong\n"
    assert result.returncode == exit_code


def test_an_error_message_is_never_broken_or_styled() -> None:
    path = "/a/path/" + 30 * "that-is-long-" + "[bold]x[/bold]"
    result = run_main(failing_command(f"ConfigError({path!r})"), "keys", "fail")
    assert path in result.stderr


def test_an_unexpected_exception_is_reported_as_our_bug() -> None:
    result = run_main(failing_command("ZeroDivisionError('oops')"), "keys", "fail")
    assert result.returncode == 1
    assert "ZeroDivisionError: oops" in result.stderr
    assert "This is a bug in commonweight" in result.stderr


def test_control_c_exits_130_without_a_word() -> None:
    result = run_main(failing_command("KeyboardInterrupt"), "keys", "fail")
    assert result.returncode == 130
    assert result.stderr == ""


def test_a_real_interrupt_exits_130() -> None:
    wait = failing_command("SystemExit(1)").replace(
        "raise SystemExit(1)",
        "import signal; print('waiting', flush=True)\n    while True: signal.sigtimedwait([], 0.1)",
    )
    # Whoever runs the tests in the background of a shell has them ignore interrupts, and what they start.
    program = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += f"sys.argv = ['commonweight', 'keys', 'fail']\n{wait}\n"
    program += "from commonweight.cli.main import main\nmain()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130

"""What the pages say is so: their commands run, their lists are the code's, their links lead somewhere.

A block marked `sh` is run. One marked `sh template` names machines that aren't here, or takes too long: its commands
are parsed, its devnets' options checked, and its make targets are asked what they would run. docs/cli.md is tested by
tests/unit/test_cli_docs.py.
"""

import ast
import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commonweight import errors
from commonweight.cli.main import app
from commonweight.devnet.observer import read_state
from commonweight.devnet.options import DevnetOptions
from commonweight.rules.receipt import RECEIPT_TYPE

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "cli.md"),
]
RUN = ("tutorial.md", "operating.md")
"""The pages with blocks that are run."""
LANGUAGES = {"sh", "sh template", "text", "mermaid"}
UP = "commonweight devnet up"
TINY = ("--headless", "--rounds-per-epoch", "2", "--until-epoch", "1000")
"""Added to the tutorial's devnet, so that its first epoch is final within seconds and it doesn't end by itself."""
UP_S, SCRIPT_S = 120.0, 300.0
TUTORIAL_PORT = "7700"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]


def runnable(name: str) -> list[str]:
    return [text for language, text in blocks(ROOT / "docs" / name) if language == "sh"]


def templates() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each command that is only parsed."""
    for page in PAGES:
        for language, text in blocks(page):
            if language == "sh template":
                for line in text.replace("\\\n", " ").strip().splitlines():
                    yield page.name, shlex.split(line)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which `commonweight` and `python` are ours, as after activating .venv."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("commonweight", "-m commonweight")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COMMONWEIGHT_")}
    return inherited | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run_blocks(texts: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """What each block printed, all run by one shell that ends at the first failure; nothing of it is left running."""
    script = "".join(f"{text}\necho '=== end of block'\n" for text in texts)
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SCRIPT_S)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"not done after {SCRIPT_S:g} s:\n{(error.output or b'').decode()}") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, printed
    return printed.split("=== end of block\n")[:-1]


@contextmanager
def devnet(command: str, folder: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """The tutorial's devnet, from its first final epoch on."""
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        [*shlex.split(command), *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        text=True,
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        deadline, printed = time.monotonic() + UP_S, ""
        while "epoch 0: final" not in printed:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, printed
            printed += line
        yield process
    finally:
        process.kill()  # its children end with it
        process.wait()
        reader.join()


@contextmanager
def frozen(pids: list[int | None]) -> Iterator[None]:
    """Stops the devnet's nodes, so that it trains on no more: two cores are few for two networks."""
    running = [pid for pid in pids if pid is not None]
    for pid in running:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in running:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(UP_S + SCRIPT_S + 30)
def test_the_tutorial_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    up, *rest = runnable("tutorial.md")
    assert up.startswith(UP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    rest = [text.replace(TUTORIAL_PORT, port) for text in rest]
    with devnet(up, tmp_path, environment) as process:
        with frozen([node.pid for node in read_state(tmp_path / "runs" / "first").state.nodes]):
            printed = "".join(run_blocks(rest[:-1], tmp_path, environment))
        printed += "".join(run_blocks(rest[-1:], tmp_path, environment))
        assert process.wait(UP_S) == 130, "stopped by the tutorial's last command, before its last epoch"
    for said in (
        "runs as process",
        "Nothing was sent: this was a dry run.",
        "Sent: claim what was earned by computing in epochs 0 to ",
        "it leads to the root",
        "It adds up: ",
        "share token        Mine (MINE)",
        "now has 300 tUSD of free stake.",
        "all as stated",
        '"coordinator.finished"',
        "round-00000002",
        "has ended.",
    ):
        assert said in printed, printed
    assert printed.count('"round.sealed"') == 2
    assert printed.count('"node.finished"') == 2
    assert re.search(r"shares +1,000,000 of at most", printed), "the model of one's own has minted its first epoch"


def test_the_operator_s_commands_run(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "provider"
    folder.mkdir()
    printed = "".join(run_blocks(runnable("operating.md"), folder, environment))
    assert "16Uiu2HA" in printed
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.rglob("node.*"))


def test_each_block_is_tested_in_one_way_or_another() -> None:
    for page in PAGES:
        languages = {language for language, _ in blocks(page)}
        assert languages <= LANGUAGES, page
        assert "sh" not in languages or page.name in RUN, page


@pytest.mark.parametrize(("page", "words"), [pytest.param(*each, id=" ".join(each[1])[:50]) for each in templates()])
def test_templates_name_what_exists(page: str, words: list[str]) -> None:
    match words:
        case ["commonweight", *arguments]:
            result = CliRunner().invoke(app, [*arguments, "--help"])  # the parser refuses unknown options before help
            assert result.exit_code == 0, f"{page}: {result.output}"
        case ["make", target]:
            plan(target)
        case ["python", file]:
            assert (ROOT / file).is_file(), page
        case _:
            raise AssertionError(f"{page}: {words} is neither run nor checked")


@pytest.mark.parametrize(("page", "words"), [each for each in templates() if each[1][:3] == UP.split()])
def test_templates_of_devnets_can_be_started(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_devnet(options: DevnetOptions, _console: object) -> int:
        assert options.cheating or "--byzantine" not in words
        return 0

    monkeypatch.setattr("commonweight.devnet.run.run_devnet", run_devnet)
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{page}: {result.exception!r} {result.output}"


def plan(target: str, arguments: str = "") -> list[str]:
    """The commands that make would run."""
    command = ["make", "--no-print-directory", "-n", target, f"ARGS={arguments}"]
    # A make that runs these tests would hand its own flags on.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_make_devnet_runs_what_the_tutorial_s_test_runs() -> None:
    (up, *_) = runnable("tutorial.md")
    assert plan("devnet", "--stages 2 --dir runs/first")[-1].strip() == f".venv/bin/{up.strip()}"


def test_make_test_runs_every_check() -> None:
    commands = "\n".join(plan("test"))
    for check in ("ruff check", "mypy", "lint-imports", "npm test", "build_artifacts.py --check", ".venv/bin/pytest"):
        assert check in commands
    assert "forge test" in json.loads((ROOT / "contracts" / "package.json").read_text())["scripts"]["test"]


def test_ci_runs_every_check() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-4:] == ["make test", "make test-long", "make verify-contracts", "make mutate-contracts"]
    assert any("pytest -m long" in command for command in plan("test-long"))
    commands = "\n".join(plan("verify-contracts") + plan("mutate-contracts"))
    for check in ("check_slither.py", "check_coverage.py", "bin/halmos", "mutate_contracts.py"):
        assert check in commands


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Of its headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def emitted() -> dict[str, set[str]]:
    """Fields of each event that the code emits, and that a devnet notes."""
    found: dict[str, set[str]] = {}
    for package in ("commonweight", "node", "coordinator", "auditor", "gateway", "referee", "adversary"):
        for file in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
                    continue
                function = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if function in ("emit", "note"):
                    fields = {keyword.arg or "**" for keyword in call.keywords}
                    assert found.setdefault(call.args[0].value, fields) == fields, f"{call.args[0].value} has two forms"
    return found


def test_the_events_page_lists_what_is_emitted() -> None:
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    listed: dict[str, set[str]] = {}
    for name, fields in re.findall(r"^\| `([\w.]+)` \|([^|]*)\|", text, re.MULTILINE):
        listed[name] = set(re.findall(r"`(\w+)`", fields))
    assert listed == emitted()


def test_the_errors_page_is_the_code_s_tree() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    row = r"^\| `(\w+)` \| (\w+) \| (\d+) \| ([^|]+) \| ([^|]+) \|$"
    listed = re.findall(row, text, re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    documented = [(kind.code, kind.__name__, str(kind.exit_code), " ".join(kind.__doc__.split())) for kind in kinds]
    assert [each[:4] for each in listed] == documented
    assert all(what_to_do.strip() for *_, what_to_do in listed)


def test_the_protocol_page_has_the_code_s_constants() -> None:
    from commonweight.rules.following import NEWCOMERS_S
    from commonweight.wire import PROTOCOL_VERSION
    from commonweight.wire.attachment import SILENCE_S as COORDINATOR_SILENCE_S
    from commonweight.wire.channel import CONTROL_PING_TIMEOUT_MS, KEEPALIVE_MS, PIPE_PING_TIMEOUT_MS
    from commonweight.wire.decode import DECODE_PING_TIMEOUT_MS, MAX_CHUNK_TOKENS
    from commonweight.wire.decode import OPEN_S as STREAM_OPEN_S
    from commonweight.wire.generation import FIRST_TOKEN_S, TOKEN_S
    from commonweight.wire.referee import AUDIT_S, BYTES_PER_S, FLOPS_PER_S
    from commonweight.wire.state import CHUNK_S, MANIFEST_S, MAX_CHUNKS
    from coordinator.service import MAX_EXPECTED, MAX_OUTBOX
    from coordinator.service import SILENCE_S as NODE_SILENCE_S
    from node.decode_plane import MAX_UNSENT, MAX_UNSENT_BYTES
    from node.decoding import FIRST_BACKOFF_S, MAX_BACKOFF_S, SESSION_IDLE_S
    from node.download import MANIFEST_PATIENCE_S, PUT_OFF_S, SLOW_BYTES_PER_S
    from node.offering import CHUNK_S as CHUNK_READ_S
    from node.offering import IDLE_S
    from node.offering import MANIFEST_S as MANIFEST_READ_S
    from node.pipes import OPEN_S
    from node.supervisor import CONNECT_S
    from node.supervisor import PING_TIMEOUT_MS as CHILD_PING_MS
    from node.trainer import STALL_S

    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    for said in (
        f"Version {PROTOCOL_VERSION} ",
        RECEIPT_TYPE.decode(),
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
        f"| node silent to the coordinator | {NODE_SILENCE_S:g} s: lost |",
        f"| coordinator silent to a node | {COORDINATOR_SILENCE_S:g} s: ",
        f"| HTTP/2 ping, after {KEEPALIVE_MS / 1000:g} s without a byte "
        f"| {CONTROL_PING_TIMEOUT_MS / 1000:g} s for control, {PIPE_PING_TIMEOUT_MS / 1000:g} s for pipes |",
        f"| a pipe to open, from the formation on | {OPEN_S:g} s |",
        f"| nothing from a neighbour during a round | {STALL_S:g} s: ",
        f"shadows, to report after all others | {NEWCOMERS_S:g} s: left out",
        f"| unread messages for a node | {MAX_OUTBOX}: ",
        f"where more than {MAX_EXPECTED} wait to connect",
        f"| {KEEPALIVE_MS / 1000:g} s without a byte, then {CHILD_PING_MS / 1000:g} s, "
        f"then {CONNECT_S:g} s for another connection: killed",
        f"| an auditor's answer | {AUDIT_S:g} s, and what the largest stage's round takes at "
        f"{BYTES_PER_S >> 20} MiB/s and {FLOPS_PER_S / 1e9:g} GFLOP/s: ",
        f"| a stream to open | {STREAM_OPEN_S:g} s |",
        f"| HTTP/2 ping, after {KEEPALIVE_MS / 1000:g} s without a byte | {DECODE_PING_TIMEOUT_MS / 1000:g} s |",
        f"| a session without a step | {SESSION_IDLE_S:g} s: ",
        f"| the first token, any other one | {FIRST_TOKEN_S:g} s, {TOKEN_S:g} s: ",
        f"| unsent messages for one stream | {MAX_UNSENT}, or {MAX_UNSENT_BYTES >> 20} MiB: ",
        f"at most {MAX_CHUNK_TOKENS} and at most 1 MiB of code at a time",
        f"At most {MAX_CHUNKS:,} chunks in all",
        f"until nobody has asked for it for {IDLE_S:g} s",
        f"it waits {MANIFEST_PATIENCE_S:g} s after the first manifest",
        f"at less than {SLOW_BYTES_PER_S >> 10} KiB/s for {PUT_OFF_S:g} s is put off",
        f"| a manifest | {MANIFEST_S:g} s |",
        f"| a chunk | {CHUNK_S:g} s; ",
        f"| {MANIFEST_READ_S:g} s for a manifest, {CHUNK_READ_S:g} s for a chunk |",
        f"started again, after {FIRST_BACKOFF_S:g} s, doubling to {MAX_BACKOFF_S:g} s",
    ):
        assert said in text


def test_the_glossary_has_every_axis_of_the_decoder() -> None:
    decoder = (ROOT / "commonweight" / "model" / "decoder.py").read_text(encoding="utf-8")
    names = re.search(r"Names of axes: (.*?)\.", decoder, re.DOTALL)
    assert names is not None
    letters = {entry.split()[0] for entry in names[1].split(",")}
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert letters == set(re.findall(r"^\| (\w) \|", text, re.MULTILINE))

"""`commonweight devnet up` as its user runs it: real processes, a real chain, a small model, and faults that happen."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from commonweight.devnet.deployment import SEAT_STAKE
from commonweight.devnet.observer import StateFile, read_state
from commonweight.devnet.processes import family, start_time, wait_for_end
from commonweight.devnet.state import DevnetState, fold
from commonweight.events import parse_event
from commonweight.rules.checking import check_statement
from commonweight.rules.emission import emission
from commonweight.rules.epoch import report_units
from commonweight.rules.spec import parse_spec
from commonweight.rules.statement import Carried, parse_statement

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
ROUNDS = 3
ARGUMENTS = ("--headless", "--stages", "2", "--until-epoch", "1", "--rounds-per-epoch", str(ROUNDS), "--buyers", "0")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Devnet:
    """A `devnet up` in a folder; whatever is left of it at the end is killed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder / "run"
        self.report_file = folder / "report.json"
        where = ("--dir", str(self.folder), "--report", str(self.report_file))
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "commonweight", "devnet", "up", *ARGUMENTS, *where, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            text=True,
        )
        self.printed: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._popen.kill()
        self._popen.wait()
        self._reader.join()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """The first line from here on in which `pattern` is found."""
        deadline = time.monotonic() + WAIT_S
        while (line := self._lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.printed))

    def wait(self) -> int:
        status = self._popen.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return status

    def state(self) -> StateFile:
        return read_state(self.folder)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.report_file.read_text())
        return report

    def roots(self) -> list[list[str]]:
        """Every stage's state after each round, as the coordinator sealed them."""
        lines = (self.folder / "logs" / "coordinator.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event["state_roots"] for event in events if event["event"] == "round.sealed"]

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.printed.append(line.rstrip("\n"))
            self._lines.put(line)
        self._lines.put(None)


def all_gone(pids: list[int]) -> bool:
    """Whether all of them end soon."""
    return all(wait_for_end(pid, 20.0) for pid in pids) and all(start_time(pid) is None for pid in pids)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    """A run that nobody touches, after its end."""
    with Devnet(tmp_path_factory.mktemp("undisturbed")) as devnet:
        status = devnet.wait()
        assert status == 0, "\n".join(devnet.printed)
        yield devnet


def test_a_run_reports_what_it_trained_minted_and_who_owns_it(undisturbed: Devnet) -> None:
    report = undisturbed.report()
    spec = parse_spec((undisturbed.folder / "spec.json").read_bytes())
    minted = emission(spec.economics, 0)
    assert report["exit_reason"] == "finished"
    assert len(report["losses"]) == ROUNDS
    assert report["losses"][-1] < report["losses"][0]
    assert len(report["bytes_per_token"]) == spec.stages - 1
    assert report["first_round_s"] > 0
    assert report["peak_rss_bytes"] > 100 << 20
    (epoch,) = report["epochs"]
    assert (epoch["number"], epoch["minted"], epoch["finalised"]) == (0, str(minted), True)
    assert sum(int(part["shares"]) for part in report["ownership"].values()) == minted
    state = undisturbed.state().state
    workers = {address for address, part in report["ownership"].items() if part["work_units"] != "0"}
    assert {node.address for node in state.nodes} <= workers <= {member.address for member in state.members}
    assert report["deployments"]["auditors"] == {auditor.name: auditor.address for auditor in state.auditors}
    assert [auditor.stage for auditor in state.auditors] == [0]
    assert (report["slashed"], report["unpaid_units"]) == ([], {"total": "0", "by_address": {}})
    assert report["answers"] == {"sold": 0, "sealed": 0, "tokens": 0, "paid_tokens": {}}
    for counts in report["audits"].values():
        assert counts["drawn"] == counts["passed"] == counts["by_auditors"] + counts["by_referee"]
        assert counts["known_bad"] == counts["known_bad_caught"]
    assert report["deployments"] == json.loads((undisturbed.folder / "deployments.json").read_text())


def test_its_logs_tell_the_same_story(undisturbed: Devnet) -> None:
    told = []
    for log in (undisturbed.folder / "logs").glob("*.jsonl"):
        told += [(event.time, log.stem, event) for line in log.open() if (event := parse_event(line))]
    replayed = DevnetState()
    for _, source, event in sorted(told, key=lambda each: each[0]):
        replayed = fold(replayed, source, event)
    assert replayed == undisturbed.state().state


def test_its_statement_can_be_recomputed_by_anyone(undisturbed: Devnet) -> None:
    spec = parse_spec((undisturbed.folder / "spec.json").read_bytes())
    (epoch,) = undisturbed.report()["epochs"]
    (file,) = (undisturbed.folder / "statements").glob("*.json")
    statement = parse_statement(file.read_bytes(), bytes.fromhex(epoch["statement_hash"][2:]))
    check_statement(spec, statement, Carried())
    assert statement.root == epoch["root"]


def test_it_prints_what_a_newcomer_needs(undisturbed: Devnet) -> None:
    text = "\n".join(undisturbed.printed)
    deployments = undisturbed.report()["deployments"]
    for needed in (deployments["registry"], deployments["rpc_url"], "public", "commonweight ownership show", "node-1"):
        assert needed in text
    assert sum(line.startswith("round ") for line in undisturbed.printed) == ROUNDS


def test_its_end_can_be_asked_for(undisturbed: Devnet) -> None:
    for command, status, said in (("status", 1, "has ended"), ("stop", 0, "has already ended")):
        done = subprocess.run(
            [sys.executable, "-m", "commonweight", "devnet", command, "--dir", str(undisturbed.folder)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert said in done.stdout


def test_a_node_killed_in_the_middle_of_a_round_changes_nothing(undisturbed: Devnet, tmp_path: Path) -> None:
    with Devnet(tmp_path) as devnet:
        devnet.wait_for_line(r"round +0 ")
        victim = devnet.state().state.nodes[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        devnet.wait_for_line("node-0: ended with status -9; it is started again")
        devnet.wait_for_line("generation 2 trains from round 1")
        assert devnet.wait() == 0, "\n".join(devnet.printed)
        assert devnet.state().state.nodes[0].restarts == 1
        assert devnet.report()["losses"] == undisturbed.report()["losses"]
        assert devnet.roots() == undisturbed.roots()


def test_the_loop_closes_work_shares_answer_payment_revenue(tmp_path: Path) -> None:
    with Devnet(tmp_path, "--until-epoch", "1000", "--buyers", "1") as devnet:
        devnet.wait_for_line(r"an answer was sold for 0\.\d+ tUSD")
        sold_in = int(devnet.wait_for_line(r"round +\d+  epoch +(\d+)")[1])
        devnet.wait_for_line(rf"epoch {sold_in + 1}: final")  # it is sealed once all have signed
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
    revenue = devnet.report()["revenue"]
    shares, operators, treasury = revenue["paid_in"] - revenue["operators"] - revenue["treasury"], 0.2, 0.05
    assert revenue["paid_in"] > 0
    assert revenue["operators"] == pytest.approx(operators * revenue["paid_in"], abs=2 * devnet.state().state.answers)
    assert revenue["treasury"] == pytest.approx(treasury * revenue["paid_in"], abs=2 * devnet.state().state.answers)
    assert sum(revenue["owed"].values()) + revenue["withdrawn"] + revenue["remainder"] == shares
    assert revenue["withdrawn"] > 0  # the designer's
    owners = {address for address, part in devnet.report()["ownership"].items() if part["shares"] != "0"}
    assert set(revenue["owed"]) < owners
    checked = [json.loads(line) for log in (devnet.folder / "logs").glob("node-*.jsonl") for line in log.open()]
    assert {"epoch.checked"} <= {event["event"] for event in checked}
    assert not {"epoch.disputed", "epoch.faulty", "watch.ended"} & {event["event"] for event in checked}
    served = [json.loads(file.read_bytes()) for file in (devnet.folder / "statements").glob("*.json")]
    paid = [line for statement in served for line in statement["served"]]
    assert {line["stage"] for line in paid} == {0, 1}
    answers = devnet.report()["answers"]
    assert answers["sold"] >= answers["sealed"] > 0
    assert answers["paid_tokens"] == {node.address: answers["tokens"] for node in devnet.state().state.nodes}


@pytest.mark.long
def test_who_cheats_loses_its_stake_and_owns_nothing(tmp_path: Path) -> None:
    """Of 1,024 texts 1.5 % are audited, by chance: none in one run of five million."""
    rounds = 64
    with Devnet(tmp_path, "--rounds-per-epoch", str(rounds), "--byzantine", "0:wrong-data") as devnet:
        assert devnet.wait() == 0, "\n".join(devnet.printed)
    spec = parse_spec((devnet.folder / "spec.json").read_bytes())
    report, cheater = devnet.report(), devnet.state().state.nodes[0]
    assert '"event": "cheated"' in (devnet.folder / cheater.log).read_text()
    (slash,) = report["slashed"]
    assert slash["evidence_hash"] != "0x" + "00" * 32
    assert (slash["address"], slash["stage"], slash["epoch"]) == (cheater.address, 0, 0)
    assert slash["amount"] == str(SEAT_STAKE)
    unpaid = str(rounds * report_units(spec, 0, spec.training.microbatches_per_round))
    assert report["unpaid_units"] == {"total": unpaid, "by_address": {cheater.address: unpaid}}
    assert report["ownership"][cheater.address]["shares"] == "0"
    counts = report["audits"]["data"]
    assert counts["failed"] == counts["drawn"] > 0
    assert [fraud.node for fraud in devnet.state().state.frauds] == [cheater.address]
    text = "\n".join(devnet.printed)
    for said in ("cheats: wrong-data", "found fraud", "slashing node-0 is proposed", "node-0 is slashed"):
        assert said in text
    assert f"node-0 ({cheater.address}) cheated on stage 0: " in text
    assert "It lost 1,000 tUSD of stake" in text


@pytest.mark.long
def test_who_makes_up_answers_loses_its_stake(tmp_path: Path) -> None:
    """Of what its stage had a part in, half is audited."""
    arguments = ("--until-epoch", "1000", "--buyers", "2", "--byzantine", "1:made-up-answers")
    with Devnet(tmp_path, *arguments) as devnet:
        devnet.wait_for_line(r"stage 1: the answer audit of round \d+, answer \d+, node-1's work, found fraud")
        devnet.wait_for_line(r"stage 1: node-1 is slashed")
        found_in = int(devnet.wait_for_line(r"round +\d+  epoch +(\d+)")[1])
        devnet.wait_for_line(rf"epoch {found_in}: final")
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
    report, (honest, cheater) = devnet.report(), devnet.state().state.nodes
    assert '"event": "cheated"' in (devnet.folder / cheater.log).read_text()
    (slash,) = report["slashed"]
    assert (slash["address"], slash["stage"], slash["amount"]) == (cheater.address, 1, str(SEAT_STAKE))
    counts = report["audits"]["answer"]
    assert counts["failed"] > 0
    assert counts["by_referee"] == counts["passed"] + counts["failed"]
    paid = report["answers"]["paid_tokens"]
    assert paid[honest.address] == report["answers"]["tokens"] > paid.get(cheater.address, 0)


@pytest.mark.long
def test_an_auditor_that_cheats_loses_its_stake_and_harms_nobody(tmp_path: Path) -> None:
    arguments = ("--until-epoch", "1000", "--rounds-per-epoch", "16", "--byzantine", "0:false-alarm")
    with Devnet(tmp_path, *arguments) as devnet:
        devnet.wait_for_line(r"stage 0: auditor-0 is overruled about the .*: passed")
        devnet.wait_for_line(r"stage 0: auditor-0 is convicted")
        devnet.wait_for_line(r"stage 0: auditor-0 is slashed")
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
    (slash,) = devnet.report()["slashed"]
    cheater = devnet.state().state.auditors[0]
    assert (slash["address"], slash["stage"], slash["role"]) == (cheater.address, 0, "auditor")
    assert slash["amount"] == str(SEAT_STAKE)
    assert '"event": "cheated"' in (devnet.folder / cheater.log).read_text()
    counts = devnet.report()["audits"].values()
    assert sum(each["overruled"] for each in counts) > 0
    assert sum(each["failed"] for each in counts) == 0
    assert devnet.report()["unpaid_units"]["total"] == "0"


def test_sigterm_leaves_a_report_and_no_process(tmp_path: Path) -> None:
    with Devnet(tmp_path, "--rounds-per-epoch", "1000", "--backend", "embedded") as devnet:
        devnet.wait_for_line(r"round +0 ")
        members = family(devnet.pid)
        assert len(members) >= 1 + 2 + 2 * 2 + 1, (
            "devnet, coordinator and chain; two processes for each stage; an auditor"
        )
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
        assert all_gone(members)
        assert devnet.report()["exit_reason"] == "interrupted by SIGTERM"
        assert len(devnet.report()["losses"]) >= 1


def test_kill_9_leaves_no_process(tmp_path: Path) -> None:
    with Devnet(tmp_path, "--rounds-per-epoch", "1000") as devnet:
        devnet.wait_for_line(r"round +0 ")
        members = family(devnet.pid)
        assert len(members) >= 1 + 2 + 2 * 3
        os.kill(devnet.pid, signal.SIGKILL)
        assert devnet.wait() == -signal.SIGKILL
        assert all_gone(members)
        assert not devnet.state().runs


def test_a_coordinator_that_dies_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with Devnet(tmp_path, "--rounds-per-epoch", "1000") as devnet:
        devnet.wait_for_line("Waiting for the nodes")
        log = (devnet.folder / "logs" / "coordinator.jsonl").read_text().splitlines()[0]
        members = family(devnet.pid)
        os.kill(json.loads(log)["pid"], signal.SIGKILL)
        assert devnet.wait() == 5
        assert all_gone(members)
        assert any("coordinator was killed by signal 9, which ends the devnet" in line for line in devnet.printed)
        assert "coordinator was killed" in devnet.report()["exit_reason"]
        assert not any("Traceback" in line for line in devnet.printed)


def test_ctrl_c_before_anything_stands_leaves_nothing(tmp_path: Path) -> None:
    with Devnet(tmp_path) as devnet:
        devnet.wait_for_line("Starting a devnet")
        os.kill(devnet.pid, signal.SIGINT)
        assert devnet.wait() == 130
        assert devnet.report()["exit_reason"] == "interrupted by SIGINT"
        assert devnet.report()["losses"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stages", "9"), "[SPEC_INVALID]"),
        (("--backend", "geth"), "[CONFIG_INVALID] --backend 'geth'"),
        (("--byzantine", "2:zeros"), "[CONFIG_INVALID] --byzantine '2:zeros': there is no stage 2; there are 0 to 1."),
        (("--dir", "/proc/run"), "[CONFIG_INVALID] /proc/run can't hold a run"),
    ],
)
def test_bad_input_is_one_coded_message(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with Devnet(tmp_path, *arguments) as devnet:
        assert devnet.wait() == 2
        assert len(devnet.printed) == 1
        assert said in devnet.printed[0]


def inject(devnet: Devnet, *words: str) -> "subprocess.CompletedProcess[str]":
    """What `devnet inject` prints."""
    return subprocess.run(
        [sys.executable, "-m", "commonweight", "devnet", "inject", *words, "--dir", str(devnet.folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=WAIT_S,
        check=False,
    )


def round_s(devnet: Devnet) -> float:
    """Seconds of the next round that is sealed."""
    devnet.wait_for_line(r"round +\d+ ")
    last = devnet.state().state.last_round
    assert last is not None
    return last.seconds


def wait_for_round(devnet: Devnet, least_s: float, most_s: float) -> None:
    """Until a round takes between so many seconds."""
    while not least_s <= round_s(devnet) <= most_s:
        pass


def test_links_and_nodes_are_as_slow_as_they_are_told_while_it_runs(tmp_path: Path) -> None:
    microbatches, code_bytes, rate_bps = 16, 8192 * 32 * 4, 2_000_000
    sending_s = code_bytes * 8 / rate_bps  # of one round's code over the boundary, one way
    endless = ("--rounds-per-epoch", "1000", "--auditors", "0")
    with Devnet(tmp_path, *endless, "--link", "2mbit:20ms", "--slow", "node-1:50ms") as devnet:
        devnet.wait_for_line("links between nodes: 2mbit:20ms")
        devnet.wait_for_line("node-1 takes 0.05 s longer for each microbatch")
        assert round_s(devnet) >= sending_s > 4
        assert inject(devnet, "link", "unlimited:0ms").returncode == 0
        wait_for_round(devnet, microbatches * 0.05, sending_s)
        assert inject(devnet, "slow", "node-0:300ms").stdout == "node-0 takes 0.3 s longer for each microbatch.\n"
        wait_for_round(devnet, microbatches * 0.3, 60)
        unknown = inject(devnet, "slow", "node-2:1s")
        assert unknown.returncode == 2
        assert "[CONFIG_INVALID] inject slow 'node-2:1s': there is no node 'node-2'" in unknown.stderr
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
        ended = inject(devnet, "kill", "node-0")
        assert ended.returncode == 5
        assert "has ended: nothing can befall it any more" in ended.stderr


def test_a_partition_stops_training_until_it_is_healed(tmp_path: Path) -> None:
    with Devnet(tmp_path, "--rounds-per-epoch", "1000", "--auditors", "0", "--partition", "node-1:out") as devnet:
        devnet.wait_for_line("node-1 is cut off from the others, nothing that it sends arrives")
        members = family(devnet.pid)
        devnet.wait_for_line("all stages are held again: generation 2 trains")  # or would, if its pipes could open
        log = (devnet.folder / "logs" / "coordinator.jsonl").read_text()
        assert re.search(r'"generation.paused".*WIRE_UNREACHABLE', log), "the cut was to be noticed, by either side"
        assert inject(devnet, "heal").stdout == "all nodes reach each other again.\n"
        sealed = len(devnet.state().state.losses)
        devnet.wait_for_line(rf"round +{sealed + 1} ")
        assert inject(devnet, "kill", "node-0").returncode == 0
        devnet.wait_for_line("node-0 is killed")
        devnet.wait_for_line("node-0: ended with status -9; it is started again")
        os.kill(devnet.pid, signal.SIGTERM)
        assert devnet.wait() == 130
        assert devnet.report()["kills"] == 1
        assert all_gone(members), "the process that shapes links is one of them"


@pytest.mark.long
def test_two_replicas_of_each_stage_train_on_while_nodes_are_killed(tmp_path: Path) -> None:
    """Whoever is killed, no round waits for it to come back, and no unit that was sealed goes unpaid."""
    arguments = ("--replicas", "2", "--kill-every", "8s", "--rounds-per-epoch", "20", "--until-epoch", "2")
    with Devnet(tmp_path, *arguments) as devnet:
        assert devnet.wait() == 0, "\n".join(devnet.printed)
        report = devnet.report()
        assert report["kills"] >= 2, "the fault was to happen"
        assert len(report["losses"]) == 40
        recovery_s = sorted(report["recovery_s"])  # of who was killed after the last round there is none
        assert 0 < len(recovery_s) <= report["kills"]
        assert recovery_s[len(recovery_s) // 2] < 5, "seconds; more where both replicas of a stage were killed"
        assert report["joins"] >= 1
        assert report["units_lost"] == "0"
        assert report["losses"][-1] < report["losses"][0] - 2
        logged = [json.loads(line) for line in (devnet.folder / "logs" / "coordinator.jsonl").read_text().splitlines()]
        crews = [event["replicas"] for event in logged if event["event"] == "round.sealed"]
        assert any(2 in crew for crew in crews)
        assert any(sum(crew) == 3 for crew in crews), "some rounds were sealed while a node was down"

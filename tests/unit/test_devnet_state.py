"""Folding a devnet's events, and what is shown and reported of the result."""

import json
from functools import reduce
from typing import Any

import pytest

from commonweight.devnet.answers import SoldAnswers, count_sold_answers
from commonweight.devnet.observer import StateFile
from commonweight.devnet.opinions import OPINIONS
from commonweight.devnet.ownership import Holding, Ownership
from commonweight.devnet.penalties import Penalties, Penalty
from commonweight.devnet.report import build_report
from commonweight.devnet.revenue import Revenue
from commonweight.devnet.state import MAX_ERRORS, DevnetState, fold
from commonweight.devnet.view import (
    event_line,
    fraud_lines,
    next_commands,
    node_rows,
    ownership_rows,
    progress,
    sparkline,
)
from commonweight.errors import StateError
from commonweight.events import Event
from commonweight.rules.statement import AnswerLine, SealedRound, ServedLine, Statement

ALICE = "0x" + "Aa" * 20
BOB = "0x" + "Bb" * 20
ROOT = "0x" + "11" * 32
GATEWAY = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"

FACTS: dict[str, Any] = {"deployments": {}, "exit_reason": "finished", "peak_rss_bytes": 5, "versions": {}}
"""Of a report that isn't about them."""
SOLD = SoldAnswers(2, 40, {ALICE: 40, BOB: 15})


def event(event_name: str, at: float = 100.0, **fields: Any) -> Event:
    return Event(event_name, fields, at, pid=1)


def sealed(round_: int, loss: float, at: float = 107.5) -> tuple[str, Event]:
    size: dict[str, Any] = {"seconds": 2.0, "tokens": 8192, "tokens_per_s": 4096.0, "bytes_per_token": [257.0, 260.0]}
    return "coordinator", event("round.sealed", at, round=round_, epoch=round_ // 2, loss=loss, **size, state_roots=[])


START = [
    ("devnet", event("devnet.started", folder="/runs/one", seed=7, until_epoch=2, rounds_per_epoch=2)),
    ("devnet", event("chain.ready", backend="anvil", rpc_url="http://127.0.0.1:1", chain_id=31337)),
    ("devnet", event("node.created", name="node-0", address=ALICE, log="logs/node-0.jsonl")),
    ("devnet", event("node.created", name="node-1", address=BOB, log="logs/node-1.jsonl")),
    ("coordinator", event("coordinator.listening", peer="16U@127.0.0.1:5", enrolment_address="127.0.0.1:5")),
    ("devnet", event("child.started", name="node-0", child_pid=41)),
    ("devnet", event("child.started", name="node-1", child_pid=42)),
    ("coordinator", event("node.joined", node=BOB, stage=0, data_address="127.0.0.1:9002")),
    ("coordinator", event("node.joined", node=ALICE.lower(), stage=1, data_address="127.0.0.1:9001")),
    ("coordinator", event("generation.formed", generation=1, round=0)),
]
EPOCH: dict[str, Any] = {"epoch": 0, "root": ROOT, "statement_hash": ROOT, "minted": str(10**24), "uri": "file:///s"}
SETTLED = [
    sealed(0, 5.5),
    sealed(1, 5.0, at=110.0),
    ("coordinator", event("epoch.proposed", **EPOCH, transaction="0x1")),
    ("coordinator", event("epoch.finalised", epoch=0, minted=str(10**24), transaction="0x2")),
]


def after(*events: tuple[str, Event]) -> DevnetState:
    return reduce(lambda state, each: fold(state, *each), events, DevnetState())


def test_nodes_join_by_address_whatever_its_case_and_in_any_order() -> None:
    state = after(*START)
    assert [(n.name, n.stage, n.port, n.pid, n.online) for n in state.nodes] == [
        ("node-0", 1, 9001, 41, True),
        ("node-1", 0, 9002, 42, True),
    ]
    assert state.nodes_alive == 2
    assert state.coordinator == "16U@127.0.0.1:5"


def test_rounds_and_epochs_add_up() -> None:
    state = after(*START, *SETTLED)
    assert state.losses == (5.5, 5.0)
    assert state.first_round_s == 7.5
    assert state.tokens_per_s == 4096.0
    assert state.bytes_per_token == (257.0, 260.0)
    assert state.minted == 10**24
    assert state.epochs_finalised == 1
    assert not state.finished


def test_what_is_proposed_is_not_minted() -> None:
    state = after(*START, *SETTLED[:3])
    assert state.minted == 0
    assert state.epochs_finalised == 0


def test_an_epoch_that_is_proposed_twice_counts_once() -> None:
    assert len(after(*START, *SETTLED[:3], SETTLED[2]).epochs) == 1


def test_only_the_coordinator_can_seal_a_round() -> None:
    state = after(*START)
    assert fold(state, "node-0", event("round.sealed", round=0)).losses == ()


def test_a_node_that_moves_is_shown_in_its_new_stage() -> None:
    address = after(*START).nodes[1].address
    moves = event("member.moves", node=address, source=1, target=0, before=1.0, after=2.0)
    state = fold(after(*START), "coordinator", moves)
    assert (state.moves, state.nodes[1].stage, state.nodes[1].online) == (1, 0, False)


def test_what_a_kill_costs_is_the_time_until_others_have_its_work_or_a_sealed_round_begins() -> None:
    killed = ("devnet", event("fault.begun", at=111.0, fault="kill", name="node-1", how=""))
    state = after(*START, *SETTLED, killed)
    assert (state.kills, state.recovery_s, state.joins, state.repeated) == (1, (), 0, 0)
    slowed = event("fault.begun", at=111.0, fault="slow", name="node-1", how="0.2 s")
    assert fold(state, "devnet", slowed).kills == 1, "who is slow isn't killed"
    replayed = fold(state, "coordinator", event("round.replayed", at=111.3))
    assert (replayed.replays, replayed.recovery_s, replayed.unrecovered) == (1, (0.3,), ())
    formed = ("coordinator", event("generation.formed", at=111.2, generation=2, round=2))
    state = reduce(lambda each, that: fold(each, *that), (formed, sealed(2, 4.9, at=114.0)), state)
    assert state.recovery_s == (round(114.0 - 2.0 - 111.0, 3),)
    assert state.unrecovered == ()
    undisturbed = reduce(lambda each, that: fold(each, *that), (killed, sealed(3, 4.8, at=111.5)), state)
    assert undisturbed.recovery_s[-1] == 0.0


def test_a_node_that_dies_is_lost_and_comes_back() -> None:
    lost = after(
        *START,
        ("devnet", event("child.ended", name="node-1", status=-9)),
        ("coordinator", event("node.lost", node=BOB, stage=0)),
        ("devnet", event("child.restarted", name="node-1", status=-9, wait_s=0.0)),
    )
    assert lost.nodes_alive == 1
    assert lost.nodes[1].pid is None
    assert lost.nodes[1].joined
    assert node_rows(lost.nodes)[1][-1] == "lost, restarted 1×"
    back = fold(lost, "devnet", event("child.started", name="node-1", child_pid=50))
    joined = event("node.joined", node=BOB, stage=0, data_address="127.0.0.1:9003")
    assert node_rows(fold(back, "coordinator", joined).nodes)[1] == (
        ("node-1", "0", BOB, "9003", "50", "online, restarted 1×")
    )


def test_errors_are_kept_with_their_source_and_only_the_latest() -> None:
    state = after(*(("node-0", event("error", code="X", message=str(n))) for n in range(MAX_ERRORS + 2)))
    assert state.errors[-1] == f"node-0: {MAX_ERRORS + 1}"
    assert len(state.errors) == MAX_ERRORS


def test_unknown_events_change_nothing() -> None:
    state = after(*START)
    assert fold(state, "node-0", event("something.new", 200.0)) is state


def test_a_state_survives_its_file() -> None:
    file = StateFile(pid=1, start_time=2, state=after(*START, *SETTLED))
    assert StateFile.model_validate_json(file.model_dump_json()) == file


def test_a_line_per_round_and_per_event_that_matters() -> None:
    state = after(*START, *SETTLED)
    lines = [event_line(state, *each) for each in SETTLED]
    assert (
        lines[1]
        == "round    1  epoch   0  loss  5.0000     4,096 tokens/s  257/260 B/token  2/2 nodes  1,000,000 shares"
    )
    assert lines[2] == f"epoch 0: proposed, root {ROOT}, statement {ROOT}"
    assert lines[3] == "epoch 0: final, 1,000,000 shares minted"
    assert event_line(state, "node-0", event("round.sealed", round=1)) is None
    assert event_line(state, "coordinator", event("generation.formed", generation=1, round=0)) is None
    assert "from round 3" in (event_line(state, "coordinator", event("generation.formed", generation=2, round=3)) or "")


@pytest.mark.parametrize("events", [[], START, [*START, *SETTLED]])
def test_progress_is_shown_at_every_point(events: list[tuple[str, Event]]) -> None:
    shown = progress(after(*events), now=161.0)
    names = {
        "epoch",
        "round",
        "loss",
        "speed",
        "boundaries",
        "nodes",
        "audits",
        "auditors",
        "revenue",
        "minted",
        "time",
    }
    assert set(shown) == names


def test_revenue_is_what_the_gateway_collected_and_the_chain_showed() -> None:
    sold = after(
        *START,
        ("gateway", event("gateway.listening", url="http://127.0.0.1:8", model="devnet", cashier=ALICE)),
        ("gateway", event("route.opened", round=2, stages=2)),
        ("gateway", event("payment.collected", request="00", payer=BOB, charged="1500000", refunded="5")),
        ("node-0", event("payment.collected", request="01", payer=BOB, charged="7", refunded="0")),  # not its to say
        ("devnet", event("revenue.seen", claimable="1000000", withdrawn="250000")),
    )
    assert (sold.selling, sold.answers, sold.paid_in) == (True, 1, 1_500_000)
    assert progress(sold, now=161.0)["revenue"] == "1.5 tUSD paid for 1 answers, 1 tUSD claimable, 0.25 tUSD withdrawn"
    assert "http://127.0.0.1:8" in sold.gateway_url if sold.gateway_url else False


def test_a_unit_that_is_missing_is_noticed() -> None:
    parts: dict[str, Any] = {"owed": ((ALICE, 50), (BOB, 20)), "withdrawn": 5, "operators": 20, "treasury": 4}
    Revenue(paid_in=100, remainder=1, **parts).check()
    assert Revenue(paid_in=100, remainder=1, **parts).fields()["owed"] == {ALICE: 50, BOB: 20}
    for wrong in ({"paid_in": 101, "remainder": 1}, {"paid_in": 100, "remainder": 0}):
        with pytest.raises(StateError, match="doesn't add up"):
            Revenue(**wrong, **parts).check()


def said(auditor: str | None, verdict: str, *, known_bad: bool = False) -> dict[str, Any]:
    """An opinion as audit.decided lists it; None: the referee's."""
    return {"auditor": auditor or ROOT[:42], "owner": auditor, "verdict": verdict, "known_bad": known_bad}


def audited(
    round_: int, stage: int, kind: str, verdict: str, node: str, why: str = "because", number: int | None = None
) -> list[Any]:
    """An audit that was drawn, and what came of it."""
    unit: dict[str, Any] = {"round": round_, "stage": stage, "kind": kind, "microbatch": number}
    decided = event("audit.decided", **unit, node=node, verdict=verdict, why=why, auditors=[said(None, verdict)])
    return [("coordinator", event("audit.drawn", **unit)), ("coordinator", decided)]


CAUGHT = [
    *audited(2, 1, "round", "passed", ALICE),
    *audited(2, 0, "data", "failed", BOB, "other tokens"),
    *audited(3, 0, "round", "failed", BOB, "once more"),
    *audited(3, 1, "round", "withheld", ALICE),
    ("coordinator", event("audit.drawn", round=4, stage=0, kind="round", microbatch=None)),
    ("coordinator", event("provider.equivocated", node=ALICE, stage=1, round=4)),
    ("coordinator", event("slash.executed", stage=0, node=BOB, transaction="0x1")),
]
PENALTIES = Penalties(slashed=(Penalty(BOB, 0, 1_000_000, ROOT), Penalty(ALICE, 7, 5, ROOT)), unpaid={BOB: 4 * 10**20})


def test_audits_are_counted_and_a_fraud_is_kept_as_it_was_first_found() -> None:
    state = after(*START, *CAUGHT)
    assert state.audits["round"] == {"drawn": 4, "passed": 1, "failed": 1, "withheld": 1, "by_referee": 3}
    assert state.audit_counts == {"drawn": 5, "passed": 1, "failed": 2, "withheld": 1, "by_referee": 4}
    bob, alice = state.frauds
    assert (bob.node, bob.stage, bob.round, bob.epoch, bob.kind, bob.why) == (BOB, 0, 2, 1, "data", "other tokens")
    assert (alice.node, alice.round, alice.epoch, alice.kind) == (ALICE, 4, 2, "equivocation")
    assert state.slashed == (BOB,)
    assert after(*START, *(("node-0", told) for _, told in CAUGHT)).audits == {}, "only the coordinator may say"


def test_audits_and_frauds_are_shown() -> None:
    assert progress(after(*START), now=161.0)["audits"] == "none was drawn yet"
    state = after(*START, *CAUGHT)
    shown = "5 drawn: 1 passed, 2 failed, 1 withheld; cheated: node-1 (data), node-0 (equivocation)"
    assert progress(state, now=161.0)["audits"] == shown
    lines = [
        line for number, told in enumerate(CAUGHT) if (line := event_line(after(*START, *CAUGHT[: number + 1]), *told))
    ]
    assert lines == [
        "stage 0: the data audit of round 2, node-1's work, found fraud. other tokens",
        "stage 1: the round audit of round 3, node-0's work, didn't get what it takes. because",
        "stage 1: node-0 signed two different reports of round 4",
        "stage 0: node-1 is slashed",
    ]
    (line, _) = (event_line(after(*START, *CAUGHT, *SETTLED[:2]), *each) for each in SETTLED[:2])
    assert line is not None
    assert line.endswith("0 shares  1/5 audits passed, 2 failed")


def test_the_summary_names_who_cheated_and_what_it_lost() -> None:
    ownership = Ownership((Holding(ALICE, 3 * 10**23, 10**20), Holding(BOB, 0, 0)), supply=3 * 10**23)
    bob, alice = fraud_lines(after(*START, *CAUGHT), PENALTIES, ownership)
    assert bob == (
        f"node-1 ({BOB}) cheated on stage 0: data, round 2, epoch 1. It lost 1 tUSD of stake, 400 E FLOPs "
        "weren't paid, and it owns 0 shares.\n  other tokens"
    )
    assert alice.startswith(f"node-0 ({ALICE}) cheated on stage 1: equivocation, round 4, epoch 2. It lost 0 tUSD")


def test_a_node_that_is_to_cheat_is_marked() -> None:
    created = event("node.created", name="node-2", address=ROOT[:42], log="", byzantine="zeros:0.1")
    assert node_rows(fold(after(*START), "devnet", created).nodes)[2][-1] == "waiting, cheats: zeros:0.1"


def test_the_report_has_audits_stakes_and_unpaid_work() -> None:
    state = after(*START, *CAUGHT)
    report = json.loads(
        json.dumps(build_report(state, ownership=Ownership(), penalties=PENALTIES, answers=SOLD, **FACTS))
    )
    nothing = dict.fromkeys(("drawn", "passed", "failed", "withheld", "undecided", *OPINIONS), 0)
    assert report["audits"]["data"] == nothing | {"drawn": 1, "failed": 1, "by_referee": 1}
    assert report["slashed"] == [
        {"address": BOB, "stage": 0, "role": "provider", "epoch": 1, "amount": "1000000", "evidence_hash": ROOT},
        {"address": ALICE, "stage": 7, "role": "provider", "epoch": None, "amount": "5", "evidence_hash": ROOT},
    ]
    assert report["unpaid_units"] == {"total": "400000000000000000000", "by_address": {BOB: "400000000000000000000"}}


def test_an_answer_that_was_made_up_is_named_by_its_number() -> None:
    told = audited(2, 0, "answer", "failed", BOB, "the logits", number=3)
    line = event_line(after(*START, *told), *told[-1])
    assert line == "stage 0: the answer audit of round 2, answer 3, node-1's work, found fraud. the logits"
    assert after(*START, *told).audits["answer"] == {"drawn": 1, "failed": 1, "by_referee": 1}


def test_the_report_counts_answers_and_who_is_paid_for_them() -> None:
    line = AnswerLine(
        session="0x" + "ab" * 16,
        version=2,
        fed=12,
        prompt_tokens=5,
        completion_tokens=8,
        gateway=GATEWAY,
        signature="0x" + "00" * 65,
        parts=(),
    )
    rounds = [SealedRound(round=number, beacon=ROOT, reports=(), answers=(line,) * number) for number in range(3)]
    served = ServedLine(stage=0, node=GATEWAY, account=GATEWAY, tokens=26)
    statements = [Statement.model_construct(rounds=tuple(rounds[:2]), served=())]
    statements.append(Statement.model_construct(rounds=(rounds[2],), served=(served,)))
    assert count_sold_answers(statements) == SoldAnswers(3, 39, {GATEWAY: 26})


CAROL = "0x" + "Cc" * 20
UNIT: dict[str, Any] = {"round": 2, "stage": 1, "kind": "round", "microbatch": None}
PANEL = [
    ("devnet", event("auditor.created", name="auditor-1", stage=1, address=CAROL, log="a.jsonl", byzantine="collude")),
    ("devnet", event("child.started", name="auditor-1", child_pid=43)),
    ("coordinator", event("auditor.joined", node=CAROL, owner=CAROL, stages=[1])),
    ("coordinator", event("audit.drawn", **UNIT)),
    *(
        ("coordinator", event("audit.decided", **UNIT, node=ALICE, verdict=verdict, why="", auditors=list(opinions)))
        for verdict, opinions in (
            ("passed", [said(CAROL, "failed", known_bad=True), said(None, "passed")]),
            ("passed", [said(CAROL, "passed")]),
            ("passed", [said(CAROL, "failed"), said(None, "passed")]),
            ("passed", [said(CAROL, "undecided"), said(None, "passed")]),
            ("passed", [said(CAROL, "passed", known_bad=True), said(None, "passed")]),
        )
    ),
    ("coordinator", event("auditor.convicted", node=CAROL, stage=1, round=2, disproof=ROOT, why="known bad")),
    ("coordinator", event("auditor.late", node=CAROL, stage=1, round=3, limit_s=12.5)),
    ("coordinator", event("auditor.lost", node=CAROL)),
]


def test_who_audits_is_seen_and_what_comes_of_the_opinions() -> None:
    state = after(*START, *PANEL)
    assert [(a.name, a.stage, a.pid, a.online, a.joined) for a in state.auditors] == [("auditor-1", 1, 43, False, True)]
    assert node_rows(after(*START, *PANEL[:3]).members)[2] == (
        ("auditor-1", "1", CAROL, "–", "43", "online, cheats: collude")
    )
    opinions = {"by_auditors": 3, "by_referee": 4, "overruled": 1}
    known_bad = {"known_bad": 2, "known_bad_caught": 1, "known_bad_passed": 1}
    assert state.audits["round"] == {"drawn": 1, "passed": 5} | opinions | known_bad
    assert progress(state, now=161.0)["audits"] == "1 drawn: 5 passed; cheated: auditor-1 (known bad)"
    assert progress(state, now=161.0)["auditors"] == (
        "0 of 1 online; 3 opinions, 4 of the referee, 1 overruled; known bad: 1 of 2 caught, 1 passed"
    )
    lines = [line for told in PANEL if (line := event_line(state, *told))]
    assert lines == [
        "stage 1: auditor-1 is overruled about the round audit of round 2: passed",
        "stage 1: auditor-1 is convicted: it passed a report that is known to be bad",
        "stage 1: auditor-1 said nothing about round 3 for 12.5 s",
    ]


def test_an_auditor_that_is_slashed_is_reported_as_one() -> None:
    lost = Penalties(slashed=(Penalty(CAROL, 1, 7, ROOT),))
    report = build_report(after(*START, *PANEL), ownership=Ownership(), penalties=lost, answers=SOLD, **FACTS)
    assert report["slashed"] == [
        {"address": CAROL, "stage": 1, "role": "auditor", "epoch": 1, "amount": "7", "evidence_hash": ROOT}
    ]
    (line,) = fraud_lines(after(*START, *PANEL), lost, Ownership())
    assert line.startswith(f"auditor-1 ({CAROL}) cheated on stage 1: known bad, round 2, epoch 1. It lost 0.000007")


def test_progress_names_loss_speed_bytes_and_time() -> None:
    shown = progress(after(*START, *SETTLED), now=161.0)
    assert shown["time"] == "1:01"
    assert shown["loss"] == "5.0000  █▁"
    assert shown["boundaries"] == "257/260 bytes per token, both ways"
    assert shown["epoch"] == "0 (ends when 2 are final)"


def test_the_commands_to_try_name_a_process_that_runs() -> None:
    assert "kill -9 41" in next_commands(after(*START))


def test_a_sparkline_has_a_width_and_stands_flat_series() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline([float(n) for n in range(1000)])) <= 40


def test_the_report_is_json_and_keeps_big_integers() -> None:
    state = after(*START, *SETTLED)
    ownership = Ownership((Holding(ALICE, 3 * 10**23, 10**20), Holding(BOB, 10**23, 0)), supply=10**24)
    report = json.loads(
        json.dumps(
            build_report(
                state,
                ownership=ownership,
                penalties=Penalties(),
                answers=SOLD,
                deployments={"model_id": ROOT},
                exit_reason="finished",
                peak_rss_bytes=5,
                versions={"python": "3"},
            )
        )
    )
    assert report["ownership"][ALICE] == {
        "shares": "300000000000000000000000",
        "fraction": 0.3,
        "work_units": "100000000000000000000",
    }
    assert report["losses"] == [5.5, 5.0]
    assert report["epochs"] == [
        {"number": 0, "root": ROOT, "statement_hash": ROOT, "minted": str(10**24), "finalised": True}
    ]
    assert report["first_round_s"] == 7.5
    paid = {ALICE: 40, BOB: 15}
    assert report["answers"] == {"sold": state.answers, "sealed": 2, "tokens": 40, "paid_tokens": paid}
    assert ownership_rows(ownership, {BOB: "node-1"})[1] == ("node-1", BOB, "100,000", "10.00 %", "–")

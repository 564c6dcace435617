"""The rules reproduce tests/vectors/, read as another implementation would read them."""

import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from commonweight.identity import recover_address
from commonweight.rules.accounting import divide_shares
from commonweight.rules.announcement import ANNOUNCEMENT_TYPE, announcement_from_json
from commonweight.rules.answer import (
    Answer,
    answer_leaf,
    answer_receipt,
    find_disagreement,
    pack_ids,
    served_receipt,
    session_id,
)
from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits, left_outstanding, paid_rounds
from commonweight.rules.averaging import slice_bounds
from commonweight.rules.beacon import answers_root, blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.canonical import canonical_json, content_hash, parse_json
from commonweight.rules.checking import check_statement
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.epoch import signed_receipt
from commonweight.rules.load import is_divided, pack_load, unpack_load
from commonweight.rules.merkle import MerkleTree, keccak, settlement_leaf, verify_proof
from commonweight.rules.panel import (
    is_known_bad,
    known_bad_report,
    opinion_receipt,
    rank_auditors,
    recording_receipt,
    settled_verdict,
)
from commonweight.rules.receipt import RECEIPT_TYPE, Domain, Receipt
from commonweight.rules.report import HOP_WORDS, Hop, Report, report_receipt
from commonweight.rules.sampling import permute, sample_indices, window_count
from commonweight.rules.spec import Economics, ModelSpec, build_spec, parse_spec
from commonweight.rules.stages import head_flops, layer_flops, stage_layers, stage_units
from commonweight.rules.statement import Carried, parse_statement, to_hex
from tools import build_vectors
from tools.build_vectors import SETTLEMENT, VECTORS


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@pytest.fixture(scope="module")
def specs() -> dict[str, ModelSpec]:
    return {case["name"]: build_spec(case["spec"]) for case in load("spec")["cases"]}


def test_announcement() -> None:
    vectors = load("announcement")
    assert vectors["type"] == ANNOUNCEMENT_TYPE.decode()
    for case in vectors["cases"]:
        announcement = announcement_from_json(case["announcement"])
        assert content_hash(case["announcement"]) == raw(case["content"])
        assert announcement.digest() == raw(case["digest"])
        assert recover_address(raw(case["digest"]), raw(case["signature"])) == case["signer"]


def test_merkle() -> None:
    cases = load("merkle")["cases"]
    assert {len(case["leaves"]) for case in cases} >= {1, 2, 3, 7, 33}
    for case in cases:
        tree = MerkleTree([raw(row["leaf"]) for row in case["leaves"]])
        assert tree.root == raw(case["root"])
        for index, row in enumerate(case["leaves"]):
            values = [
                int(row[name]) for name in ("cumulative_shares", "epoch_shares", "debt_before", "operator_revenue")
            ]
            assert settlement_leaf(case["chain_id"], case["settlement"], row["account"], *values) == raw(row["leaf"])
            assert tree.proof(index) == [raw(sibling) for sibling in row["proof"]]
            assert verify_proof(raw(case["root"]), raw(row["leaf"]), map(raw, row["proof"]))


def test_emission() -> None:
    for case in load("emission")["cases"]:
        rule = Economics(
            rounds_per_epoch=1,
            max_supply=str(2**96),
            initial_emission=case["initial"],
            halving_epochs=case["halving_epochs"],
            designer_bps=0,
            data_bps=0,
        )
        epochs = case["emission"]["epochs"]
        assert [str(emission(rule, epoch)) for epoch in epochs] == case["emission"]["amounts"]
    assert any(max(c["emission"]["epochs"]) > 256 * c["halving_epochs"] for c in load("emission")["cases"])


def test_accounting() -> None:
    for case in load("accounting")["cases"]:
        split = split_emission(int(case["minted"]), case["designer_bps"], case["data_bps"])
        assert [str(split.designer), str(split.data), str(split.compute)] == [
            case["designer"],
            case["data"],
            case["compute"],
        ]


def test_spec() -> None:
    for case in load("spec")["cases"]:
        spec = parse_spec(case["canonical"].encode())
        assert canonical_json(case["spec"]) == case["canonical"].encode()
        assert spec.spec_hash == raw(case["spec_hash"])
        assert [str(layer_flops(spec)), str(head_flops(spec))] == [case["layer_flops"], case["head_flops"]]
        assert [[layers.start, layers.stop] for layers in stage_layers(spec)] == case["stage_layers"]
        assert [str(stage_units(spec, stage)) for stage in range(spec.stages)] == case["stage_units"]


def test_sampling(specs: dict[str, ModelSpec]) -> None:
    vectors = load("sampling")
    for case in vectors["cases"]:
        windows = sample_indices(specs[case["spec"]], case["round"], case["microbatch"])
        assert list(map(str, windows)) == case["windows"]
    for case in vectors["permutations"]:
        assert [permute(i, case["count"], case["key"].encode()) for i in range(case["count"])] == case["image"]
    assert {name: str(window_count(spec)) for name, spec in specs.items()} == vectors["window_counts"]


def test_shares() -> None:
    for case in load("shares")["cases"]:
        weights = {account: int(weight) for account, weight in case["weights"].items()}
        parts = divide_shares(int(case["total"]), weights)
        assert {account: str(part) for account, part in parts.items()} == case["shares"]


def test_load() -> None:
    vectors = load("load")
    for case in vectors["loads"]:
        packed, microbatches = raw(case["packed"]), case["microbatches"]
        assert pack_load(case["load"], microbatches) == packed
        assert list(unpack_load(packed, microbatches)) == case["load"]
    for case in vectors["divided"]:
        assert is_divided([tuple(found) for found in case["loads"]], case["microbatches"]) == case["is_divided"]
    for case in vectors["slices"]:
        count = case["contributors"]
        bounds = [list(slice_bounds(case["numbers"], count, index)) for index in range(count)]
        assert bounds == case["bounds"]


def test_report() -> None:
    vectors = load("report")
    for case in vectors["cases"]:
        hops = []
        for position, fields in enumerate(case["hops"]):
            (loss,) = struct.unpack(">d", raw(fields["loss_bits"]))
            hashes = {name: raw(fields[name]) for name in HOP_WORDS}
            hops.append(Hop(microbatch=fields["microbatch"], **hashes, loss=loss))
            assert hops[-1].leaf(position) == raw(fields["leaf"])
        names = ("gradient_hash", "round_gradient_hash", "state_before", "state_after")
        given = {name: raw(case[name]) for name in names}
        report = Report(round=case["round"], stage=case["stage"], hops=tuple(hops), **given)
        commitments = report.commitments(vectors["microbatches"])
        domain = Domain(case["chain_id"], case["settlement"])
        assert (commitments.load, commitments.hops_root) == (raw(case["load"]), raw(case["hops_root"]))
        assert commitments.claim == raw(case["claim"])
        assert domain.separator == raw(case["domain_separator"])
        unit = raw(case["model_id"]), case["generation"], case["round"], case["stage"]
        receipt = report_receipt(*unit, commitments, raw(case["beacon_tip"]))
        assert receipt == Receipt(raw(case["model_id"]), case["stage"], raw(case["unit"]), raw(case["output"]))
        assert receipt.digest(domain) == raw(case["digest"])


def test_receipt() -> None:
    vectors = load("receipt")
    assert vectors["type"].encode() == RECEIPT_TYPE
    cases = {case["name"]: case for case in vectors["cases"]}
    for case in cases.values():
        receipt = Receipt(raw(case["model_id"]), case["stage"], raw(case["unit"]), raw(case["output"]))
        assert receipt.digest(Domain(case["chain_id"], case["settlement"])) == raw(case["digest"])
        assert recover_address(raw(case["digest"]), raw(case["signature"])) == case["signer"]
    subject = ("signer", "chain_id", "settlement", "model_id", "stage", "unit")
    honest = cases.pop("honest")
    proofs = [name for name, case in cases.items() if all(case[field] == honest[field] for field in subject)]
    assert proofs == ["another output"]  # each of the others lacks one thing to convict


def test_beacon() -> None:
    vectors = load("beacon")
    for case in vectors["chains"]:
        chain = hash_chain(raw(case["seed"]), case["rounds"])
        assert list(chain) == [raw(value) for value in case["tip_and_values"]]
        assert len(chain) == case["rounds"] + 1
        assert all(keccak(after) == before for before, after in pairwise(chain))
    for case in vectors["rounds"]:
        outputs, salts, commitments = (
            [[raw(value) for value in of_stage] for of_stage in case[name]]
            for name in ("outputs", "salts", "commitments")
        )
        for stage, of_stage in enumerate(outputs):
            for replica, output in enumerate(of_stage):
                salt = seal_salt(raw(case["seed"]), case["round"], stage, replica)
                assert salt == salts[stage][replica]
                assert blinded(output, salt) == commitments[stage][replica]
        assert round_root(commitments) == raw(case["round_root"])
        assert round_beacon(raw(case["value"]), raw(case["round_root"])) == raw(case["beacon"])
        assert answers_root([raw(leaf) for leaf in case["answer_leaves"]]) == raw(case["answers_root"])


def test_answer() -> None:
    for case in load("answer")["cases"]:
        (temperature,) = struct.unpack(">d", raw(case["temperature_bits"]))
        model_id, session, version = raw(case["model_id"]), raw(case["session"]), int(case["version"])
        prompt, fed = case["prompt_tokens"], case["fed"]
        answers = []
        for stage, fields in enumerate(case["parts"]):
            hashes = (raw(case["ids"]), raw(fields["taken"]), raw(fields["passed"]))
            answer = Answer(version, session, raw(case["nonce"]), prompt, fed, *hashes, temperature, int(case["seed"]))
            assert answer.trace == raw(fields["trace"])
            receipt = answer_receipt(model_id, stage, version, session, prompt, fed, answer.trace)
            assert receipt == Receipt(model_id, stage, raw(fields["unit"]), raw(fields["unit"]))
            assert receipt.digest(Domain(31337, SETTLEMENT)) == raw(fields["digest"])
            answers.append(answer)
        assert find_disagreement(answers) is None
        served = served_receipt(model_id, version, session, prompt, case["completion_tokens"])
        assert served == Receipt(model_id, 0, raw(case["served_unit"]), raw(case["served_unit"]))
        assert served.digest(Domain(31337, SETTLEMENT)) == raw(case["served_digest"])
        traces = [answer.trace for answer in answers]
        leaves = [answer_leaf(index, version, session, prompt, fed, traces) for index in (0, 1, 300)]
        assert leaves == [raw(leaf) for leaf in case["leaves"]]
    for case in load("answer")["sessions"]:
        (temperature,) = struct.unpack(">d", raw(case["temperature_bits"]))
        found = session_id(raw(case["nonce"]), pack_ids(case["prompt"]), temperature, int(case["seed"]))
        assert found == raw(case["session"])


def audit_of(fields: dict[str, Any]) -> Audit:
    return Audit(fields["round"], fields["stage"], Kind(fields["kind"]), fields["microbatch"], fields["replica"])


def test_audits(specs: dict[str, ModelSpec]) -> None:
    vectors = load("audits")
    for case in vectors["draws"]:
        beacon, root = raw(case["beacon"]), raw(case["answers_root"])
        spec = specs[case["spec"]]
        microbatches = spec.training.microbatches_per_round
        loads = [[unpack_load(raw(packed), microbatches) for packed in of_stage] for of_stage in case["loads"]]
        drawn = draw_audits(spec, case["round"], beacon, loads, case["answers"], root)
        assert drawn == tuple(map(audit_of, case["audits"]))
    for case in vectors["paid"]:
        verdicts = {audit_of(fields): Verdict(fields["verdict"]) for fields in case["verdicts"]}
        outstanding = [Kind(name) for name in case["outstanding"]]
        assert sorted(paid_rounds(case["rounds"], verdicts, outstanding)) == case["paid"], case["name"]
        left = sorted(kind.value for kind in left_outstanding(verdicts, outstanding))
        assert left == case["left_outstanding"], case["name"]


def test_panel(specs: dict[str, ModelSpec]) -> None:
    vectors = load("panel")
    spec = specs[vectors["spec"]]
    for case in vectors["rankings"]:
        for owners in (case["owners"], case["owners"][::-1]):
            assert list(rank_auditors(raw(case["beacon"]), audit_of(case), owners)) == case["ranking"]
        assert case["ranking"][-1] is None
    for case in vectors["known_bad"]:
        audit, seed = audit_of(case), raw(case["seed"])
        load_ = tuple(case["load"])
        assert is_known_bad(spec, seed, audit, load_) == case["is_known_bad"]
        (report,) = (each for each in build_vectors.known_bad_reports(audit) if each.load == load_)
        false = known_bad_report(audit, report, seed, is_last=audit.stage == spec.stages - 1)
        microbatches = spec.training.microbatches_per_round
        claims = tuple(to_hex(each.commitments(microbatches).claim) for each in (report, false))
        assert claims == (case["claim"], case["false_claim"])
        assert claims[0] != claims[1]
    for case in vectors["opinions"]:
        receipt = opinion_receipt(
            raw(case["model_id"]),
            audit_of(case),
            raw(case["claim"]),
            Verdict(case["verdict"]),
            raw(case["evidence"]),
        )
        unit = raw(case["unit"])
        assert receipt == Receipt(raw(case["model_id"]), case["stage"], unit, unit)
        assert receipt.digest(Domain(31337, SETTLEMENT)) == raw(case["digest"])
    case = vectors["recording"]
    recording = recording_receipt(raw(case["model_id"]), audit_of(case), raw(case["claim"]), raw(case["operators"]))
    assert recording.unit == raw(case["unit"])
    for case in vectors["settled"]:
        settled = settled_verdict([(owner, Verdict(verdict)) for owner, verdict in case["opinions"]])
        assert settled == (case["verdict"] and Verdict(case["verdict"]))


def test_statement(specs: dict[str, ModelSpec]) -> None:
    vectors = load("statement")
    spec, before = specs[vectors["spec"]], Carried()
    for epoch in vectors["epochs"]:
        statement = parse_statement(canonical_json(epoch["statement"]), raw(epoch["hash"]))
        check_statement(spec, statement, before)
        before = statement.carried()
        domain = Domain(statement.chain_id, statement.settlement)
        for line in statement.audits:
            for opinion in line.opinions:
                digest = signed_receipt(raw(statement.model_id), line.audit, opinion).digest(domain)
                assert recover_address(digest, raw(opinion.signature)) == opinion.auditor
        for line in (line for sealed in statement.rounds for line in sealed.answers):
            numbers = (line.version, raw(line.session), line.prompt_tokens, line.completion_tokens)
            digest = served_receipt(raw(statement.model_id), *numbers).digest(domain)
            assert recover_address(digest, raw(line.signature)) == line.gateway
    statements = [epoch["statement"] for epoch in vectors["epochs"]]
    pools = [int(statement["operator_pool"]) for statement in statements]
    assert pools[0] == 0 < pools[1] < pools[2]  # no version is published in the first
    nodes = {build_vectors.address(f"node {number}"): number for number in range(8)}
    unpaid = [
        {
            (sealed["round"], line["stage"], nodes[line["node"]])
            for sealed in statement["rounds"]
            for line in sealed["reports"]
            if line["units"] == "0"
        }
        for statement in statements
    ]
    # What was withheld voids up to what passed, be it an epoch later; fraud, all that provider's work in the stage.
    assert unpaid[0] == {(7, 0, 0), (2, 1, 1), *((number, 1, 1) for number in (5, 6, 7)), (7, 2, 2)}
    assert unpaid[1] == {(8, 0, 0), *((number, 2, 2) for number in range(8, 16))}
    assert unpaid[2] == {(number, stage, node) for number in range(16, 24) for stage, node in ((1, 3), (2, 2))}
    # Other replicas of the stage are paid.
    withheld = {(27, 1, 4), (28, 1, 5), (29, 1, 5)}
    assert unpaid[3] == withheld | {(number, 2, node) for number in range(24, 32) for node in (2, 7)}
    outstanding = [[(line["stage"], line["kind"]) for line in each["outstanding"]] for each in statements]
    owed = (1, "microbatch")  # by one who is gone
    assert sorted(outstanding[0]) == [(0, "data"), (1, "microbatch"), (2, "loss")]
    assert (sorted(outstanding[1]), sorted(outstanding[2])) == (
        [(0, "answer"), (1, "answer"), owed],
        [(1, "answer"), owed],
    )
    assert sorted(outstanding[3]) == [(1, "answer"), (1, "answer"), owed]
    tokens = {
        sealed["round"]: sum(line["prompt_tokens"] + line["completion_tokens"] for line in sealed["answers"])
        for statement in statements
        for sealed in statement["rounds"]
    }
    served = [[(line["stage"], nodes[line["node"]], line["tokens"]) for line in each["served"]] for each in statements]
    assert served[0] == []
    assert served[1] == [(0, 0, tokens[8] + tokens[10]), (1, 2, tokens[8])]
    assert served[2] == [(0, 0, sum(tokens[number] for number in range(17, 24)))]
    first = sum(
        sealed["answers"][0]["prompt_tokens"] + sealed["answers"][0]["completion_tokens"]
        for sealed in statements[3]["rounds"]
        if sealed["answers"]
    )
    # The second of a round's answers went through replicas that aren't paid.
    assert served[3] == [(0, 0, sum(tokens[number] for number in range(24, 32))), (1, 5, first), (2, 6, first)]
    trained = [
        sum(int(line["units"]) for sealed in each["rounds"] for line in sealed["reports"]) for each in statements
    ]
    done = 8 * spec.training.microbatches_per_round * sum(stage_units(spec, stage) for stage in range(spec.stages))
    assert [int(each["minted"]) for each in statements] == [
        emission(spec.economics, epoch) * paid // done for epoch, paid in enumerate(trained)
    ]
    for each, paid in zip(statements, trained, strict=True):
        audited = sum(int(opinion["units"]) for line in each["audits"] for opinion in line["opinions"])
        assert audited > 0
        assert sum(int(line["units"]) for line in each["accounts"]) == paid + audited
    assert [len(statement["convicted"]) for statement in statements] == [0, 2, 3, 4]
    cheat = {"stage": 2, "node": build_vectors.address("node 2")}
    waving = {"stage": 2, "node": build_vectors.SEATED[-1].address}
    made_up = {"stage": 1, "node": build_vectors.address("node 3")}
    assert statements[1]["convicted"] == [cheat, waving]
    assert made_up in statements[2]["convicted"]  # by an answer
    asked = [
        (opinion["auditor"], line["stage"])
        for line in statements[2]["audits"] + statements[3]["audits"]
        for opinion in line["opinions"]
        if opinion["owner"]
    ]
    assert (waving["node"], 2) not in asked  # who has passed what was known to be bad isn't asked there any more
    assert (waving["node"], 0) in asked
    line = statements[1]["rounds"][0]["reports"][1]
    assert (line["node"], line["units"] != "0") == (cheat["node"], True)  # in another stage it is paid


def test_the_files_are_what_the_tool_writes() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == set(build_vectors.BUILDERS)
    assert build_vectors.main(["--check"]) == 0


def test_the_tool_names_a_stale_or_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(VECTORS, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(build_vectors, "VECTORS", tmp_path)
    (tmp_path / "shares.json").write_text((tmp_path / "shares.json").read_text().replace("1", "2", 1))
    (tmp_path / "merkle.json").unlink()
    assert build_vectors.main(["--check"]) == 1
    assert "merkle.json, shares.json" in capsys.readouterr().out
    assert build_vectors.main([]) == 0
    assert build_vectors.main(["--check"]) == 0


def test_vectors_name_no_number_that_json_readers_round() -> None:
    for path in VECTORS.glob("*.json"):
        parse_json(path.read_bytes(), path.name, 10_000_000)  # refuses floats and what is over 2^53

"""Write the vectors that every implementation of the rules must reproduce: `python tools/build_vectors.py
[--check]`.

They follow from the rules and from constants alone, so that a change of a rule shows as a changed vector.
Solidity reads merkle.json, emission.json and accounting.json; Python reads all of them. `--check` writes
nothing and fails where a file isn't what the rules say.
"""

import argparse
import json
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from commonweight.identity import NodeIdentity
from commonweight.rules.accounting import divide_shares
from commonweight.rules.announcement import ANNOUNCEMENT_TYPE, Announcement, Role
from commonweight.rules.answer import (
    NONCE_BYTES,
    Answer,
    answer_leaf,
    answer_receipt,
    pack_ids,
    served_receipt,
    session_id,
)
from commonweight.rules.audits import (
    NO_ANSWERS,
    NO_EVIDENCE,
    Audit,
    Kind,
    Verdict,
    draw_audits,
    left_outstanding,
    paid_rounds,
)
from commonweight.rules.averaging import slice_bounds
from commonweight.rules.beacon import answers_root, blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.canonical import canonical_json, content_hash
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.epoch import (
    audit_line,
    credit_report,
    credited_load,
    drawn_auditors,
    drawn_audits,
    make_opinion,
    make_statement,
    sealed_beacon,
)
from commonweight.rules.load import Load, Loads, is_divided, pack_load, undivided
from commonweight.rules.merkle import MerkleTree, settlement_leaf
from commonweight.rules.panel import (
    Owner,
    Standing,
    is_known_bad,
    known_bad_report,
    left_to_ask,
    opinion_receipt,
    rank_auditors,
    recording_receipt,
    settled_verdict,
)
from commonweight.rules.receipt import RECEIPT_TYPE, Domain, Receipt
from commonweight.rules.report import HOP_WORDS, NO_TENSOR, Hop, Report, report_receipt
from commonweight.rules.sampling import permute, sample_indices, window_count
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import head_flops, layer_flops, stage_layers, stage_units
from commonweight.rules.statement import (
    AnswerLine,
    AnswerPart,
    AuditLine,
    AuditorSeat,
    Carried,
    CreditedReport,
    Opinion,
    SealedRound,
    Statement,
    to_hex,
)

VECTORS = Path(__file__).resolve().parent.parent / "tests" / "vectors"
SETTLEMENT = "0x5615dEB798BB3E4dFa0139dFa1b3D433Cc23b72f"
MAX_UINT256 = 2**256 - 1

TINY: dict[str, Any] = {
    "format": "commonweight.model/7",
    "name": "tiny",
    "seed": 7,
    "stages": 3,
    "architecture": {
        "vocab_size": 257,
        "d_model": 32,
        "boundary_dim": 8,
        "n_layers": 8,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 64,
        "rope_theta": 10000,
        "norm_eps": "0.00001",
    },
    "training": {
        "sequence_length": 16,
        "microbatch_sequences": 2,
        "microbatches_per_round": 3,
        "compute_dtype": "float32",
        "boundary_dtype": "float32",
        "learning_rate": "0.003",
        "final_learning_rate": "0.0003",
        "warmup_rounds": 10,
        "decay_rounds": 1000,
        "beta1": "0.9",
        "beta2": "0.95",
        "adam_eps": "0.00000001",
        "weight_decay": "0.1",
        "grad_clip": "1",
        "asynchrony": "none",
        "averaging": "float32",
        "averaging_rounds": 1,
        "outer_learning_rate": "0.7",
        "outer_momentum": "0.9",
    },
    "verification": {
        "round_rate": "0.25",
        "microbatch_rate": "0.75",
        "data_rate": "0.5",
        "answer_rate": "0.5",
        "known_bad_rate": "0.25",
        "tolerance": "0.00001",
    },
    "data": {"tokenizer": "bytes", "manifest": "0x" + "11" * 32, "tokens": 2000},
    "economics": {
        "rounds_per_epoch": 2,
        "max_supply": "1000000000000000000000000",
        "initial_emission": "1000000000000000000000",
        "halving_epochs": 2,
        "designer_bps": 500,
        "data_bps": 1000,
    },
}
"""A small spec in factored form; the others differ from it by what their name says."""


def changed(**parts: Any) -> ModelSpec:
    """TINY with some fields of its parts, and of itself, replaced."""
    fields = {key: {**value, **parts.pop(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()}
    return build_spec({**fields, **parts})


SPECS = {
    "tiny": changed(),
    "dense": changed(name="dense", architecture={"boundary_dim": 32}),
    "one-stage": changed(name="one-stage", stages=1),
    "layer-per-stage": changed(name="layer-per-stage", stages=8),
    "heavy-head": changed(name="heavy-head", architecture={"vocab_size": 2**20}),
    "light-head": changed(name="light-head", stages=5, architecture={"vocab_size": 2, "n_layers": 33}),
    "llama-8b": changed(
        name="llama-8b",
        stages=8,
        seed=2**53 - 1,
        architecture={
            "vocab_size": 128256,
            "d_model": 4096,
            "boundary_dim": 40,
            "n_layers": 32,
            "n_heads": 32,
            "n_kv_heads": 8,
            "d_ff": 14336,
            "rope_theta": 500000,
        },
        training={
            "sequence_length": 4096,
            "microbatch_sequences": 1,
            "microbatches_per_round": 512,
            "compute_dtype": "bfloat16",
            "boundary_dtype": "bfloat16",
        },
        verification={"round_rate": "0.02", "microbatch_rate": "0.3", "data_rate": "0.05", "answer_rate": "0.05"},
        data={"tokenizer": "0x" + "22" * 32, "tokens": 15 * 10**12},
    ),
    "long-epoch": changed(name="long-epoch", economics={"rounds_per_epoch": 8}),
    "whole-rounds-audited": changed(
        name="whole-rounds-audited", verification={"round_rate": "1", "microbatch_rate": "1", "data_rate": "0"}
    ),
    "microbatches-audited": changed(
        name="microbatches-audited", verification={"round_rate": "0", "microbatch_rate": "1", "data_rate": "1"}
    ),
    "answers-audited": changed(
        name="answers-audited",
        verification={"round_rate": "0", "microbatch_rate": "0", "data_rate": "0", "answer_rate": "1"},
    ),
    "unaudited": changed(
        name="unaudited",
        verification={"round_rate": "0", "microbatch_rate": "0", "data_rate": "0", "answer_rate": "0"},
    ),
}


def draw(label: str, below: int) -> int:
    """A number in range(below) that depends on the label alone."""
    return int.from_bytes(b"".join(keccak(b"%d/" % i + label.encode()) for i in range(2)), "big") % below


def address(label: str) -> str:
    """An address that depends on the label alone, in its EIP-55 spelling."""
    return to_checksum_address(keccak(label.encode())[12:])


DOMAINS = (Domain(31337, SETTLEMENT), Domain(1, SETTLEMENT), Domain(31337, address("another settlement")))


def build_merkle() -> Any:
    """Trees of settlement leaves."""
    ordinary = {
        count: [
            (
                address(f"account {count}/{i}"),
                draw(f"cumulative {count}/{i}", 2**96),
                draw(f"epoch {count}/{i}", 2**90),
                draw(f"debt {count}/{i}", 2**245),
                draw(f"revenue {count}/{i}", 2**96),
            )
            for i in range(count)
        ]
        for count in (1, 2, 3, 7, 33)
    }
    extremes = [
        ("0x" + "00" * 20, 0, 0, 0, 0),
        ("0x" + "ff" * 20, 2**96, 2**96, 0, 2**128 - 1),
        ("0x" + "00" * 19 + "01", 2**96, 0, 2**245, 0),
        ("0x" + "80" + "00" * 19, MAX_UINT256, MAX_UINT256, MAX_UINT256, MAX_UINT256),
        ("0x" + "00" * 20, 1, 0, 0, 0),
        ("0x" + "00" * 20, 0, 1, 0, 0),
        ("0x" + "00" * 20, 0, 0, 1, 0),
        ("0x" + "00" * 20, 0, 0, 0, 1),
    ]
    same_twice = [ordinary[3][0], ordinary[3][1], ordinary[3][0]]
    cases = [(31337, SETTLEMENT, rows) for rows in ordinary.values()]
    cases += [(1, SETTLEMENT, ordinary[7]), (31337, address("another settlement"), ordinary[7])]
    cases += [(2**53 - 1, "0x" + "ff" * 20, extremes), (31337, SETTLEMENT, same_twice)]
    return {"cases": [_merkle_case(*case) for case in cases]}


def _merkle_case(chain_id: int, settlement: str, rows: list[tuple[str, int, int, int, int]]) -> Any:
    leaves = [settlement_leaf(chain_id, settlement, *row) for row in rows]
    tree = MerkleTree(leaves)
    return {
        "chain_id": chain_id,
        "settlement": settlement,
        "leaves": [
            {
                "account": account,
                "cumulative_shares": str(cumulative),
                "epoch_shares": str(shares),
                "debt_before": str(debt),
                "operator_revenue": str(revenue),
                "leaf": to_hex(leaves[i]),
                "proof": [to_hex(sibling) for sibling in tree.proof(i)],
            }
            for i, (account, cumulative, shares, debt, revenue) in enumerate(rows)
        ],
        "root": to_hex(tree.root),
    }


def build_emission() -> Any:
    """What epochs mint, past the epoch where nothing is left."""
    cases = []
    for initial, halving in (
        (10**21, 1),
        (10**21, 2),
        (10**21, 100),
        (2**95, 1),
        (2**95 - 1, 1),
        (1, 1),
        (0, 1),
        (12345678901234567890, 7),
        (3, 2**31 - 1),
    ):
        spec = changed(
            economics={
                "max_supply": str(2**96),
                "initial_emission": str(initial),
                "halving_epochs": halving,
            }
        )
        edges = {k * halving + d for k in (0, 1, 2, 3, 64, 95, 96, 97, 255, 256, 257, 300) for d in (-1, 0, 1)}
        epochs = sorted(epoch for epoch in {*edges, 10**6, 2**32 - 1} if 0 <= epoch < 2**32)
        amounts = [str(emission(spec.economics, epoch)) for epoch in epochs]
        cases.append(
            {
                "initial": str(initial),
                "halving_epochs": halving,
                "emission": {"epochs": epochs, "amounts": amounts},
            }
        )
    return {"cases": cases}


def build_accounting() -> Any:
    """How an epoch's shares are split."""
    cases = []
    for minted in (0, 1, 2, 9_999, 10_000, 10_001, 10**21, 10**21 // 3, 2**96 - 1, 2**96):
        for designer_bps, data_bps in (
            (0, 0),
            (500, 1000),
            (1, 1),
            (3333, 3333),
            (5000, 5000),
            (10_000, 0),
            (0, 9_999),
        ):
            split = split_emission(minted, designer_bps, data_bps)
            cases.append(
                {
                    "minted": str(minted),
                    "designer_bps": designer_bps,
                    "data_bps": data_bps,
                    "designer": str(split.designer),
                    "data": str(split.data),
                    "compute": str(split.compute),
                }
            )
    return {"cases": cases}


def build_spec_vectors() -> Any:
    """The encoding, the hash, the cut and the work units of specs."""
    return {
        "cases": [
            {
                "name": name,
                "spec": spec.model_dump(),
                "canonical": canonical_json(spec.model_dump()).decode(),
                "spec_hash": to_hex(spec.spec_hash),
                "layer_flops": str(layer_flops(spec)),
                "head_flops": str(head_flops(spec)),
                "stage_layers": [[layers.start, layers.stop] for layers in stage_layers(spec)],
                "stage_units": [str(stage_units(spec, stage)) for stage in range(spec.stages)],
            }
            for name, spec in SPECS.items()
        ]
    }


def build_sampling() -> Any:
    """Which windows microbatches draw, also across the end of a pass."""
    cases = []
    for name, rounds in (("tiny", (0, 1, 19, 20, 21, 1000)), ("llama-8b", (0, 1, 10**6))):
        spec = SPECS[name]
        last = spec.training.microbatches_per_round - 1
        for number in rounds:
            for microbatch in (0, 1, last):
                windows = [str(window) for window in sample_indices(spec, number, microbatch)]
                cases.append({"spec": name, "round": number, "microbatch": microbatch, "windows": windows})
    permutations = [
        {"count": count, "key": key, "image": [permute(i, count, key.encode()) for i in range(count)]}
        for count in (1, 2, 3, 4, 5, 16, 17, 100)
        for key in ("7/0", "7/1")
    ]
    counts = {name: str(window_count(spec)) for name, spec in SPECS.items()}
    return {"cases": cases, "permutations": permutations, "window_counts": counts}


def build_shares() -> Any:
    """Shares by largest remainder."""
    cases = []
    for total, weights in (
        (0, {"a": 1, "b": 2}),
        (1, {"a": 1, "b": 1}),
        (1, {"b": 1, "a": 1}),
        (2, {"c": 1, "b": 1, "a": 1}),
        (10, {"a": 1, "b": 1, "c": 1}),
        (100, {"a": 0, "b": 7, "c": 0, "d": 3, "e": 4}),
        (5, {"only": 9}),
        (850 * 10**18, {address(f"worker {i}"): 3 * 10**15 + draw(f"units {i}", 10**15) for i in range(9)}),
        (2**96, {address(f"worker {i}"): draw(f"many units {i}", 2**120) for i in range(5)}),
    ):
        parts = divide_shares(total, weights)
        cases.append(
            {
                "total": str(total),
                "weights": {account: str(weight) for account, weight in weights.items()},
                "shares": {account: str(part) for account, part in parts.items()},
            }
        )
    return {"cases": cases}


def mark(*parts: object) -> bytes:
    """32 bytes that stand for what the parts name."""
    return sha256("/".join(map(str, parts)).encode()).digest()


def share(microbatches: int, replicas: int, turn: int = 0) -> tuple[Load, ...]:
    """The loads of so many replicas, who take turns. Tests use it, too."""
    return tuple(tuple(j for j in range(microbatches) if (j + turn) % replicas == each) for each in range(replicas))


def honest_reports(stages: int, microbatches: int, number: int, loads: Loads | None = None) -> tuple[Report, ...]:
    """The reports about one round that nobody disagrees about, by stage, then by replica: without `loads` one of each
    stage. Who has a part of the round adds up its last microbatches first. Tests use it, too.
    """

    def crossing(kind: str, boundary: int, j: int) -> bytes:
        return NO_TENSOR if boundary in (0, stages) else mark(kind, number, boundary, j)

    def gradient(stage: int, load: Load) -> bytes:
        return mark("gradient", number, stage, *(load if len(load) < microbatches else ()))

    return tuple(
        Report(
            round=number,
            stage=stage,
            hops=tuple(
                Hop(
                    microbatch=j,
                    tokens=mark("tokens", number, j),
                    activation_in=crossing("activation", stage, j),
                    activation_out=crossing("activation", stage + 1, j),
                    gradient_in=crossing("gradient", stage + 1, j),
                    gradient_out=crossing("gradient", stage, j),
                    sketch=mark("sketch", number, stage, j),
                    loss=max(5.5 - number / 8 + j / 64, 0.0) if stage == stages - 1 else 0.0,
                )
                for j in (load if len(load) == microbatches else load[::-1])
            ),
            gradient_hash=gradient(stage, load),
            round_gradient_hash=mark("gradient", number, stage),
            state_before=mark("state", number, stage),
            state_after=mark("state", number + 1, stage),
        )
        for stage, of_stage in enumerate(loads or undivided(stages, microbatches))
        for load in of_stage
    )


def beacon_chain(spec: ModelSpec, epoch: int) -> tuple[bytes, ...]:
    """An epoch's beacon tip, then its values. Tests use it, too."""
    return hash_chain(mark("seed", epoch), spec.economics.rounds_per_epoch)


def seal(
    spec: ModelSpec, number: int, reports: Iterable[CreditedReport], answers: Iterable[AnswerLine] = ()
) -> SealedRound:
    """A round with its beacon value. Tests use it, too."""
    epoch, index = divmod(number, spec.economics.rounds_per_epoch)
    value = to_hex(beacon_chain(spec, epoch)[index + 1])
    return SealedRound(round=number, beacon=value, reports=tuple(reports), answers=tuple(answers))


Sign = Callable[[Receipt], bytes]


def honest_answer(
    stages: int, version: int, session: bytes, prompt_tokens: int, fed: int, *, temperature: float = 0.0, seed: int = 0
) -> tuple[Answer, ...]:
    """All stages' parts of an answer that nobody disagrees about. Tests use it, too."""
    codes = [NO_TENSOR, *(mark("codes", session.hex(), stage) for stage in range(stages))]
    ids, nonce = mark("ids", session.hex()), mark("nonce", session.hex())[:NONCE_BYTES]
    return tuple(
        Answer(version, session, nonce, prompt_tokens, fed, ids, taken, passed, temperature, seed)
        for taken, passed in pairwise(codes)
    )


def answer_line(
    model_id: bytes,
    parts: Sequence[Answer],
    *,
    completion_tokens: int,
    gateway: str,
    served: Sign,
    signs: Sequence[Sign],
    replicas: Sequence[int] | None = None,
) -> AnswerLine:
    """An answer's line, signed by the gateway (`served`) and each stage's provider (`signs`), whose number among those
    that report the stage is in `replicas`; without these 0. Tests use it, too.
    """
    first, numbers = parts[0], (parts[0].prompt_tokens, completion_tokens)
    receipts = (
        answer_receipt(model_id, stage, each.version, each.session, each.prompt_tokens, each.fed, each.trace)
        for stage, each in enumerate(parts)
    )
    return AnswerLine(
        session=to_hex(first.session),
        version=first.version,
        fed=first.fed,
        prompt_tokens=first.prompt_tokens,
        completion_tokens=completion_tokens,
        gateway=gateway,
        signature=to_hex(served(served_receipt(model_id, first.version, first.session, *numbers))),
        parts=tuple(
            AnswerPart(replica=replica, trace=to_hex(each.trace), signature=to_hex(sign(receipt)))
            for replica, each, receipt, sign in zip(replicas or [0] * len(parts), parts, receipts, signs, strict=True)
        ),
    )


def judged(
    spec: ModelSpec,
    rounds: Sequence[SealedRound],
    model_id: bytes,
    *,
    auditor: str,
    sign: Sign,
    verdict: Callable[[Audit], Verdict] = lambda _: Verdict.PASSED,
    auditors: Iterable[AuditorSeat] = (),
    seated: Mapping[str, Sign] | None = None,
    says: Callable[[Audit, str, bool], Verdict | None] = lambda *_: None,
    before: Carried | None = None,
) -> tuple[AuditLine, ...]:
    """All audits that an epoch's rounds draw, with their opinions. Tests use it, too.

    The referee, with `auditor`'s key, says `verdict`. Of those with a seat who are in `seated` answer, each with a key
    of its own: the truth, or what `says` says of the unit, the owner, and whether it is known to be bad. Who errs is
    disproven; who was convicted before isn't asked.
    """
    epoch = rounds[0].round // spec.economics.rounds_per_epoch
    tip, seed, seats, signers = beacon_chain(spec, epoch)[0], mark("seed", epoch), tuple(auditors), seated or {}

    def opinion(audit: Audit, owner: str | None, said: Verdict, claim: bytes) -> Opinion:
        evidence = mark("evidence", audit.order) if said is Verdict.FAILED else NO_EVIDENCE
        receipt = opinion_receipt(model_id, audit, claim, said, evidence)
        if owner is None:
            return make_opinion(claim, said, auditor=auditor, signature=sign(receipt), evidence_hash=evidence)
        who = {"auditor": owner, "owner": owner, "account": owner}
        return make_opinion(claim, said, **who, signature=signers[owner](receipt), evidence_hash=evidence)

    def line(sealed: SealedRound, audit: Audit) -> AuditLine:
        ranking = drawn_auditors(sealed, audit, sealed_beacon(spec, sealed, tip, seed), seats)
        gone = {each.node for each in before.convicted if each.stage == audit.stage} if before else set()
        left: Sequence[Owner] = [
            owner for owner in ranking if owner is None or (owner in signers and owner not in gone)
        ]
        claim, opinions = _sealed_claim(sealed, audit), []
        if left[0] is not None and is_known_bad(spec, seed, audit, credited_load(spec, sealed.provider(audit))):
            owner, *left = left
            said = says(audit, str(owner), True) or Verdict.FAILED
            opinions.append(opinion(audit, owner, said, mark("false claim", audit.order)))
        on_claim: list[Opinion] = []
        while (decided := settled_verdict([(each.owner, Verdict(each.verdict)) for each in on_claim])) is None:
            owner, *left = left_to_ask(left, len(on_claim))
            said = (owner and says(audit, owner, False)) or verdict(audit)
            on_claim.append(opinion(audit, owner, said, claim))
        done = audit_line(audit, decided, opinions + on_claim)
        return done.model_copy(update={"opinions": tuple(_disproven(done, each) for each in done.opinions)})

    return tuple(line(sealed, audit) for sealed in rounds for audit in drawn_audits(spec, sealed, tip, seed))


def _sealed_claim(sealed: SealedRound, audit: Audit) -> bytes:
    """What the opinions on a unit are to be on."""
    if audit.kind is Kind.ANSWER:
        return bytes.fromhex(sealed.answers[audit.answer].parts[audit.stage].trace[2:])
    return sealed.provider(audit).commitments.claim


def _disproven(line: AuditLine, opinion: Opinion) -> Opinion:
    if opinion.owner is None or line.standing_of(opinion) not in (Standing.FALSE, Standing.OVERRULED):
        return opinion
    return opinion.model_copy(update={"disproof": to_hex(mark("disproof", line.audit.order, opinion.auditor))})


TINY_MICROBATCHES = TINY["training"]["microbatches_per_round"]


def tiny_reports(number: int, replicas: int = 1) -> tuple[Report, ...]:
    """Of the tiny model, with so many replicas of each stage."""
    stages = TINY["stages"]
    return honest_reports(stages, TINY_MICROBATCHES, number, [share(TINY_MICROBATCHES, replicas)] * stages)


def build_load() -> Any:
    """Loads as they are signed, which of them divide a round, and who sums what of its gradient."""
    loads: list[tuple[int, Load]] = [
        (1, (0,)),
        (3, ()),
        (3, (0, 2)),
        (8, (7,)),
        (9, (0, 8)),
        (64, tuple(range(0, 64, 3))),
        (4096, (0, 4095)),
    ]
    divided = [
        (count, found)
        for count in (1, 3, 8)
        for found in (share(count, 1), share(count, 3), share(count, 2)[:1], (*share(count, 2), (0,)), ())
    ]
    return {
        "loads": [
            {"microbatches": count, "load": list(load), "packed": to_hex(pack_load(load, count))}
            for count, load in loads
        ],
        "divided": [
            {"microbatches": count, "loads": [list(load) for load in found], "is_divided": is_divided(found, count)}
            for count, found in divided
        ],
        "slices": [
            {
                "numbers": numbers,
                "contributors": count,
                "bounds": [list(slice_bounds(numbers, count, index)) for index in range(count)],
            }
            for numbers in (1, 7, 4096, 10**9 + 7)
            for count in (1, 2, 3, 7)
        ],
    }


def build_report() -> Any:
    """What providers sign."""
    model_id, tip = keccak(b"model"), keccak(b"tip")
    cases = [
        _report_case(domain, model_id, generation, report, tip)
        for domain, generation, replicas in ((DOMAINS[0], 1, 1), (DOMAINS[0], 2, 2), (DOMAINS[1], 2**53 - 1, 1))
        for report in tiny_reports(3, replicas)
    ]
    return {"microbatches": TINY_MICROBATCHES, "cases": cases}


def tiny_receipt(model_id: bytes, generation: int, report: Report, beacon_tip: bytes) -> Receipt:
    """Of a report about a round of the tiny model."""
    commitments = report.commitments(TINY_MICROBATCHES)
    return report_receipt(model_id, generation, report.round, report.stage, commitments, beacon_tip)


def _report_case(domain: Domain, model_id: bytes, generation: int, report: Report, beacon_tip: bytes) -> Any:
    receipt, commitments = tiny_receipt(model_id, generation, report, beacon_tip), report.commitments(TINY_MICROBATCHES)
    return {
        "chain_id": domain.chain_id,
        "settlement": domain.settlement,
        "domain_separator": to_hex(domain.separator),
        "model_id": to_hex(model_id),
        "generation": generation,
        "round": report.round,
        "stage": report.stage,
        "hops": [
            {
                "microbatch": hop.microbatch,
                **{name: to_hex(getattr(hop, name)) for name in HOP_WORDS},
                "loss_bits": to_hex(struct.pack(">d", hop.loss)),
                "leaf": to_hex(leaf),
            }
            for hop, leaf in zip(report.hops, report.leaves, strict=True)
        ],
        **{name: to_hex(value) for name, value in vars(commitments).items()},
        "claim": to_hex(commitments.claim),
        "beacon_tip": to_hex(beacon_tip),
        "unit": to_hex(receipt.unit),
        "output": to_hex(receipt.output),
        "digest": to_hex(receipt.digest(domain)),
    }


def build_announcement() -> Any:
    """Announcements of a node and a coordinator, with the hash of their canonical JSON, digest and signature."""
    cases = []
    for role, stage, capacity, count in ((Role.NODE, 3, 12_345, 2), (Role.COORDINATOR, None, None, 0)):
        identity = NodeIdentity(sha256(role.value.encode()).digest())
        announcement = Announcement(
            role=role,
            chain_id=1337,
            registry="0x" + sha256(b"registry").hexdigest()[:40],
            model_id=sha256(b"model").digest(),
            stage=stage,
            address="node.example:7701",
            certificate=sha256(b"certificate").digest(),
            capacity=capacity,
            peer_addresses=tuple(f"/ip4/192.0.2.{n}/tcp/4001/p2p/{identity.peer_id}" for n in range(count)),
            sequence=1_800_000_000_123,
            issued_at_s=1_800_000_000,
            ttl_s=60,
        )
        value = announcement.to_json()
        cases.append(
            {
                "announcement": value,
                "content": to_hex(content_hash(value)),
                "digest": to_hex(announcement.digest()),
                "signer": identity.address,
                "signature": to_hex(identity.sign_digest(announcement.digest())),
            }
        )
    return {"type": ANNOUNCEMENT_TYPE.decode(), "cases": cases}


def build_receipt() -> Any:
    """Signed receipts; those of one signer, domain, model, stage and unit with different outputs prove equivocation."""
    signers = [NodeIdentity(keccak(b"signer %d" % i)) for i in range(2)]
    model_id = keccak(b"model")
    first, second = (tiny_receipt(model_id, 1, tiny_reports(3)[stage], keccak(b"tip")) for stage in (0, 1))
    other_output = keccak(b"another output")
    cases = [
        ("honest", DOMAINS[0], first, signers[0]),
        ("another output", DOMAINS[0], replace(first, output=other_output), signers[0]),
        ("another output by another signer", DOMAINS[0], replace(first, output=other_output), signers[1]),
        ("another unit", DOMAINS[0], replace(first, unit=keccak(b"another unit"), output=other_output), signers[0]),
        ("another stage", DOMAINS[0], replace(first, stage=1, output=other_output), signers[0]),
        ("another model", DOMAINS[0], replace(first, model_id=keccak(b"another"), output=other_output), signers[0]),
        ("another chain", DOMAINS[1], replace(first, output=other_output), signers[0]),
        ("another settlement", DOMAINS[2], replace(first, output=other_output), signers[0]),
        ("another report", DOMAINS[0], second, signers[1]),
        ("zeros", DOMAINS[0], Receipt(bytes(32), 0, bytes(32), bytes(32)), signers[0]),
        ("ones", DOMAINS[2], Receipt(b"\xff" * 32, 2**32 - 1, b"\xff" * 32, b"\xff" * 32), signers[1]),
    ]
    return {"type": RECEIPT_TYPE.decode(), "cases": [_receipt_case(*case) for case in cases]}


def _receipt_case(name: str, domain: Domain, receipt: Receipt, signer: NodeIdentity) -> Any:
    digest = receipt.digest(domain)
    return {
        "name": name,
        "chain_id": domain.chain_id,
        "settlement": domain.settlement,
        "model_id": to_hex(receipt.model_id),
        "stage": receipt.stage,
        "unit": to_hex(receipt.unit),
        "output": to_hex(receipt.output),
        "digest": to_hex(digest),
        "signer": signer.address,
        "signature": to_hex(signer.sign_digest(digest)),
    }


def build_beacon() -> Any:
    """Chains from their seeds; what a round's receipts come to; and what both make of it."""
    chains = [(mark("seed", count), count) for count in (1, 2, 3, 10)] + [(bytes(32), 2), (b"\xff" * 32, 2)]
    rounds = []
    for count in (1, 2, 3, 8):
        outputs, value = [[mark("output", count, stage)] for stage in range(count)], mark("value", count)
        divided = [
            [*own, *(mark("output", count, stage, n) for n in range(stage % 3))] for stage, own in enumerate(outputs)
        ]
        cases = ((outputs, 0), (outputs[::-1], count), (divided, 0))
        rounds += [_beacon_case(value, 5, given, answers) for given, answers in cases]
    return {
        "chains": [
            {
                "seed": to_hex(seed),
                "rounds": count,
                "tip_and_values": [to_hex(value) for value in hash_chain(seed, count)],
            }
            for seed, count in chains
        ],
        "rounds": rounds,
    }


def _beacon_case(value: bytes, number: int, outputs: Sequence[Sequence[bytes]], answers: int) -> Any:
    seed = mark("seed", value.hex())
    salts = [
        [seal_salt(seed, number, stage, replica) for replica in range(len(of_stage))]
        for stage, of_stage in enumerate(outputs)
    ]
    commitments = [
        [blinded(output, salt) for output, salt in zip(*of_stage, strict=True)]
        for of_stage in zip(outputs, salts, strict=True)
    ]
    leaves = [mark("answer", value.hex(), index) for index in range(answers)]
    root = round_root(commitments)
    return {
        "value": to_hex(value),
        "seed": to_hex(seed),
        "round": number,
        "outputs": [list(map(to_hex, of_stage)) for of_stage in outputs],
        "salts": [list(map(to_hex, of_stage)) for of_stage in salts],
        "commitments": [list(map(to_hex, of_stage)) for of_stage in commitments],
        "round_root": to_hex(root),
        "beacon": to_hex(round_beacon(value, root)),
        "answer_leaves": [to_hex(leaf) for leaf in leaves],
        "answers_root": to_hex(answers_root(leaves)),
    }


def build_answer() -> Any:
    """What providers and gateways sign about answers, and the leaves of answers in their round's tree."""
    model_id, cases = keccak(b"model"), []
    for stages, version, temperature, seed in ((1, 8, 0.0, 0), (3, 8, 0.7, 2**64 - 1), (3, 2**40, 1e-3, 7)):
        session, prompt, fed = mark("session", stages, version)[:16], stages + 1, 2 * stages + 1
        parts = honest_answer(stages, version, session, prompt, fed, temperature=temperature, seed=seed)
        served = served_receipt(model_id, version, session, prompt, fed + 1 - prompt)
        cases.append(
            {
                "model_id": to_hex(model_id),
                "version": str(version),
                "session": to_hex(session),
                "nonce": to_hex(parts[0].nonce),
                "prompt_tokens": prompt,
                "fed": fed,
                "temperature_bits": to_hex(struct.pack(">d", temperature)),
                "seed": str(seed),
                "ids": to_hex(parts[0].ids),
                "parts": [
                    {
                        "taken": to_hex(each.taken),
                        "passed": to_hex(each.passed),
                        "trace": to_hex(each.trace),
                        "unit": to_hex(receipt.unit),
                        "digest": to_hex(receipt.digest(DOMAINS[0])),
                    }
                    for stage, each in enumerate(parts)
                    for receipt in (answer_receipt(model_id, stage, version, session, prompt, fed, each.trace),)
                ],
                "completion_tokens": fed + 1 - prompt,
                "served_unit": to_hex(served.unit),
                "served_digest": to_hex(served.digest(DOMAINS[0])),
                "leaves": [
                    to_hex(answer_leaf(index, version, session, prompt, fed, [each.trace for each in parts]))
                    for index in (0, 1, 300)
                ],
            }
        )
    sessions = [
        {
            "nonce": to_hex(nonce),
            "prompt": list(prompt),
            "temperature_bits": to_hex(struct.pack(">d", temperature)),
            "seed": str(seed),
            "session": to_hex(session_id(nonce, pack_ids(prompt), temperature, seed)),
        }
        for prompt in ((0,), (1, 258, 2**32 - 1))
        for temperature, seed in ((0.0, 0), (0.7, 2**64 - 1))
        for nonce in (mark("nonce", len(prompt), seed)[:NONCE_BYTES],)
    ]
    return {"cases": cases, "sessions": sessions}


def build_audits() -> Any:
    """What beacons draw, and which rounds are paid."""
    names = ("tiny", "one-stage", "llama-8b", "whole-rounds-audited", "microbatches-audited", "answers-audited")
    draws = [
        {
            "spec": name,
            "round": number,
            "beacon": to_hex(beacon),
            "loads": [
                [to_hex(pack_load(load, SPECS[name].training.microbatches_per_round)) for load in of_stage]
                for of_stage in loads
            ],
            "answers": answers,
            "answers_root": to_hex(root),
            "audits": [_audit_fields(audit) for audit in drawn],
        }
        for name in (*names, "unaudited")
        for number, beacon, count in (
            (0, bytes(32), 0),
            *((number, mark("beacon", name, number), number % 5) for number in (0, 5, 6, 7, 2**40)),
        )
        for loads in (_draw_loads(SPECS[name], number),)
        for answers in ([[index % len(of_stage) for of_stage in loads] for index in range(count)],)
        for root in (mark("answers", name, number) if answers else NO_ANSWERS,)
        for drawn in (draw_audits(SPECS[name], number, beacon, loads, answers, root),)
    ]
    assert {audit["replica"] for draw in draws for audit in draw["audits"]} == {0, 1, 2}
    kinds = {(draw["spec"], audit["kind"]) for draw in draws for audit in draw["audits"]}
    assert {kind for name, kind in kinds if name == "tiny"} == {kind.value for kind in Kind}
    return {
        "draws": draws,
        "paid": [
            *(_paid_case(name, verdicts) for name, verdicts in PAID_CASES.items()),
            *(_paid_case(name, *case) for name, case in OUTSTANDING_CASES.items()),
        ],
    }


def _draw_loads(spec: ModelSpec, number: int) -> Loads:
    """In odd rounds stages have up to three replicas."""
    count = spec.training.microbatches_per_round
    return [share(count, 1 + (number + stage) % 3 if number % 2 else 1, number) for stage in range(spec.stages)]


PANEL_UNITS = (
    Audit(3, 0, Kind.ROUND),
    Audit(3, 1, Kind.MICROBATCH, 0),
    Audit(3, 2, Kind.LOSS, 2),
    Audit(3, 2, Kind.ROUND, None, 1),
    Audit(2**40, 0, Kind.DATA, 2),
    Audit(3, 1, Kind.ANSWER, 7),
)


def build_panel() -> Any:
    """Who audits, which orders are known bad and how, what auditors sign, and what opinions come to."""
    spec, model_id, evidence = SPECS["tiny"], keccak(b"model"), mark("evidence")
    owners = [address(f"owner {number}") for number in range(4)]
    rankings = [
        {
            **_audit_fields(audit),
            "beacon": to_hex(beacon),
            "owners": owners[:count],
            "ranking": list(rank_auditors(beacon, audit, owners[:count])),
        }
        for audit in PANEL_UNITS
        for count in (0, 1, 4)
        for beacon in (mark("beacon", audit.order, count),)
    ]
    known_bad = [
        {
            **_audit_fields(audit),
            "seed": to_hex(seed),
            "load": list(report.load),
            "is_known_bad": is_known_bad(spec, seed, audit, report.load),
            "claim": to_hex(report.commitments(TINY_MICROBATCHES).claim),
            "false_claim": to_hex(false.commitments(TINY_MICROBATCHES).claim),
        }
        for audit in PANEL_UNITS[:3]
        for seed in (mark("seed", number) for number in range(8))
        for report in known_bad_reports(audit)
        for false in (known_bad_report(audit, report, seed, is_last=audit.stage == spec.stages - 1),)
    ]
    assert {case["is_known_bad"] for case in known_bad} == {False, True}
    opinions = [
        {
            "model_id": to_hex(model_id),
            **_audit_fields(audit),
            "claim": to_hex(claim),
            "verdict": verdict.value,
            "evidence": to_hex(shown),
            "unit": to_hex(receipt.unit),
            "digest": to_hex(receipt.digest(DOMAINS[0])),
        }
        for audit in PANEL_UNITS
        for verdict in Verdict
        for claim, shown in ((mark("claim", audit.order), evidence if verdict is Verdict.FAILED else NO_EVIDENCE),)
        for receipt in (opinion_receipt(model_id, audit, claim, verdict, shown),)
    ]
    operators = mark("operator 0") + mark("operator 1")
    recording = recording_receipt(model_id, PANEL_UNITS[1], mark("claim"), operators)
    referee, seated = None, owners[0]
    settled = [
        {
            "opinions": [[owner, verdict.value] for owner, verdict in said],
            "verdict": decided and decided.value,
        }
        for said in (
            [],
            *([(owner, verdict)] for owner in (referee, seated) for verdict in Verdict),
            *([(seated, one), (owners[1], two)] for one in Verdict for two in Verdict if one is not PASSED),
            [(seated, FAILED), (referee, PASSED)],
            [(seated, FAILED), (owners[1], PASSED), (referee, WITHHELD)],
        )
        for decided in (settled_verdict(said),)
    ]
    return {
        "spec": "tiny",
        "rankings": rankings,
        "known_bad": known_bad,
        "opinions": opinions,
        "recording": {
            "model_id": to_hex(model_id),
            **_audit_fields(PANEL_UNITS[1]),
            "claim": to_hex(mark("claim")),
            "operators": to_hex(operators),
            "unit": to_hex(recording.unit),
        },
        "settled": settled,
    }


def known_bad_reports(audit: Audit) -> tuple[Report, ...]:
    """What the first replica may have reported of the unit: the whole round, or a part."""
    return tuple(tiny_reports(audit.round, replicas)[audit.stage * replicas] for replicas in (1, 2))


def _audit_fields(audit: Audit) -> Any:
    return {
        "round": audit.round,
        "stage": audit.stage,
        "replica": audit.replica,
        "kind": audit.kind.value,
        "microbatch": audit.microbatch,
    }


def _verdict_fields(verdicts: dict[Audit, Verdict]) -> Any:
    return [{**_audit_fields(audit), "verdict": verdict.value} for audit, verdict in verdicts.items()]


def _whole(*verdicts: tuple[int, Verdict]) -> dict[Audit, Verdict]:
    """Of whole rounds of stage 1."""
    return {Audit(number, 1, Kind.ROUND): verdict for number, verdict in verdicts}


PASSED, FAILED, WITHHELD, UNDECIDED = Verdict
PAID_CASES: dict[str, dict[Audit, Verdict]] = {
    "nothing was drawn": {},
    "fraud": {**_whole((8, PASSED)), Audit(15, 1, Kind.MICROBATCH, 1): FAILED},
    "nothing passed": _whole((11, WITHHELD)),
    "from one that passed to the next": _whole((8, PASSED), (9, PASSED), (12, WITHHELD), (14, PASSED), (15, PASSED)),
    "from the first round": _whole((10, WITHHELD), (11, PASSED)),
    "to the last round": _whole((9, PASSED), (10, WITHHELD)),
    "two in one span": _whole((9, PASSED), (11, WITHHELD), (13, WITHHELD), (15, PASSED)),
    "two spans": _whole((9, WITHHELD), (11, PASSED), (13, WITHHELD)),
    "undecided": _whole((9, PASSED), (11, WITHHELD), (12, UNDECIDED), (14, PASSED)),
    "undecided alone": _whole((8, UNDECIDED), (12, UNDECIDED)),
    "a microbatch looks at less than a round": {
        **_whole((8, PASSED), (12, WITHHELD)),
        Audit(11, 1, Kind.MICROBATCH, 0): PASSED,
        Audit(13, 1, Kind.MICROBATCH, 2): PASSED,
    },
    "a round looks at its microbatches": {**_whole((10, PASSED), (13, PASSED)), Audit(12, 1, Kind.LOSS, 0): WITHHELD},
    "tokens are the least": {
        Audit(9, 0, Kind.DATA, 0): PASSED,
        Audit(10, 0, Kind.MICROBATCH, 0): WITHHELD,
        Audit(11, 0, Kind.DATA, 0): PASSED,
        Audit(13, 0, Kind.MICROBATCH, 0): PASSED,
        Audit(14, 0, Kind.DATA, 0): WITHHELD,
        Audit(15, 0, Kind.DATA, 1): PASSED,
    },
    "the same round clears nothing": {
        Audit(10, 0, Kind.DATA, 0): PASSED,
        Audit(12, 0, Kind.DATA, 0): PASSED,
        Audit(12, 0, Kind.DATA, 1): WITHHELD,
        Audit(14, 0, Kind.DATA, 0): PASSED,
    },
    "an answer": {Audit(9, 1, Kind.ANSWER, 0): PASSED, Audit(12, 1, Kind.ANSWER, 3): WITHHELD},
    "a round doesn't look at answers": {**_whole((10, PASSED), (13, PASSED)), Audit(12, 1, Kind.ANSWER, 0): WITHHELD},
}
"""Of rounds 8 to 15: what one provider's audits in one stage came to."""


OUTSTANDING_CASES: dict[str, tuple[dict[Audit, Verdict], tuple[Kind, ...]]] = {
    "outstanding, and nothing was drawn": ({}, (Kind.ROUND,)),
    "outstanding, until one passes": (_whole((11, PASSED), (13, PASSED)), (Kind.ROUND,)),
    "outstanding, and passed in the first round": (_whole((8, PASSED)), (Kind.ROUND,)),
    "outstanding, undecided and withheld again": (
        _whole((9, UNDECIDED), (11, WITHHELD), (13, PASSED), (15, WITHHELD)),
        (Kind.ROUND,),
    ),
    "a microbatch looks at less than an outstanding round": (
        {Audit(10, 1, Kind.MICROBATCH, 0): PASSED},
        (Kind.MICROBATCH, Kind.ROUND),
    ),
    "a round looks at outstanding microbatches": (_whole((12, PASSED)), (Kind.MICROBATCH, Kind.ROUND)),
    "tokens outstanding": ({**_whole((9, PASSED)), Audit(10, 1, Kind.DATA, 0): PASSED}, (Kind.DATA,)),
    "an answer outstanding": ({**_whole((9, PASSED)), Audit(10, 1, Kind.ANSWER, 0): PASSED}, (Kind.ANSWER,)),
    "outstanding, and fraud": (_whole((8, PASSED), (9, FAILED)), (Kind.ROUND,)),
}
"""The same, with the kinds that are outstanding from earlier epochs."""


def _paid_case(name: str, verdicts: dict[Audit, Verdict], outstanding: Sequence[Kind] = ()) -> Any:
    numbers = range(8, 16)
    return {
        "name": name,
        "rounds": [*numbers],
        "outstanding": [kind.value for kind in outstanding],
        "verdicts": _verdict_fields(verdicts),
        "paid": sorted(paid_rounds(numbers, verdicts, outstanding)),
        "left_outstanding": sorted(kind.value for kind in left_outstanding(verdicts, outstanding)),
    }


AUDITOR, GATEWAY = (NodeIdentity(keccak(name)) for name in (b"auditor", b"gateway"))
SEATED = [NodeIdentity(keccak(f"auditor {number}".encode())) for number in range(3)]
SEATS = [AuditorSeat(stage=stage, owner=key.address) for stage in range(3) for key in SEATED]
VERDICTS = {
    Audit(2, 0, Kind.ROUND): UNDECIDED,
    Audit(2, 1, Kind.MICROBATCH, 0): WITHHELD,
    Audit(6, 1, Kind.MICROBATCH, 1): WITHHELD,
    Audit(7, 0, Kind.DATA, 0): WITHHELD,
    Audit(7, 2, Kind.LOSS, 1): WITHHELD,
    Audit(8, 0, Kind.DATA, 0): UNDECIDED,
    Audit(11, 0, Kind.ANSWER, 1): WITHHELD,
    Audit(12, 2, Kind.ROUND): FAILED,
    Audit(13, 0, Kind.ANSWER, 0): UNDECIDED,
    Audit(13, 1, Kind.ANSWER, 0): UNDECIDED,
    Audit(14, 0, Kind.ANSWER, 1): WITHHELD,
    Audit(14, 1, Kind.ANSWER, 1): WITHHELD,
    Audit(16, 0, Kind.ANSWER, 0): UNDECIDED,
    Audit(17, 2, Kind.LOSS, 1): UNDECIDED,
    Audit(19, 1, Kind.ANSWER, 0): FAILED,
    Audit(25, 2, Kind.ROUND, None, 2): FAILED,
    Audit(26, 1, Kind.ANSWER, 1, 1): WITHHELD,
    Audit(27, 1, Kind.MICROBATCH, 0, 1): WITHHELD,
    Audit(28, 1, Kind.MICROBATCH, 2, 0): WITHHELD,
}
"""In the statements' epochs; the other audits pass."""
STATEMENT_NODES = (((0,), (1,), (2,)), ((0,), (2,), (2,)), ((0,), (3,), (2,)), ((0,), (4, 5), (2, 6, 7)))
"""Who reports in each epoch, by stage."""


def build_statement() -> Any:
    """The statements of four epochs: a provider comes, another goes; in the second one cheats; in the last, stages have
    several replicas.

    An audit is outstanding in each stage after the first: two providers pass another, that of stage 1 is gone.
    In the first no version is published, and nothing served; in the second answers' traces are withheld, and in the
    third a cheat is convicted by an answer.
    """
    before, statements = Carried(), []
    for epoch in range(4):
        statements.append(_epoch_statement(SPECS["long-epoch"], epoch, before))
        before = statements[-1].carried()
    drawn = {line.audit for statement in statements for line in statement.audits}
    assert VERDICTS.keys() <= drawn, "another draw: choose other audits that don't pass"
    return {
        "spec": "long-epoch",
        "epochs": [{"statement": each.model_dump(mode="json"), "hash": to_hex(each.hash)} for each in statements],
    }


def _epoch_statement(spec: ModelSpec, epoch: int, before: Carried) -> Statement:
    model_id = keccak(b"model")
    first = epoch * spec.economics.rounds_per_epoch
    domain = DOMAINS[0]

    def sign(key: NodeIdentity, receipt: Receipt) -> bytes:
        return key.sign_digest(receipt.digest(domain))

    def credited(number: int) -> list[CreditedReport]:
        nodes = [sorted(address(f"node {node}") for node in STATEMENT_NODES[epoch][stage]) for stage in range(3)]
        loads = [share(TINY_MICROBATCHES, len(of_stage), number) for of_stage in nodes]
        names = [node for of_stage in nodes for node in of_stage]
        return [
            credit_report(
                spec,
                report,
                node=node,
                owner=address(f"owner {(report.stage + epoch) % 4}"),
                account=address(f"owner {(report.stage + epoch) % 4}"),
                generation=number // 2 + 1,
                signature=mark("signature", number, report.stage) * 2 + b"\x1b",
            )
            for node, report in zip(names, honest_reports(3, TINY_MICROBATCHES, number, loads), strict=True)
        ]

    def answers(number: int) -> Iterator[AnswerLine]:
        for index in range(number % 3 if epoch else 0):
            session, fed = mark("session", number, index)[:16], min(3 + (number + index) % 16, 16)
            signature = mark("signature", session.hex()) * 2 + b"\x1b"
            yield answer_line(
                model_id,
                honest_answer(spec.stages, first, session, 2, fed),
                completion_tokens=1 + index,
                gateway=GATEWAY.address,
                served=partial(sign, GATEWAY),
                signs=[lambda _, signature=signature: signature] * spec.stages,
                replicas=[index % len(nodes) for nodes in STATEMENT_NODES[epoch]],
            )

    numbers = range(first, first + spec.economics.rounds_per_epoch)
    rounds = [seal(spec, number, credited(number), answers(number)) for number in numbers]
    return make_statement(
        spec,
        chain_id=domain.chain_id,
        settlement=domain.settlement,
        model_id=model_id,
        epoch=epoch,
        beacon_seed=mark("seed", epoch),
        auditors=SEATS,
        rounds=rounds,
        audits=judged(
            spec,
            rounds,
            model_id,
            auditor=AUDITOR.address,
            sign=partial(sign, AUDITOR),
            verdict=lambda audit: VERDICTS.get(audit, Verdict.PASSED),
            auditors=SEATS,
            seated={key.address: partial(sign, key) for key in SEATED},
            says=lambda audit, owner, bad: Verdict.PASSED if bad and owner == SEATED[-1].address else None,
            before=before,
        ),
        operator_earned=(10**7 + 1, 10**7 + 8, 3 * 10**7 + 5, 5 * 10**7)[epoch],
        before=before,
        accumulator_before=(0, 3**80, 3**90, 3**91)[epoch],
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "merkle": build_merkle,
    "emission": build_emission,
    "accounting": build_accounting,
    "load": build_load,
    "spec": build_spec_vectors,
    "sampling": build_sampling,
    "shares": build_shares,
    "announcement": build_announcement,
    "receipt": build_receipt,
    "report": build_report,
    "beacon": build_beacon,
    "answer": build_answer,
    "audits": build_audits,
    "panel": build_panel,
    "statement": build_statement,
}


def build_text(name: str) -> str:
    """The text of the vector file `name`.json."""
    return json.dumps(BUILDERS[name](), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    stale = []
    for name in BUILDERS:
        path, text = VECTORS / f"{name}.json", build_text(name)
        if check:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        print(f"not what the rules say: {', '.join(stale)}. If the rule was meant to change, run {parser.prog}.")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""Successive epochs of a model, and their statements."""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_utils.address import to_checksum_address
from hypothesis import settings
from hypothesis import strategies as st

from commonweight.rules.answer import SESSION_BYTES
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import credit_report, make_statement
from commonweight.rules.load import Load
from commonweight.rules.receipt import Receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import (
    AnswerLine,
    AuditorSeat,
    Carried,
    CreditedReport,
    EquivocationLine,
    SealedRound,
    Statement,
)
from tests.property.strategies import divisions, specs
from tools.build_vectors import answer_line, honest_answer, honest_reports, judged, mark, seal

OWNERS = tuple(to_checksum_address(mark("owner", i)[:20]) for i in range(4))
NODES = tuple(to_checksum_address(mark("node", i)[:20]) for i in range(4))
owners = st.sampled_from(OWNERS)
MODEL_ID = mark("model")
AUDITORS = tuple(to_checksum_address(mark("auditor", i)[:20]) for i in range(3))
FEWER = settings(max_examples=settings().max_examples // 2)
"""Half as many as elsewhere: drawing a history takes milliseconds."""


@dataclass(frozen=True)
class Epoch:
    """A statement and what it was made from."""

    spec: ModelSpec
    statement: Statement
    before: Carried
    operator_earned: int

    @property
    def first(self) -> int:
        """The number of its first round."""
        return self.statement.rounds[0].round

    def check(self, statement: Statement) -> None:
        check_statement(self.spec, statement, self.before)

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(canonical_json(self.statement.model_dump()))


@st.composite
def answers(
    draw: st.DrawFn, spec: ModelSpec, round_: int, crews: Sequence[Collection[str]] | None = None
) -> tuple[AnswerLine, ...]:
    """Those that are sealed with a round, by any version that there is, and any replica of each stage in `crews`."""
    per_epoch = spec.economics.rounds_per_epoch
    versions = st.integers(1, round_ // per_epoch).map(lambda number: number * per_epoch)
    lines = []
    for index in range(draw(st.integers(0, 2)) if round_ >= per_epoch else 0):
        fed = draw(st.integers(1, spec.training.sequence_length))
        prompt = draw(st.integers(1, fed))
        completion = draw(st.integers(1, fed + 1 - prompt))
        replicas = [draw(st.integers(0, len(crew) - 1)) for crew in crews or [NODES[:1]] * spec.stages]
        lines.append(answered(spec, round_, index, draw(versions), fed, prompt, completion, replicas))
    return tuple(lines)


def answered(
    spec: ModelSpec,
    round_: int,
    index: int,
    version: int,
    fed: int,
    prompt: int,
    completion: int,
    replicas: Sequence[int] | None = None,
) -> AnswerLine:
    """The line of an answer that all stages have signed."""
    return answer_line(
        MODEL_ID,
        honest_answer(spec.stages, version, mark("session", round_, index)[:SESSION_BYTES], prompt, fed),
        completion_tokens=completion,
        gateway=OWNERS[1],
        served=sign,
        signs=[sign] * spec.stages,
        replicas=replicas,
    )


Workers = Callable[[int, int], str]
"""The node of a round and a stage."""


def sealed_rounds(
    spec: ModelSpec,
    epoch: int,
    *,
    node: Workers = lambda _, stage: NODES[stage],
    crew: Callable[[int, int], Mapping[str, Load]] | None = None,
    account: Callable[[int, int, str], str] = lambda _, stage, __: OWNERS[stage],
    generation: Callable[[int], int] = lambda _: 1,
    answers: Callable[[int], Sequence[AnswerLine]] = lambda _: (),
) -> list[SealedRound]:
    """An epoch's rounds, by honest nodes: of each stage the `crew` with its loads, or `node` alone."""
    first, count = epoch * spec.economics.rounds_per_epoch, spec.training.microbatches_per_round

    def credit(number: int) -> Iterator[CreditedReport]:
        crews = [
            crew(number, stage) if crew else {node(number, stage): tuple(range(count))} for stage in range(spec.stages)
        ]
        loads = [[loads[name] for name in sorted(loads)] for loads in crews]
        names = [name for of_stage in crews for name in sorted(of_stage)]
        for name, report in zip(names, honest_reports(spec.stages, count, number, loads), strict=True):
            yield credit_report(
                spec,
                report,
                node=name,
                owner=name,
                account=account(number, report.stage, name),
                generation=generation(number),
                signature=mark("signature", number) * 2 + b"\x1b",
            )

    numbers = range(first, first + spec.economics.rounds_per_epoch)
    return [seal(spec, number, credit(number), answers(number)) for number in numbers]


def sign(receipt: Receipt) -> bytes:
    """Stands for a signature; says what was signed."""
    return receipt.unit + receipt.output + b"\x1b"


def make_epoch(
    spec: ModelSpec,
    epoch: int,
    before: Carried,
    rounds: Sequence[SealedRound],
    *,
    verdict: Callable[[Audit], Verdict],
    operator_earned: int = 0,
    accumulator_before: int = 0,
    auditors: Sequence[AuditorSeat] = (),
    seated: Collection[str] = AUDITORS,
    says: Callable[[Audit, str, bool], Verdict | None] = lambda *_: None,
    equivocations: Sequence[EquivocationLine] = (),
) -> Epoch:
    """With the audits that the beacons draw. Of `auditors`, those in `seated` answer; see `judged`."""
    audits = judged(
        spec,
        rounds,
        MODEL_ID,
        auditor=OWNERS[0],
        sign=sign,
        verdict=verdict,
        auditors=auditors,
        seated=dict.fromkeys(seated, sign),
        says=says,
        before=before,
    )
    statement = make_statement(
        spec,
        chain_id=31337,
        settlement=OWNERS[0],
        model_id=MODEL_ID,
        epoch=epoch,
        beacon_seed=mark("seed", epoch),
        auditors=auditors,
        rounds=rounds,
        audits=audits,
        equivocations=equivocations,
        operator_earned=operator_earned,
        before=before,
        accumulator_before=accumulator_before,
    )
    return Epoch(spec, statement, before, operator_earned)


@st.composite
def verdicts(draw: st.DrawFn) -> Callable[[Audit], Verdict]:
    """Most audits pass, or most are withheld; the others come out otherwise."""
    usual = draw(st.sampled_from([Verdict.PASSED] * 3 + [Verdict.WITHHELD]))
    others = draw(st.dictionaries(st.integers(0, 9), st.sampled_from(Verdict), max_size=4))
    return lambda audit: others.get(sum(audit.order) % 10, usual)


@st.composite
def panels(draw: st.DrawFn, stages: int) -> dict[str, Any]:
    """Who has seats in an epoch, who of them answers, and what those say who don't tell the truth."""
    seats = st.builds(AuditorSeat, stage=st.integers(0, stages - 1), owner=st.sampled_from((*AUDITORS, *NODES)))
    lies = draw(st.dictionaries(st.integers(0, 9), st.sampled_from(Verdict), max_size=4))
    return {
        "auditors": tuple(draw(st.sets(seats, max_size=8))),
        "seated": draw(st.sets(st.sampled_from(AUDITORS))),
        "says": lambda audit, owner, bad: lies.get((sum(audit.order) + int(owner[2:], 16) + bad) % 10),
    }


@st.composite
def equivocations(draw: st.DrawFn, stages: int) -> list[EquivocationLine]:
    """Nodes that have signed two results."""
    return [
        EquivocationLine(
            stage=stage,
            node=node,
            unit="0x" + mark("unit", stage).hex(),
            outputs=("0x" + mark("one").hex(), "0x" + mark("other").hex()),
            signatures=("0x" + "1b" * 65, "0x" + "1c" * 65),
        )
        for stage, node in draw(st.sets(st.tuples(st.integers(0, stages - 1), st.sampled_from(NODES)), max_size=1))
    ]


@st.composite
def histories(draw: st.DrawFn, max_epochs: int = 3) -> list[Epoch]:
    """Successive epochs of a model whose stages change hands, have one replica or more, trained, audited and served."""
    spec = draw(specs(max_layers=4))
    before = Carried()
    accumulator, earned, generation, history = 0, 0, 1, []
    for epoch in range(draw(st.integers(1, max_epochs))):
        accounts: dict[tuple[int, int, str], str] = {}
        crews: dict[tuple[int, int], dict[str, Load]] = {}
        generations: dict[int, int] = {}
        first = epoch * spec.economics.rounds_per_epoch
        for number in range(first, first + spec.economics.rounds_per_epoch):
            generation += draw(st.integers(0, 2))
            generations[number] = generation
            shift = draw(st.integers(0, 1))
            for stage in range(spec.stages):
                loads = draw(divisions(spec.training.microbatches_per_round))
                names = [NODES[(stage + shift + each) % len(NODES)] for each in range(len(loads))]
                crews[number, stage] = dict(zip(names, loads, strict=True))
                accounts |= {(number, stage, name): draw(owners) for name in names}
        rounds = sealed_rounds(
            spec,
            epoch,
            crew=lambda *place, crews=crews: crews[place],
            account=lambda *place, accounts=accounts: accounts[place],
            generation=generations.__getitem__,
            answers=lambda number, crews=crews: draw(
                answers(spec, number, [crews[number, stage] for stage in range(spec.stages)])
            ),
        )
        earned += draw(st.integers(0, 100) | st.integers(0, 2**96))
        made = make_epoch(
            spec,
            epoch,
            before,
            rounds,
            verdict=draw(verdicts()),
            operator_earned=earned,
            accumulator_before=accumulator,
            equivocations=draw(st.just([]) | equivocations(spec.stages)),
            **draw(panels(spec.stages)),
        )
        history.append(made)
        before = made.statement.carried()
        accumulator += draw(st.integers(0, 2**140))
    return history


def altered(fields: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    fields = copy.deepcopy(fields)
    part: Any = fields
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return fields


def remake(epoch: Epoch, **changes: Any) -> Statement:
    """The statement made again, from something else."""
    statement = epoch.statement
    made_from: dict[str, Any] = {
        "chain_id": statement.chain_id,
        "settlement": statement.settlement,
        "model_id": MODEL_ID,
        "epoch": statement.epoch,
        "beacon_seed": bytes.fromhex(statement.beacon_seed[2:]),
        "auditors": statement.auditors,
        "rounds": statement.rounds,
        "audits": statement.audits,
        "equivocations": statement.equivocations,
        "operator_earned": epoch.operator_earned,
        "before": epoch.before,
        "accumulator_before": int(statement.accumulator_before),
    }
    return make_statement(epoch.spec, **(made_from | changes))


def build(fields: dict[str, Any]) -> Statement:
    return Statement.model_validate_json(canonical_json(fields))

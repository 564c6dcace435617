"""A registered model on a local chain whose epochs are made up here, honest or forged, and signed by real keys."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.child import Ready
from commonweight.chain.events import EpochChallenged
from commonweight.chain.local import LocalChain
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import TestUSD
from commonweight.devnet.accounts import Account, devnet_accounts, node_stages
from commonweight.devnet.deployment import deploy_contracts, hand_out_money, register_model
from commonweight.http import serving_http
from commonweight.rules.answer import SESSION_BYTES
from commonweight.rules.audits import NO_EVIDENCE, Audit, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import audit_line, credit_report, make_opinion, make_statement
from commonweight.rules.panel import opinion_receipt
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import report_receipt
from commonweight.rules.spec import build_spec
from commonweight.rules.statement import (
    AnswerLine,
    AuditLine,
    AuditorSeat,
    Carried,
    EquivocationLine,
    SealedRound,
    Statement,
    to_hex,
)
from commonweight.watch.store import StatementStore
from commonweight.watch.watcher import Watcher
from tests.integration.network import tiny_spec
from tools.build_vectors import answer_line, beacon_chain, honest_answer, honest_reports, judged, mark, seal

WINDOW_S = 60


class Server:
    """An ASGI application over HTTP from a thread of its own."""

    def __init__(self, app: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._address: Future[str] = Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(app),))
        self._thread.start()
        self.address = self._address.result(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)
        self._loop.close()

    async def _serve(self, app: Any) -> None:
        async with serving_http(app, "127.0.0.1:0") as address:
            self._address.set_result(address)
            await self._ended.wait()


class Epochs:
    """On entry the chain stands and the model is registered: two stages, held by node-0 and node-1."""

    def __init__(self, folder: Path, rates: Mapping[str, str] | None = None, **terms: Any) -> None:
        """`rates` are those of the spec's audits; none is drawn without."""
        self.folder = folder
        self.rates = rates or {}
        self.terms = {"window_s": WINDOW_S, "seat_stake": 0, "seat_cooldown_s": 10**5} | terms
        self.published = StatementStore(folder / "published")
        """Where `propose` publishes; it is served over HTTP."""

    def __enter__(self) -> "Epochs":
        self._server = Server(self.published.app())
        fields = tiny_spec("0x" + "11" * 32, 10**4).model_dump()
        self.spec = build_spec(fields | {"verification": fields["verification"] | self.rates})
        self.spec_file = self.folder / "spec.json"
        self.spec_file.write_bytes(canonical_json(self.spec.model_dump()))
        self.accounts: dict[str, Account] = devnet_accounts(node_stages(2), 1)
        self.local = LocalChain.start("embedded", accounts=16)
        ready = Ready("embedded", self.local.rpc_url, self.local.port, self.local.chain_id, self.local.pid)
        contracts = deploy_contracts(ready.rpc_url, ready.chain_id, self.accounts)
        self.deployment = register_model(ready, contracts, self.spec, self.spec_file, self.accounts, **self.terms)
        hand_out_money(self.deployment, self.accounts)
        self.chain = Chain.connect(self.local.rpc_url, self.local.chain_id)
        self.model = ModelRegistry(self.chain, contracts.registry).model(bytes.fromhex(self.deployment.model_id[2:]))
        self.settlement = EpochSettlement(self.chain, self.model.settlement, self.sender("coordinator"))
        self.router = RevenueRouter(self.chain, self.model.router, self.sender("gateway"))
        self.usd = TestUSD(self.chain, self.deployment.revenue_token, self.sender("deployer"))
        TestUSD(self.chain, self.deployment.revenue_token, self.sender("coordinator")).approve(
            self.model.settlement, 10**12
        )
        self.settlement.deposit_bond(self.accounts["coordinator"].address, 10 * self.model.terms.proposer_bond)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.local.stop()
        self._server.stop()

    def sender(self, role: str) -> Sender:
        return Sender(self.chain, self.accounts[role].key)

    def address(self, role: str) -> str:
        return self.accounts[role].address

    def signing(self, role: str) -> Callable[[Receipt], bytes]:
        """Signs receipts with the role's key."""
        domain = Domain(self.chain.chain_id, self.model.settlement)
        return lambda receipt: self.accounts[role].key.sign_digest(receipt.digest(domain))

    def statement(
        self,
        epoch: int = 0,
        before: Statement | None = None,
        *,
        paid: Mapping[int, str] | None = None,
        answers: Mapping[int, Sequence[AnswerLine]] | None = None,
        signer: str | None = None,
        verdict: Callable[[Audit], Verdict] = lambda _: Verdict.PASSED,
        auditor: str = "coordinator",
        auditors: Iterable[AuditorSeat] = (),
        seated: Sequence[str] = (),
        says: Callable[[Audit, str, bool], Verdict | None] = lambda *_: None,
        equivocations: Iterable[EquivocationLine] = (),
    ) -> Statement:
        """An honest epoch, with `answers` by round; `paid` replaces the role that is paid for a stage, `signer` the key
        that signs stage 0, `auditor` the one that signs the referee's opinions.

        Of those who hold the seats in `auditors` the roles in `seated` answer, each with its own key; `says` as for
        `judged`.
        """
        auditors, carried = tuple(auditors), before.carried() if before else Carried()
        per_epoch = self.spec.economics.rounds_per_epoch
        tip = beacon_chain(self.spec, epoch)[0]
        rounds = []
        for number in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            lines = []
            reports = honest_reports(self.spec.stages, self.spec.training.microbatches_per_round, number)
            for stage, report in enumerate(reports):
                sign = self.signing(signer if signer and stage == 0 else f"node-{stage}")
                commitments = report.commitments(self.spec.training.microbatches_per_round)
                signature = sign(report_receipt(self.model.model_id, 1, number, stage, commitments, tip))
                account = self.address((paid or {}).get(stage, f"node-{stage}"))
                node = self.address(f"node-{stage}")
                who = {"node": node, "owner": node, "account": account}
                lines.append(credit_report(self.spec, report, **who, generation=1, signature=signature))
            rounds.append(seal(self.spec, number, lines, (answers or {}).get(number, ())))
        audits = judged(
            self.spec,
            rounds,
            self.model.model_id,
            auditor=self.address(auditor),
            sign=self.signing(auditor),
            verdict=verdict,
            auditors=auditors,
            seated={self.address(role): self.signing(role) for role in seated},
            says=says,
            before=carried,
        )
        return self.state(epoch, carried, rounds, audits, auditors, equivocations)

    def answer(
        self,
        name: str,
        *,
        version: int = 3,
        tokens: tuple[int, int] = (4, 5),
        signers: Sequence[str] = ("node-0", "node-1"),
        gateway: str = "gateway",
    ) -> AnswerLine:
        """One that was sold: tokens of prompt and answer. `signers` and `gateway` are the roles whose keys sign."""
        prompt, completion = tokens
        session, fed = mark("session", name)[:SESSION_BYTES], prompt + completion - 1
        return answer_line(
            self.model.model_id,
            honest_answer(self.spec.stages, version, session, prompt, fed),
            completion_tokens=completion,
            gateway=self.address("gateway"),
            served=self.signing(gateway),
            signs=[self.signing(role) for role in signers],
        )

    def state(
        self,
        epoch: int,
        before: Carried,
        rounds: Sequence[SealedRound],
        audits: Sequence[AuditLine],
        auditors: Iterable[AuditorSeat] = (),
        equivocations: Iterable[EquivocationLine] = (),
    ) -> Statement:
        """What follows from these rounds and opinions."""
        previous = self.settlement.epoch(epoch - 1) if epoch else None
        return make_statement(
            self.spec,
            chain_id=self.chain.chain_id,
            settlement=self.model.settlement,
            model_id=self.model.model_id,
            epoch=epoch,
            beacon_seed=mark("seed", epoch),
            auditors=auditors,
            rounds=rounds,
            audits=audits,
            equivocations=equivocations,
            operator_earned=self.router.operator_earned(),
            before=before,
            accumulator_before=previous.accumulator if previous else 0,
        )

    def verdict_line(self, audit: Audit, verdict: Verdict, auditor: str = "coordinator") -> AuditLine:
        """By the auditor as the referee; without evidence."""
        microbatches = self.spec.training.microbatches_per_round
        claim = honest_reports(self.spec.stages, microbatches, audit.round)[audit.stage].commitments(microbatches).claim
        signature = self.signing(auditor)(opinion_receipt(self.model.model_id, audit, claim, verdict, NO_EVIDENCE))
        opinion = make_opinion(claim, verdict, auditor=self.address(auditor), signature=signature)
        return audit_line(audit, verdict, [opinion])

    def equivocation(self, stage: int, role: str) -> EquivocationLine:
        """Two results of one unit, signed by the role's key."""
        unit, outputs, sign = mark("unit", stage, role), (mark("one"), mark("other")), self.signing(role)
        one, other = (to_hex(sign(Receipt(self.model.model_id, stage, unit, output))) for output in outputs)
        said = (to_hex(outputs[0]), to_hex(outputs[1]))
        return EquivocationLine(
            stage=stage, node=self.address(role), unit=to_hex(unit), outputs=said, signatures=(one, other)
        )

    def propose(
        self, statement: Statement, *, publish: bool = True, uri: str | None = None, commit: bool = True
    ) -> None:
        """By the coordinator's key, with the text in the published folder, and the tip of its beacon committed."""
        if commit and self.settlement.beacon_of(statement.epoch, self.settlement.sender.address) is None:
            self.settlement.commit_beacon(statement.epoch, beacon_chain(self.spec, statement.epoch)[0])
        text = canonical_json(statement.model_dump())
        if publish:
            self.published.put(text)
        where = uri or self.uri_of(statement.hash)
        root = bytes.fromhex(statement.root[2:])
        self.settlement.propose_epoch(statement.epoch, root, int(statement.minted), statement.hash, where)

    def uri_of(self, statement_hash: bytes) -> str:
        return f"http://{self._server.address}/statements/{to_hex(statement_hash)}.json"

    def finalize(self, epoch: int) -> None:
        """After its window."""
        self.chain.request("evm_increaseTime", WINDOW_S + 1)
        self.settlement.finalize_epoch(epoch)

    def decide(self, epoch: int, root: bytes, uphold: bool) -> None:
        """By two of the three arbiters."""
        pending = self.settlement.pending()
        assert pending is not None
        action = self.settlement.action("resolveEpoch", epoch, root, pending.resolvable_until, uphold)
        data = bytes.fromhex(str(action.data).removeprefix("0x"))
        salt = mark("salt", epoch, root)
        arbiters = [Arbiter(self.chain, self.deployment.arbiter, self.sender(f"arbiter-{i}")) for i in range(2)]
        arbiters[0].propose(self.model.settlement, data, salt)
        call = arbiters[0].call_id_of(self.model.settlement, data, salt)
        arbiters[1].confirm(call)
        arbiters[1].execute(call)


def with_one_unit_more(statement: Statement, account: str) -> Statement:
    """The same, with one share more for an account: a root that pays a friend."""
    lines = tuple(
        line.model_copy(
            update={"shares": str(int(line.shares) + 1), "cumulative_shares": str(int(line.cumulative_shares) + 1)}
        )
        if line.account == account
        else line
        for line in statement.accounts
    )
    draft = statement.model_copy(update={"accounts": lines})
    return draft.model_copy(update={"root": to_hex(draft.tree().root)})


@pytest.fixture
def epochs(base: Epochs, tmp_path: Path) -> Iterator[Epochs]:
    """The test file's `base` as it was when the model had been registered; nothing is published."""
    snapshot = base.chain.request("evm_snapshot")
    base.published.folder = tmp_path / "published"
    yield base
    base.chain.request("evm_revert", snapshot)
    base.settlement = type(base.settlement)(base.chain, base.model.settlement, base.sender("coordinator"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the watcher says."""
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("commonweight.watch.watcher.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def watcher_of(epochs: Epochs, folder: Path, **options: Any) -> Watcher:
    """That challenges with node-1's key."""
    store = StatementStore(folder / "kept")
    return Watcher(epochs.spec, epochs.chain, epochs.model, store, challenger=epochs.sender("node-1"), **options)


def challenges(epochs: Epochs) -> list[EpochChallenged]:
    return epochs.settlement.events(EpochChallenged)

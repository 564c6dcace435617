"""One model on a local chain, for the tests of commands that read or change it. See its fixtures."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.auditors import auditor_seats
from commonweight.chain.authorization import sign_authorization
from commonweight.chain.keys import SCRYPT_N_DEVNET, Key, devnet_key, import_key
from commonweight.chain.local import LocalChain
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import ModelTerms, RegisteredModel
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.shares import ModelShares
from commonweight.chain.token import TestUSD
from commonweight.cli.main import app
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import ChainError, CommonweightError
from commonweight.rules.answer import SESSION_BYTES
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import credited_receipt, make_statement, report_units
from commonweight.rules.load import pack_load
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.statement import (
    AnswerLine,
    AuditorSeat,
    Carried,
    CreditedReport,
    EquivocationLine,
    SealedRound,
    Statement,
    to_hex,
)
from tools.build_vectors import answer_line, beacon_chain, honest_answer, judged, mark, seal

REPO = Path(__file__).parents[2]
COORDINATOR, DESIGNER, ALICE, BOB, STRANGER, JUDGE_0, JUDGE_1, TREASURY, NODE, CAROL = (
    devnet_key(index) for index in range(10)
)
KEY_FILES = {
    "coordinator": COORDINATOR,
    "treasury": TREASURY,
    "designer": DESIGNER,
    "alice": ALICE,
    "bob": BOB,
    "stranger": STRANGER,
    "judge-0": JUDGE_0,
    "judge-1": JUDGE_1,
    "node": NODE,
    "carol": CAROL,
}
WINDOW_S = 60
ARBITRATION_S = 3_600
COOLDOWN_S = WINDOW_S + 2 * ARBITRATION_S
STREAM_S = 600
DELAY_S = 30
COORDINATOR_DELAY_S = 3 * 86_400
USD = 10**6
SHARE = 10**18
SEAT_STAKE = 1_000 * USD
ANSWER_TOKENS = 250
PROPOSER_BOND, CHALLENGER_BOND, REPORTER_BOND = 100 * USD, 50 * USD, 40 * USD


@dataclass
class World:
    """A chain with one model, of which two epochs are final.

    Alice's own key is her node, and holds stages 0 and 2; Bob's node is NODE, and holds stages 1 and 3. Of Alice's two
    seats she has left the one of stage 2. Buyers have paid 100 USD to the router after epoch 0, which were split; what
    operators got of it is divided by epoch 1, with which two answers of ANSWER_TOKENS tokens each are sealed. Then 100
    USD were deposited for the shares directly, and 3 USD collected.
    """

    chain: Chain
    registry: ModelRegistry
    model: RegisteredModel
    spec: ModelSpec
    dir: Path
    statements: list[Statement] = field(default_factory=list)

    def sender(self, key: Key = COORDINATOR) -> Sender:
        return Sender(self.chain, key)

    def settlement_of(self, key: Key = COORDINATOR) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, self.sender(key))

    @property
    def settlement(self) -> EpochSettlement:
        return self.settlement_of()

    @property
    def shares(self) -> ModelShares:
        return ModelShares(self.chain, self.model.shares, self.sender())

    @property
    def router(self) -> RevenueRouter:
        return RevenueRouter(self.chain, self.model.router, self.sender())

    def usd(self, key: Key = COORDINATOR) -> TestUSD:
        return TestUSD(self.chain, self.model.terms.revenue_token, self.sender(key))

    def providers(self, key: Key = COORDINATOR) -> ProviderRegistry:
        return ProviderRegistry(self.chain, self.model.terms.providers, self.sender(key))

    def later(self, seconds: int) -> None:
        self.chain.request("evm_increaseTime", seconds)
        self.chain.request("evm_mine")

    def give(self, key: Key, amount: int, spender: str | None = None) -> None:
        """Play money, which `spender` may take."""
        self.usd().mint(key.address, amount)
        if spender is not None:
            self.usd(key).approve(spender, amount)

    def bond(self, key: Key, amount: int) -> None:
        self.give(key, amount, self.model.terms.providers)
        self.providers(key).bond(key.address, amount)

    def statement_file(self, epoch: int) -> Path:
        return self.dir / "statements" / f"{self.statements[epoch].hash.hex()}.json"

    def key_options(self, name: str = "stranger") -> list[str]:
        """Those of a command that sends with the key of that name, without being asked."""
        return ["--key", str(self.dir / f"{name}.json"), "--password-file", str(self.dir / "password"), "--yes"]

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """The command with --dir; raises what the command raised."""
        result = CliRunner().invoke(app, [*arguments, "--dir", str(self.dir)], input=input)
        if isinstance(result.exception, CommonweightError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


ALICE_AND_BOB = ((ALICE, ALICE.address), (NODE, BOB.address))
"""Node key and account of the stages in turn."""


OWNER_OF = {NODE.address: BOB.address}
"""Who answers for a key, where that isn't its own account."""


def sealed_round(
    world: World,
    number: int,
    workers: Sequence[tuple[Key, str]] = ALICE_AND_BOB,
    answers: Iterable[AnswerLine] = (),
) -> SealedRound:
    """A round of which each stage is done by the nodes of `workers` in turn, and signed by them."""
    lines = [_signed(world, number, stage, *workers[stage % len(workers)]) for stage in range(world.spec.stages)]
    return seal(world.spec, number, lines, answers)


def signing(world: World, key: Key) -> Callable[[Receipt], bytes]:
    """Signs receipts."""
    domain = Domain(world.chain.chain_id, world.model.settlement)
    return lambda receipt: key.sign_digest(receipt.digest(domain))


def _signed(world: World, number: int, stage: int, node: Key, account: str) -> CreditedReport:
    nothing, microbatches = to_hex(bytes(32)), world.spec.training.microbatches_per_round
    line = CreditedReport(
        stage=stage,
        node=node.address,
        owner=OWNER_OF.get(node.address, node.address),
        account=account,
        generation=1,
        load=to_hex(pack_load(range(microbatches), microbatches)),
        hops_root=nothing,
        gradient_hash=nothing,
        round_gradient_hash=nothing,
        state_before=nothing,
        state_after=nothing,
        signature=to_hex(bytes(65)),
        units=str(report_units(world.spec, stage, microbatches)),
    )
    tip = beacon_chain(world.spec, number // world.spec.economics.rounds_per_epoch)[0]
    receipt = credited_receipt(world.model.model_id, number, line, tip)
    return line.model_copy(update={"signature": to_hex(signing(world, node)(receipt))})


def seats_of(world: World, epoch: int) -> frozenset[AuditorSeat]:
    """Whose holders may audit the epoch; commits its tip where none is."""
    tip, by = beacon_chain(world.spec, epoch)[0], world.settlement.sender.address
    if world.settlement.beacon_of(epoch, by) is None:
        world.settlement.commit_beacon(epoch, tip)
    try:
        return auditor_seats(world.settlement, world.model, epoch, tip)
    except ChainError:  # a test has committed another one
        return frozenset()


def answers_of(world: World, number: int, count: int) -> list[AnswerLine]:
    """So many answers by the version that is ready to train this round, of ANSWER_TOKENS tokens each, for which Alice
    and Bob have generated.
    """
    stages = range(world.spec.stages)
    signers = [signing(world, ALICE_AND_BOB[stage % len(ALICE_AND_BOB)][0]) for stage in stages]
    return [
        answer_line(
            world.model.model_id,
            honest_answer(len(stages), number, mark("session", number, index)[:SESSION_BYTES], 50, ANSWER_TOKENS - 1),
            completion_tokens=ANSWER_TOKENS - 50,
            gateway=STRANGER.address,
            served=signing(world, STRANGER),
            signs=signers,
        )
        for index in range(count)
    ]


def serving_earned(world: World, key: Key, epoch: int = 1) -> int:
    """What it was given up to this epoch of what operators have earned."""
    lines = world.statements[epoch].accounts
    return sum(int(line.operator_revenue) for line in lines if line.account == key.address)


def statement_of(
    world: World,
    epoch: int,
    workers: Sequence[tuple[Key, str]] = ALICE_AND_BOB,
    answers: int = 0,
    verdict: Callable[[Audit], Verdict] = lambda _: Verdict.PASSED,
    seated: Collection[Key] = (),
    says: Callable[[Audit, str, bool], Verdict | None] = lambda *_: None,
    equivocations: Sequence[EquivocationLine] = (),
) -> Statement:
    """The epoch's honest statement, with all that operators have earned so far divided if there are answers.

    Every stage's round is audited: by the owners in `seated`, where they hold a seat, else by the coordinator.
    """
    previous = world.settlement.epoch(epoch - 1) if epoch else None
    before = world.statements[epoch - 1].carried() if epoch else Carried()
    rounds, auditors = [sealed_round(world, epoch, workers, answers_of(world, epoch, answers))], seats_of(world, epoch)
    audits = judged(
        world.spec,
        rounds,
        world.model.model_id,
        auditor=COORDINATOR.address,
        sign=signing(world, COORDINATOR),
        verdict=verdict,
        auditors=auditors,
        seated={key.address: signing(world, key) for key in seated},
        says=says,
        before=before,
    )
    return make_statement(
        world.spec,
        chain_id=world.chain.chain_id,
        settlement=world.model.settlement,
        model_id=world.model.model_id,
        epoch=epoch,
        beacon_seed=mark("seed", epoch),
        auditors=auditors,
        rounds=rounds,
        audits=audits,
        equivocations=equivocations,
        operator_earned=world.router.operator_earned(),
        before=before,
        accumulator_before=previous.accumulator if previous else 0,
    )


def propose(world: World, statement: Statement, root: bytes | None = None, uri: str | None = None) -> None:
    """Publishes and proposes it; `root` and `uri` replace the honest ones."""
    world.statements.append(statement)
    path = world.statement_file(-1)
    path.write_bytes(canonical_json(statement.model_dump()))
    root = root or bytes.fromhex(statement.root[2:])
    world.settlement.propose_epoch(
        statement.epoch, root, int(statement.minted), statement.hash, path.as_uri() if uri is None else uri
    )


def finalize(world: World) -> None:
    world.chain.request("evm_increaseTime", WINDOW_S + 1)
    pending = world.settlement.pending()
    assert pending is not None
    world.settlement.finalize_epoch(pending.epoch)


def challenge(world: World) -> None:
    """A stranger disputes the pending epoch."""
    pending = world.settlement.pending()
    assert pending is not None
    world.give(STRANGER, CHALLENGER_BOND, world.model.settlement)
    world.settlement_of(STRANGER).challenge_epoch(pending.epoch, pending.root, b"\1" * 32, "https://evidence.example")


def change_coordinator(world: World, successor: Key) -> None:
    """The registrant names `successor`, which accepts as soon as it can."""
    world.registry.propose_coordinator(world.model.model_id, successor.address)
    world.later(COORDINATOR_DELAY_S)
    registry = ModelRegistry(world.chain, world.registry.address, world.sender(successor))
    registry.accept_coordinator(world.model.model_id)


def pay_in(world: World, amount: int) -> None:
    """What a buyer pays by a plain transfer."""
    world.give(COORDINATOR, amount)
    world.usd().transfer(world.model.router, amount)


def _register(dir: Path, local: LocalChain) -> World:
    chain = Chain.connect(local.rpc_url, local.chain_id)
    sender = Sender(chain, COORDINATOR)
    usd = TestUSD.deploy(sender)
    registry = ModelRegistry.deploy(sender, [usd.address])
    providers = ProviderRegistry.deploy(sender, registry.address, usd.address, TREASURY.address, REPORTER_BOND)
    arbiter = Arbiter.deploy(sender, [JUDGE_0.address, JUDGE_1.address], threshold=2, delay_s=DELAY_S)
    fields = devnet_spec(4, 1, "0x" + "ab" * 32, 10**6, rounds_per_epoch=1).model_dump()
    rates = {"round_rate": "1", "data_rate": "0", "answer_rate": "0", "known_bad_rate": "0.5"}
    spec = build_spec(fields | {"verification": fields["verification"] | rates})
    (dir / "spec.json").write_bytes(canonical_json(spec.model_dump()))
    e = spec.economics
    model = registry.register_model(
        ModelTerms(
            spec_hash=spec.spec_hash,
            spec_uri=(dir / "spec.json").as_uri(),
            name="Devnet Shares",
            symbol="DEV",
            designer=DESIGNER.address,
            data_recipient=DESIGNER.address,
            coordinator=COORDINATOR.address,
            arbiter=arbiter.address,
            treasury=TREASURY.address,
            providers=providers.address,
            revenue_token=usd.address,
            max_supply=int(e.max_supply),
            designer_bps=e.designer_bps,
            data_bps=e.data_bps,
            initial_emission=int(e.initial_emission),
            halving_epochs=e.halving_epochs,
            operator_bps=2_000,
            treasury_bps=500,
            stream_period_s=STREAM_S,
            window_s=WINDOW_S,
            arbitration_s=ARBITRATION_S,
            proposer_bond=PROPOSER_BOND,
            challenger_bond=CHALLENGER_BOND,
            stages=spec.stages,
            max_stages_per_owner=2,
            seat_stake=SEAT_STAKE,
            seat_cooldown_s=COOLDOWN_S,
        )
    )
    deployments = {
        "rpc_url": local.rpc_url,
        "chain_id": local.chain_id,
        "registry": registry.address,
        "providers": providers.address,
        "arbiter": arbiter.address,
        "model_id": "0x" + model.model_id.hex(),
        "shares": model.shares,
        "settlement": model.settlement,
        "router": model.router,
        "revenue_token": usd.address,
        "statements": str(dir / "statements"),
    }
    (dir / "deployments.json").write_text(json.dumps(deployments))
    return World(chain, registry, model, spec, dir)


def _take_seats(world: World) -> None:
    world.bond(ALICE, 3 * SEAT_STAKE)
    world.bond(BOB, 2 * SEAT_STAKE)
    for key, stage in ((ALICE, 0), (ALICE, 2), (BOB, 1), (BOB, 3)):
        world.providers(key).take_seat(world.model.model_id, stage)
    signature = NODE.sign_digest(world.providers().binding_digest(BOB.address))
    world.providers(BOB).bind_signer(NODE.address, signature)


@pytest.fixture(scope="session")
def built_cli_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    dir = tmp_path_factory.mktemp("devnet")
    (dir / "statements").mkdir()
    with LocalChain.start("embedded", log_file=dir / "chain.log") as local:
        world = _register(dir, local)
        _take_seats(world)
        world.give(COORDINATOR, PROPOSER_BOND, world.model.settlement)
        world.settlement.deposit_bond(COORDINATOR.address, PROPOSER_BOND)
        propose(world, statement_of(world, 0, [(ALICE, ALICE.address)]))
        finalize(world)
        pay_in(world, 100 * USD)
        world.router.sweep()
        world.later(STREAM_S + 1)
        propose(world, statement_of(world, 1, answers=2))
        finalize(world)
        world.give(COORDINATOR, 100 * USD, world.model.shares)
        world.shares.deposit_revenue(100 * USD)
        world.later(STREAM_S + 1)
        world.give(STRANGER, 10 * USD)
        world.router.collect(authorization(world, 10 * USD), 3 * USD)
        world.providers(ALICE).leave_seat(world.model.model_id, 2)
        for name, key in KEY_FILES.items():
            import_key(dir / f"{name}.json", "secret-password", key.secret, scrypt_n=SCRYPT_N_DEVNET)
        (dir / "password").write_text("secret-password\n")
        (dir / "password").chmod(0o600)
        yield world


def authorization(world: World, value: int, nonce: bytes = b"\5" * 32) -> Any:
    """A stranger's payment."""
    until = world.chain.timestamp() + 3_600
    return sign_authorization(STRANGER, world.usd().domain(), world.model.router, value, 0, until, nonce)


@pytest.fixture
def world(built_cli_world: World) -> Iterator[World]:
    """The same world for every test: what a test did is undone."""
    built = built_cli_world
    snapshot = built.chain.request("evm_snapshot")
    count = len(built.statements)
    kept = built.dir.parent / "kept"
    shutil.copytree(built.dir / "statements", kept)
    yield built
    assert built.chain.request("evm_revert", snapshot)
    del built.statements[count:]
    shutil.rmtree(built.dir / "statements")
    kept.rename(built.dir / "statements")


AUDITORS = (CAROL, STRANGER)


@pytest.fixture
def audited(world: World) -> World:
    """With two more who hold seats in stages 1 and 3, and train nothing."""
    for key in AUDITORS:
        world.bond(key, 2 * SEAT_STAKE)
        for stage in (1, 3):
            world.providers(key).take_seat(world.model.model_id, stage)
    return world


def pay(world: World) -> list[str]:
    return world.key_options()


def account(report: Any, address: str) -> Any:
    (found,) = (each for each in report["accounts"] if each["account"] == address)
    return found

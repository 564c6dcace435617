"""One model on a local chain, for the tests of commands that read or change it. See its fixtures."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from commonweight.chain.contracts import EpochSettlement, ModelRegistry, ModelShares, TestUSD
from commonweight.chain.keys import SCRYPT_N_DEVNET, devnet_key, import_key
from commonweight.chain.local import LocalChain
from commonweight.chain.records import ModelTerms, RegisteredModel
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.cli.main import app
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import CommonweightError
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import CreditedReport, SealedRound, Statement, make_statement, report_units

REPO = Path(__file__).parents[2]
COORDINATOR, DESIGNER, ALICE, BOB, STRANGER = (devnet_key(index) for index in range(5))
WINDOW_S = 60
USD = 10**6
SHARE = 10**18


@dataclass
class World:
    """A chain with one model, of which two epochs are final and a third is proposed."""

    chain: Chain
    model: RegisteredModel
    spec: ModelSpec
    dir: Path
    statements: list[Statement]

    @property
    def settlement(self) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, Sender(self.chain, COORDINATOR))

    @property
    def shares(self) -> ModelShares:
        return ModelShares(self.chain, self.model.shares, Sender(self.chain, COORDINATOR))

    def statement_file(self, epoch: int) -> Path:
        return self.dir / "statements" / f"{self.statements[epoch].hash.hex()}.json"

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """The command with --dir; raises what the command raised."""
        result = CliRunner().invoke(app, [*arguments, "--dir", str(self.dir)], input=input)
        if isinstance(result.exception, CommonweightError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


def sealed_round(spec: ModelSpec, number: int, accounts: list[str]) -> SealedRound:
    """A round of which each stage is credited to one of `accounts` in turn."""
    nothing = "0x" + bytes(32).hex()
    return SealedRound(
        round=number,
        reports=tuple(
            CreditedReport(
                stage=stage,
                node=COORDINATOR.address,
                account=accounts[stage % len(accounts)],
                hops_root=nothing,
                gradient_hash=nothing,
                state_before=nothing,
                state_after=nothing,
                signature="0x" + bytes(65).hex(),
                units=str(report_units(spec, stage)),
            )
            for stage in range(spec.stages)
        ),
    )


def statement_of(world: World, epoch: int, accounts: list[str]) -> Statement:
    before = world.settlement.epoch(epoch - 1) if epoch else None
    return make_statement(
        world.spec,
        chain_id=world.chain.chain_id,
        settlement=world.model.settlement,
        model_id=world.model.model_id,
        epoch=epoch,
        rounds=[sealed_round(world.spec, epoch, accounts)],
        balances_before=world.statements[-1].balances() if epoch else {},
        accumulator_before=before.accumulator if before else 0,
    )


def propose(world: World, statement: Statement, root: bytes | None = None) -> None:
    world.statements.append(statement)
    path = world.statement_file(statement.epoch)
    path.write_bytes(canonical_json(statement.model_dump()))
    root = root or bytes.fromhex(statement.root[2:])
    world.settlement.propose_epoch(statement.epoch, root, int(statement.minted), statement.hash, path.as_uri())


def finalize(world: World) -> None:
    world.chain.request("evm_increaseTime", WINDOW_S + 1)
    pending = world.settlement.pending()
    assert pending is not None
    world.settlement.finalize_epoch(pending)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    dir = tmp_path_factory.mktemp("devnet")
    (dir / "statements").mkdir()
    with LocalChain.start("embedded", log_file=dir / "chain.log") as local:
        chain = Chain.connect(local.rpc_url, local.chain_id)
        sender = Sender(chain, COORDINATOR)
        registry, usd = ModelRegistry.deploy(sender), TestUSD.deploy(sender)
        spec = devnet_spec(4, 1, "0x" + "ab" * 32, 10**6, rounds_per_epoch=1)
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
                revenue_token=usd.address,
                max_supply=int(e.max_supply),
                designer_bps=e.designer_bps,
                data_bps=e.data_bps,
                initial_emission=int(e.initial_emission),
                halving_epochs=e.halving_epochs,
                window_s=WINDOW_S,
                stages=spec.stages,
            )
        )
        world = World(chain, model, spec, dir, [])
        (dir / "deployments.json").write_text(
            json.dumps(
                {
                    "rpc_url": local.rpc_url,
                    "chain_id": local.chain_id,
                    "registry": registry.address,
                    "model_id": "0x" + model.model_id.hex(),
                    "shares": model.shares,
                    "settlement": model.settlement,
                    "revenue_token": usd.address,
                    "statements": str(dir / "statements"),
                }
            )
        )
        propose(world, statement_of(world, 0, [ALICE.address]))
        finalize(world)
        usd.mint(COORDINATOR.address, 1000 * USD)
        usd.approve(model.shares, 1000 * USD)
        world.shares.deposit_revenue(100 * USD)
        propose(world, statement_of(world, 1, [ALICE.address, BOB.address]))
        finalize(world)
        world.shares.deposit_revenue(100 * USD)
        import_key(dir / "stranger.json", "secret-password", STRANGER.secret, scrypt_n=SCRYPT_N_DEVNET)
        (dir / "password").write_text("secret-password\n")
        (dir / "password").chmod(0o600)
        yield world


@pytest.fixture
def world(built: World) -> Iterator[World]:
    """The same world for every test: what a test did is undone."""
    snapshot = built.chain.request("evm_snapshot")
    count = len(built.statements)
    kept = built.dir.parent / "kept"
    shutil.copytree(built.dir / "statements", kept)
    yield built
    assert built.chain.request("evm_revert", snapshot)
    del built.statements[count:]
    shutil.rmtree(built.dir / "statements")
    kept.rename(built.dir / "statements")


def pay(world: World) -> list[str]:
    return ["--key", str(world.dir / "stranger.json"), "--password-file", str(world.dir / "password"), "--yes"]


def account(report: Any, address: str) -> Any:
    (found,) = (each for each in report["accounts"] if each["account"] == address)
    return found

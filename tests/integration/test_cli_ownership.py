"""`ownership show` and `claim` on a real local chain, with statements that the rules made."""

import json
import os
import shutil
import subprocess
import sys
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
from commonweight.errors import CommonweightError, ConfigError, RpcUnreachable, SpecError, StatementMismatch
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


class TestOwnership:
    def test_all_accounts_from_a_devnet_s_directory(self, world: World) -> None:
        report = world.json("ownership", "show")
        assert [each["account"] for each in report["accounts"]] == sorted(
            (DESIGNER.address, ALICE.address, BOB.address), key=str.lower
        )
        alice, bob = account(report, ALICE.address), account(report, BOB.address)
        assert int(alice["claimable"]) + int(bob["claimable"]) == int(report["unclaimed"]) == 1_600_000 * SHARE
        assert int(account(report, DESIGNER.address)["held"]) == 400_000 * SHARE
        assert int(report["supply"]) == 2_000_000 * SHARE
        assert report["revenue"]["deposited"] == str(200 * USD)
        assert report["last_final_epoch"] == 1
        assert report["statement"] == {"hash": "0x" + world.statements[1].hash.hex(), "found": True}

    def test_revenue_adds_up_to_what_came_in(self, world: World) -> None:
        accounts = world.json("ownership", "show")["accounts"]
        total = sum(int(each["owed"]) + int(each["claimable_revenue"]) for each in accounts)
        assert 200 * USD - 2 * len(accounts) <= total <= 200 * USD

    def test_the_table_has_every_account_with_role_and_totals(self, world: World) -> None:
        lines = world.run("ownership", "show").stdout.splitlines()
        designer = next(line for line in lines if line.startswith(DESIGNER.address))
        assert designer.split() == [DESIGNER.address, "designer,", "data", "400,000", "20.00", "%", "0", "39.999999"]
        assert any(line.startswith(f"{ALICE.address}  provider") for line in lines)
        assert next(line for line in lines if "not claimed" in line).split()[3:] == ["1,600,000", "80.00", "%"]
        assert "final epochs  0 to 1" in lines

    def test_one_account(self, world: World) -> None:
        text = world.run("ownership", "show", ALICE.address.lower()).stdout
        assert f"account   {ALICE.address}" in text
        assert "role      provider" in text
        assert "held      0 shares, 0.00 % of all" in text
        assert BOB.address not in text

    def test_an_account_without_anything(self, world: World) -> None:
        found = account(world.json("ownership", "show", STRANGER.address), STRANGER.address)
        assert [found[name] for name in ("held", "owed", "claimable")] == ["0", "0", "0"]

    def test_a_missing_statement_is_said_and_the_rest_is_shown(self, world: World) -> None:
        world.statement_file(1).unlink()
        result = world.run("ownership", "show")
        assert result.exit_code == 0
        assert "The statement of epoch 1, 0x" in result.stderr
        assert "--statements" in result.stderr
        assert DESIGNER.address in result.stdout
        report = json.loads(world.run("ownership", "show", "--json").stdout)
        assert report["statement"]["found"] is False
        assert {each["claimable"] for each in report["accounts"]} == {None}

    def test_the_statement_is_found_where_the_proposal_said(self, world: World, tmp_path: Path) -> None:
        report = world.json("ownership", "show", "--statements", str(tmp_path))
        assert report["statement"]["found"]

    def test_the_statement_is_found_in_a_directory_of_one_s_own(self, world: World, tmp_path: Path) -> None:
        shutil.move(world.statement_file(1), tmp_path / f"0x{world.statements[1].hash.hex()}.json")
        assert world.json("ownership", "show", "--statements", str(tmp_path))["statement"]["found"]

    @pytest.mark.parametrize("forgery", ["other", "not json", "bom"])
    def test_a_text_that_isn_t_the_statement_is_refused(self, world: World, forgery: str) -> None:
        path = world.statement_file(1)
        genuine = path.read_bytes()
        forged = genuine.replace(b'"epoch":1', b'"epoch":2')
        path.write_bytes({"other": forged, "not json": b"{", "bom": b"\xef\xbb\xbf" + genuine}[forgery])
        with pytest.raises(StatementMismatch):
            world.run("ownership", "show")

    def test_a_statement_that_doesn_t_give_the_root_is_refused(self, world: World) -> None:
        propose(world, statement_of(world, 2, [BOB.address]), root=bytes(31) + b"\1")
        finalize(world)
        with pytest.raises(StatementMismatch, match="don't give the root"):
            world.run("ownership", "show")

    def test_a_pending_epoch_changes_nothing(self, world: World) -> None:
        before = world.json("ownership", "show")
        propose(world, statement_of(world, 2, [BOB.address]))
        assert world.json("ownership", "show") == before

    def test_who_got_shares_by_transfer_is_listed(self, world: World) -> None:
        sender = Sender(world.chain, DESIGNER)
        ModelShares(world.chain, world.model.shares, sender).transfer(STRANGER.address, 5 * SHARE)
        assert account(world.json("ownership", "show"), STRANGER.address)["held"] == str(5 * SHARE)

    def test_the_only_model_of_a_registry_needs_no_id(self, world: World) -> None:
        known = json.loads((world.dir / "deployments.json").read_text())
        options = ["--rpc", known["rpc_url"], "--registry", known["registry"]]
        result = CliRunner().invoke(app, ["ownership", "show", *options, "--json"])
        assert json.loads(result.stdout) == world.json("ownership", "show")

    def test_an_unknown_model_names_those_that_exist(self, world: World) -> None:
        with pytest.raises(ConfigError, match=world.model.model_id.hex()):
            world.run("ownership", "show", "--model", "0x" + "ee" * 32)

    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        result = CliRunner().invoke(app, ["ownership", "show"])
        assert isinstance(result.exception, ConfigError)
        assert "--rpc" in str(result.exception)

    def test_the_directory_can_come_from_the_environment(self, world: World) -> None:
        result = CliRunner().invoke(app, ["ownership", "show"], env={"COMMONWEIGHT_DIR": str(world.dir)})
        assert ALICE.address in result.stdout

    def test_a_devnet_that_has_stopped_is_said_to_be(self, world: World, tmp_path: Path) -> None:
        known = json.loads((world.dir / "deployments.json").read_text())
        (tmp_path / "deployments.json").write_text(json.dumps(known | {"rpc_url": "http://127.0.0.1:1"}))
        result = CliRunner().invoke(app, ["ownership", "show", "--dir", str(tmp_path)])
        assert isinstance(result.exception, RpcUnreachable)
        assert str(tmp_path) in str(result.exception)


class TestClaim:
    def test_a_stranger_pays_and_the_account_gets_its_shares(self, world: World) -> None:
        due = int(account(world.json("ownership", "show"), ALICE.address)["claimable"])
        result = world.run("claim", ALICE.address, *pay(world))
        assert "transaction 0x" in result.stdout
        assert f"{ALICE.address} now holds" in result.stdout
        assert "secret-password" not in result.output
        after = account(world.json("ownership", "show"), ALICE.address)
        assert (int(after["held"]), after["claimable"]) == (due, "0")
        assert world.shares.balance_of(STRANGER.address) == 0

    def test_revenue_comes_with_the_shares(self, world: World) -> None:
        before = account(world.json("ownership", "show"), ALICE.address)
        world.run("claim", ALICE.address, *pay(world))
        after = account(world.json("ownership", "show"), ALICE.address)
        assert int(before["claimable_revenue"]) > 0
        assert after["owed"] == before["claimable_revenue"]

    def test_an_older_epoch_and_then_the_rest(self, world: World) -> None:
        world.run("claim", ALICE.address, "--epoch", "0", *pay(world))
        assert world.shares.balance_of(ALICE.address) == int(world.statements[0].accounts[0].shares)
        world.run("claim", ALICE.address, *pay(world))
        line = next(line for line in world.statements[1].accounts if line.account == ALICE.address)
        assert world.shares.balance_of(ALICE.address) == int(line.cumulative_shares)

    def test_nothing_to_claim_is_no_error(self, world: World) -> None:
        world.run("claim", ALICE.address, *pay(world))
        result = world.run("claim", ALICE.address, *pay(world))
        assert result.exit_code == 0
        assert "is claimed" in result.stdout
        assert "earned nothing" in world.run("claim", "--dry-run", "--key", pay(world)[1]).stdout
        assert "isn't final; 2 epochs are" in world.run("claim", ALICE.address, "--epoch", "7", "--dry-run").stdout

    def test_a_dry_run_needs_no_key_and_sends_nothing(self, world: World) -> None:
        height = world.chain.block_number()
        result = world.run("claim", ALICE.address, "--dry-run")
        assert "gas " in result.stdout
        assert "ETH, at most" in result.stdout
        assert "Nothing was sent" in result.stdout
        assert world.chain.block_number() == height

    def test_it_asks_before_sending(self, world: World) -> None:
        height = world.chain.block_number()
        result = world.run("claim", ALICE.address, *pay(world)[:-1], input="n\n")
        assert result.exit_code == 1
        assert "Nothing was sent." in result.stderr
        assert world.chain.block_number() == height
        assert "now holds" in world.run("claim", ALICE.address, *pay(world)[:-1], input="y\n").stdout

    def test_nobody_to_ask_is_an_error(self, world: World) -> None:
        with pytest.raises(ConfigError, match="--yes"):
            world.run("claim", ALICE.address, *pay(world)[:-1], input="")

    def test_json(self, world: World) -> None:
        report = world.json("claim", ALICE.address, *pay(world))
        assert report["account"] == ALICE.address
        assert report["balance"] == report["shares"] == str(world.shares.balance_of(ALICE.address))
        assert world.chain.receipt(report["transaction"]) is not None
        assert world.json("claim", ALICE.address, *pay(world))["transaction"] is None

    def test_a_claim_without_its_statement_says_where_it_looked(self, world: World) -> None:
        world.statement_file(1).unlink()
        with pytest.raises(ConfigError, match="was not found at"):
            world.run("claim", ALICE.address, "--dry-run")

    def test_a_claim_needs_a_key_or_a_dry_run(self, world: World) -> None:
        with pytest.raises(ConfigError, match="--key FILE, or --dry-run"):
            world.run("claim", ALICE.address)
        with pytest.raises(ConfigError, match="whose shares"):
            world.run("claim", "--dry-run")


class TestModel:
    def test_a_registered_model_is_shown_from_its_spec(self, world: World) -> None:
        text = world.run("model", "show").stdout
        assert world.spec.spec_hash.hex() in text
        assert DESIGNER.address in text

    def test_another_spec_than_the_registered_one_is_refused(self, world: World, tmp_path: Path) -> None:
        other = devnet_spec(2, 1, "0x" + "ab" * 32, 10**6)
        (tmp_path / "spec.json").write_bytes(canonical_json(other.model_dump()))
        with pytest.raises(SpecError, match=other.spec_hash.hex()):
            world.run("model", "show", str(tmp_path / "spec.json"), "--model", "0x" + world.model.model_id.hex())


def test_as_a_user_would_type_it(world: World) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "commonweight", *arguments]
        env = {**os.environ, "COMMONWEIGHT_DIR": str(world.dir)}
        return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=30, env=env)

    shown = run("ownership", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ALICE.address in shown.stdout
    world.statement_file(1).write_text("{}")
    forged = run("ownership", "show")
    assert forged.returncode == 4
    assert forged.stderr.startswith("Error: [CHAIN_STATEMENT]")
    assert "Traceback" not in forged.stderr

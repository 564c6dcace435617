"""`ownership show` and `model show` on a real local chain, with statements that the rules made."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commonweight.chain.sender import Sender
from commonweight.chain.shares import ModelShares
from commonweight.cli.main import app
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import ConfigError, RpcUnreachable, SpecError, StatementMismatch
from commonweight.rules.canonical import canonical_json
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    DESIGNER,
    REPO,
    SEAT_STAKE,
    SHARE,
    STRANGER,
    USD,
    World,
    account,
    change_coordinator,
    finalize,
    pay,
    propose,
    statement_of,
)

world = cli_world.world  # pytest finds fixtures by their names here


class TestOwnership:
    def test_all_accounts_from_a_devnet_s_directory(self, world: World) -> None:
        report = world.json("ownership", "show")
        assert [each["account"] for each in report["accounts"]] == sorted(
            (DESIGNER.address, ALICE.address, BOB.address), key=str.lower
        )
        alice, bob = account(report, ALICE.address), account(report, BOB.address)
        assert int(alice["claimable"]) + int(bob["claimable"]) == 1_600_000 * SHARE
        assert int(account(report, DESIGNER.address)["claimable"]) == 400_000 * SHARE
        assert int(report["supply"]) == int(report["unclaimed"]) == 2_000_000 * SHARE
        assert report["revenue"]["deposited"] == str(175 * USD)
        assert report["last_final_epoch"] == 1
        assert report["statement"] == {"hash": "0x" + world.statements[1].hash.hex(), "found": True}

    def test_revenue_adds_up_to_what_came_in(self, world: World) -> None:
        accounts = world.json("ownership", "show")["accounts"]
        total = sum(int(each["owed"]) + int(each["claimable_revenue"]) for each in accounts)
        assert 175 * USD - 2 * len(accounts) <= total <= 175 * USD

    def test_the_table_has_every_account_with_role_and_totals(self, world: World) -> None:
        world.run("claim", DESIGNER.address, *pay(world))
        lines = world.run("ownership", "show").stdout.splitlines()
        designer = next(line for line in lines if line.startswith(DESIGNER.address))
        assert designer.split() == [DESIGNER.address, "designer,", "data", "400,000", "20.00", "%", "0", "34.999999"]
        assert any(line.startswith(f"{ALICE.address}  provider") for line in lines)
        assert next(line for line in lines if "not claimed" in line).split()[3:] == ["1,600,000", "80.00", "%"]
        assert "final epochs  0 to 1" in lines

    def test_one_account(self, world: World) -> None:
        text = world.run("ownership", "show", ALICE.address.lower()).stdout
        assert f"account   {ALICE.address}" in text
        assert "role      provider" in text
        assert "held      0 shares, 0.00 % of all" in text
        assert "to claim  1,189,979.123173277661795407 shares, with 119." in text
        assert BOB.address not in text

    def test_an_account_without_anything(self, world: World) -> None:
        found = account(world.json("ownership", "show", STRANGER.address), STRANGER.address)
        assert [found[name] for name in ("held", "owed", "claimable")] == ["0", "0", "0"]

    def test_a_missing_statement_is_said_and_the_rest_is_shown(self, world: World) -> None:
        world.statement_file(1).unlink()
        result = world.run("ownership", "show")
        assert result.exit_code == 0
        assert f"The statement 0x{world.statements[1].hash.hex()} can't be had" in result.stderr
        assert f"{world.statement_file(1).name}': No such file" in result.stderr
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
    def test_a_text_that_isn_t_the_statement_is_not_used(self, world: World, forgery: str) -> None:
        path = world.statement_file(1)
        genuine = path.read_bytes()
        forged = genuine.replace(b'"epoch":1', b'"epoch":2')
        path.write_bytes({"other": forged, "not json": b"{", "bom": b"\xef\xbb\xbf" + genuine}[forgery])
        result = world.run("ownership", "show", "--json")
        assert "it has another text" in result.stderr
        assert {each["claimable"] for each in json.loads(result.stdout)["accounts"]} == {None}

    def test_a_statement_is_found_at_a_mirror(self, world: World) -> None:
        class Mirror(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None: ...

        asked: list[str] = []
        text = world.statement_file(1).read_bytes()
        world.statement_file(1).unlink()
        with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            base = f"http://127.0.0.1:{server.server_port}"
            assert world.json("ownership", "show", "--statements", base)["statement"]["found"]
            server.shutdown()
        assert asked == [f"/statements/0x{world.statements[1].hash.hex()}.json"]

    def test_a_statement_that_doesn_t_give_the_root_is_refused(self, world: World) -> None:
        propose(world, statement_of(world, 2), root=bytes(31) + b"\1")
        finalize(world)
        with pytest.raises(StatementMismatch, match="don't give the root"):
            world.run("ownership", "show")

    @pytest.mark.parametrize(
        "uri",
        ["file:///dev/zero", "file:///%00", "https://host/x\x1b[2J", "file://[", "file:///" + 300 * "x", "", "/"],
    )
    def test_what_the_proposer_wrote_as_address_can_do_no_harm(self, world: World, uri: str) -> None:
        statement = statement_of(world, 2)
        propose(world, statement, uri=uri)
        world.statement_file(2).unlink()
        finalize(world)
        result = world.run("ownership", "show")
        assert result.exit_code == 0
        assert "can't be had" in result.stderr
        assert DESIGNER.address in result.stdout
        assert "\x1b" not in result.output

    def test_a_pending_epoch_changes_nothing(self, world: World) -> None:
        before = world.json("ownership", "show")
        propose(world, statement_of(world, 2))
        assert world.json("ownership", "show") == before

    def test_who_got_shares_by_transfer_is_listed(self, world: World) -> None:
        world.run("claim", DESIGNER.address, *pay(world))
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


class TestModel:
    def test_a_registered_model_is_shown_with_its_terms(self, world: World) -> None:
        text = world.run("model", "show").stdout
        assert world.spec.spec_hash.hex() in text
        for line in (
            f"designer           {DESIGNER.address}",
            "revenue goes to    75.00 % shares, 20.00 % operators, 5.00 % treasury",
            "custody cap        2 of 4 stages for one owner",
            "whole model costs  at least 4,000 tUSD of stake, by 2 owners, for one seat of every stage",
            "seats held         stage 0: 1, stage 1: 1, stage 2: 0, stage 3: 1",
            "retired            no",
        ):
            assert line in text

    def test_json_has_what_the_chain_says_now(self, world: World) -> None:
        world.registry.retire(world.model.model_id)
        change_coordinator(world, BOB)
        found = world.json("model", "show")["registered"]
        assert (found["retired"], found["coordinator"]) == (True, BOB.address)
        assert found["seats_held"] == [1, 1, 0, 1]
        assert found["whole_model"] == {"stake": str(4 * SEAT_STAKE), "owners": 2}
        assert found["router"] == world.model.router

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
    forged = run("claim", ALICE.address, "--dry-run")
    assert forged.returncode == 4
    assert forged.stderr.startswith("Error: [CHAIN_NO_STATEMENT]")
    assert "Traceback" not in forged.stderr

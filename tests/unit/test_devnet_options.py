"""What a devnet is started with: bad input is one clear error, before anything is started."""

import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.devnet.accounts import auditor_stages, devnet_accounts, node_stages
from commonweight.devnet.byzantine import KINDS, Cheating
from commonweight.devnet.churn import Partition, Slow, Way
from commonweight.devnet.commands import auditor_command, node_command
from commonweight.devnet.deployment import Deployment
from commonweight.devnet.folder import RunFolder, write_json
from commonweight.devnet.observer import read_state
from commonweight.devnet.options import DevnetOptions
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import ChainError, ConfigError, SpecError
from commonweight.links.link import LinkShape

MANIFEST = "0x" + "ab" * 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "geth"}, "--backend 'geth' is none of auto, anvil, embedded"),
        ({"stages": 0}, "--stages 0 must be at least 1"),
        ({"seed": -1}, "--seed -1"),
        ({"until_epoch": 0}, "--until-epoch 0"),
        ({"rounds_per_epoch": 0}, "--rounds-per-epoch 0"),
        ({"report": Path("/nowhere/at/all.json")}, "there is no folder /nowhere/at"),
        ({"byzantine": ("zeros",)}, "--byzantine 'zeros' must be STAGE:KIND or STAGE:KIND:FRACTION, as in 1:zeros:0.1"),
        ({"byzantine": ("x:zeros",)}, "--byzantine 'x:zeros' must be STAGE:KIND"),
        ({"byzantine": ("-1:zeros",)}, "--byzantine '-1:zeros' must be STAGE:KIND"),
        ({"byzantine": ("4:zeros",)}, "there is no stage 4; there are 0 to 3"),
        ({"byzantine": ("1:zero",)}, "--byzantine '1:zero': 'zero' is no way of cheating. There are: zeros, noise,"),
        ({"byzantine": ("1:",)}, "'' is no way of cheating"),
        ({"byzantine": ("1:zeros:",)}, "the fraction '' must be a number above 0 and at most 1"),
        ({"byzantine": ("1:zeros:0",)}, "the fraction '0' must be"),
        ({"byzantine": ("1:zeros:1.1",)}, "the fraction '1.1' must be"),
        ({"byzantine": ("1:zeros:1e-3",)}, "the fraction '1e-3' must be"),
        ({"byzantine": ("1:zeros:nan",)}, "the fraction 'nan' must be"),
        ({"byzantine": ("1:zeros:0.1:2",)}, "the fraction '0.1:2' must be"),
        ({"byzantine": ("1:wrong-data",)}, "wrong-data is possible on the first stage only"),
        ({"byzantine": ("2:false-loss",)}, "false-loss is possible on the last stage only"),
        ({"byzantine": ("0:copied",)}, "copied is possible on a stage between two others only"),
        ({"byzantine": ("3:copied",)}, "copied is possible on a stage between two others only"),
        ({"byzantine": ("1:zeros", "1:noise")}, "--byzantine '1:noise': stage 1 cheats by zeros already"),
        ({"byzantine": ("1:zeros", "1:wave-through")}, "--byzantine '1:wave-through': stage 1 cheats by zeros already"),
        ({"slow": ("node-1",)}, "--slow 'node-1' must be NODE:TIME, as in node-1:200ms"),
        ({"slow": ("node-1:fast",)}, "--slow 'node-1:fast': 'fast' is no time in ms, s, as in node-1:200ms"),
        ({"slow": ("node-1:61s",)}, "--slow 'node-1:61s': at most 60 s"),
        ({"slow": ("node-4:1s",)}, "--slow 'node-4:1s': there is no node 'node-4'. There are node-0, node-1, node-2,"),
        ({"link": "80mbit"}, "--link: '80mbit' is no link: it has a rate and a delay"),
        ({"link": "80mbit:50ms:1%"}, "--link: A link between processes can't lose 0.01 of its packets"),
        ({"partition": ("node-1,node-9",)}, "--partition 'node-1,node-9': there is no node 'node-9'"),
        ({"partition": ("node-1:up",)}, "--partition 'node-1:up': 'up' is neither `in`"),
        ({"partition": ("node-0,node-1",), "stages": 2}, "--partition 'node-0,node-1': these are all nodes"),
        ({"auditors": -1}, "--auditors -1 must be at least 0"),
        ({"seats": 0}, "--seats 0 must be at least 1"),
        ({"seats": 3, "stages": 2}, "--seats 3: an owner has one in each stage at most, and 8 in all."),
        ({"seats": 2, "byzantine": ("1:zeros",)}, "--byzantine names stages, so its nodes mustn't move"),
        (
            {"byzantine": ("1:collude",), "auditors": 1},
            "--byzantine '1:collude': collude takes an auditor of stage 1: give --auditors 2.",
        ),
        (
            {"byzantine": ("1:stale-answers",), "buyers": 0},
            "--byzantine '1:stale-answers': stale-answers takes a buyer of answers: give --buyers 1.",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        DevnetOptions(**options)


def test_slow_nodes_links_and_partitions_are_named_by_process() -> None:
    options = DevnetOptions(
        replicas=2, slow=("node-1-1:200ms",), link="80mbit:50ms:jitter=5ms", partition=("node-0:out",)
    )
    assert options.slowed == (Slow("node-1-1", 0.2),)
    assert options.link_shape == LinkShape(80_000_000, 0.05, 0.005)
    assert options.partitions == (Partition(("node-0",), "out"),)
    assert DevnetOptions().link_shape is None, "its nodes talk to each other directly"
    assert DevnetOptions(partition=("node-0",)).link_shape == LinkShape(), "what isn't there can't be cut"


@pytest.mark.parametrize(
    ("way", "cut"),
    [
        ("both", {("b", "a"), ("b", "c"), ("a", "b"), ("c", "b")}),
        ("in", {("a", "b"), ("c", "b")}),
        ("out", {("b", "a"), ("b", "c")}),
    ],
)
def test_a_partition_cuts_one_way_or_both(way: Way, cut: set[tuple[str, str]]) -> None:
    assert set(Partition(("b",), way).paths("abc")) == cut


def test_who_cheats_is_known_by_the_name_of_its_process() -> None:
    options = DevnetOptions(byzantine=("3:false-loss:.25", "0:zeros"))
    assert options.cheating == {"node-3": Cheating("false-loss", 0.25), "node-0": Cheating("zeros")}
    assert [str(cheating) for cheating in options.cheating.values()] == ["false-loss:0.25", "zeros"]
    assert DevnetOptions().cheating == {}


def test_training_is_asynchronous_if_that_is_asked_for() -> None:
    assert DevnetOptions(asynchrony="look_ahead").spec("0x" + "0" * 64, 2**20).training.asynchrony == "look_ahead"
    with pytest.raises(SpecError, match=r"training\.asynchrony: .*'none', 'delayed' or 'look_ahead'"):
        DevnetOptions(asynchrony="maybe")
    assert DevnetOptions(averaging="int8").spec("0x" + "0" * 64, 2**20).training.averaging == "int8"
    with pytest.raises(SpecError, match=r"training\.averaging: .*'float32' or 'int8'"):
        DevnetOptions(averaging="int4")


def test_an_auditor_cheats_alone_or_with_its_provider() -> None:
    options = DevnetOptions(auditors=3, byzantine=("1:wave-through:0.5", "2:collude"))
    both = Cheating("collude")
    assert options.cheating == {"auditor-1": Cheating("wave-through", 0.5), "node-2": both, "auditor-2": both}
    assert "auditor-2" in devnet_accounts(options.node_stages, auditors=options.auditor_stages)


def test_every_auditor_has_an_account_of_its_own() -> None:
    auditors = auditor_stages(2, 3)
    accounts = devnet_accounts(node_stages(2), buyers=1, auditors=auditors)
    assert auditors == {"auditor-0": 0, "auditor-1": 1, "auditor-0-1": 0}
    assert auditors.keys() == {role for role in accounts if role.startswith("auditor-")}
    assert len({account.address for account in accounts.values()}) == len(accounts)
    assert {role: account for role, account in accounts.items() if "auditor" not in role} == devnet_accounts(
        node_stages(2), 1
    )


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 10**6))
def test_what_is_passed_on_to_the_process_is_read_as_the_same(kind: str, millionths: int) -> None:
    cheating = Cheating(kind, millionths / 10**6)
    assert Cheating.parse(str(cheating)) == cheating


def test_a_model_of_one_stage_has_first_and_last_in_one() -> None:
    for kind in ("wrong-data", "false-loss", "under-tolerance", "adaptive", "flood"):
        assert DevnetOptions(stages=1, byzantine=(f"0:{kind}",)).cheating == {"node-0": Cheating(kind)}
    with pytest.raises(ConfigError, match="between two others"):
        DevnetOptions(stages=1, byzantine=("0:copied",))


def test_a_node_that_cheats_is_started_as_an_adversary() -> None:
    deployment = Deployment(**dict.fromkeys((field.name for field in fields(Deployment)), "0xaa"))
    honest, cheat = (
        node_command(RunFolder(Path("run")), deployment, "node-1", "peer", how)
        for how in (None, Cheating("zeros", 0.1))
    )
    assert honest[:5] == [sys.executable, "-m", "commonweight", "node", "run"]
    assert cheat[:4] == [sys.executable, "-m", "adversary", "zeros:0.1"]
    assert honest[5:] == cheat[4:]


def test_an_auditor_that_cheats_is_started_as_an_adversary() -> None:
    honest, cheat = (
        auditor_command(RunFolder(Path("run")), "auditor-1", "peer", how) for how in (None, Cheating("collude"))
    )
    assert honest[:5] == [sys.executable, "-m", "commonweight", "auditor", "run"]
    assert cheat[:4] == [sys.executable, "-m", "adversary.auditor", "collude"]
    assert honest[5:] == cheat[4:]


def test_a_report_may_go_into_the_runs_own_folder(tmp_path: Path) -> None:
    DevnetOptions(folder=tmp_path / "run", report=tmp_path / "run" / "report.json")


def test_more_stages_than_layers() -> None:
    with pytest.raises(SpecError, match="9 stages need as many layers; there are 8"):
        DevnetOptions(stages=9)


def test_anvil_that_isnt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMONWEIGHT_ANVIL", "/nowhere/anvil")
    with pytest.raises(ChainError, match="/nowhere/anvil can't be executed"):
        DevnetOptions(backend="anvil")


def test_the_devnets_model_is_small_and_its_round_is_8192_tokens() -> None:
    spec = devnet_spec(4, 7, MANIFEST, 1_000_000)
    assert spec.training.tokens_per_round == 8192
    assert (spec.seed, spec.stages, spec.data.manifest) == (7, 4, MANIFEST)
    assert spec.architecture.boundary_dim * 4 == spec.architecture.d_model


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new" / "run")
    assert folder.logs.is_dir()
    assert folder.keys.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="already holds"):
        RunFolder.create(tmp_path / "new" / "run")


def test_a_folder_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't hold a run"):
        RunFolder.create(tmp_path / "file" / "run")


def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no devnet under"):
        RunFolder.find(None)
    for age, name in ((100, "devnet-b"), (50, "devnet-a")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        state = tmp_path / "runs" / name / "state.json"
        state.write_text("{}")
        os.utime(state, (1_000_000 - age, 1_000_000 - age))
    assert RunFolder.find(None).path.name == "devnet-a"
    with pytest.raises(ConfigError, match="not the state of a devnet"):
        read_state(None)
    with pytest.raises(ConfigError, match="holds no devnet"):
        RunFolder.find(tmp_path)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    write_json(tmp_path / "a.json", {"b": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

"""A replica of a strong stage moves to the weak one, as real processes do it: its work counts in both."""

import signal
from pathlib import Path

import pytest

from commonweight.failpoints import SLOW_VARIABLE
from commonweight.rules.epoch import credited_load
from tests.integration.network import Network, Process, train_in_process
from tests.integration.test_replicas_network import MANY, sealed_by, statements

pytestmark = pytest.mark.slow


class Lopsided:
    """Two nodes hold the first stage, one that has become slow the second."""

    def __init__(self, network: Network) -> None:
        self.coordinator = network.start_coordinator(MANY)
        self.network, self.nodes = network, dict[str, Process]()
        for index, sleep_s in enumerate((0.05, 0.02, 0.05)):
            (network.folder / f"slow-{index}").write_text(str(sleep_s))
        self.start(0)
        self.coordinator.wait_for("node.joined")  # so that it has the first stage
        self.start(1, COMMONWEIGHT_NODE_RUN_STAY="1")
        self.coordinator.wait_for("round.sealed")
        third = self.start(2)
        assert third.wait_for("node.assigned").fields["stage"] == 0, "the slower one"
        self.coordinator.wait_for("round.sealed", sealed_by([2, 1]))
        (network.folder / "slow-1").write_text("0.15")

    def start(self, index: int, **environment: str) -> Process:
        slow = {SLOW_VARIABLE: str(self.network.folder / f"slow-{index}")}
        process = self.network.start_node(index, environment=slow | environment, stays=False)
        self.nodes[self.network.accounts[f"node-{index}"].address] = process
        return process

    def index(self, address: str) -> int:
        return list(self.nodes).index(address)


def test_a_replica_moves_to_the_weak_stage_works_there_and_answers_for_what_it_did_before(tmp_path: Path) -> None:
    with Network(tmp_path, audit_rate="1") as network:
        world = Lopsided(network)
        coordinator = world.coordinator
        moves = coordinator.wait_for("member.moves")
        address, move = moves.fields["node"], moves.fields
        mover = world.nodes[address]
        assert (move["source"], move["target"]) == (0, 1)
        assert move["after"] > move["before"]
        assert mover.wait_for("node.moves").fields == {
            key: move[key] for key in ("source", "target", "before", "after")
        }
        assert mover.wait_for("node.assigned", lambda event: event.time > moves.time).fields["stage"] == 1
        assert mover.wait_for("state.fetched").fields["fetched_bytes"] > 0

        moved_at = max(
            e.fields["round"] for e in coordinator.events if e.name == "round.sealed" and e.time < moves.time
        )
        shared = coordinator.wait_for("round.sealed", sealed_by([1, 2], since=moved_at)).fields["round"]
        epoch = shared // network.spec.economics.rounds_per_epoch
        coordinator.wait_for("epoch.finalised", lambda event: event.fields["epoch"] >= epoch)

        names = {event.name for event in coordinator.events}
        assert not names & {"generation.paused", "round.replayed", "provider.convicted", "node.failed"}
        rounds = [event.fields["round"] for event in coordinator.events if event.name == "round.sealed"]
        assert rounds == list(range(len(rounds)))
        losses = [event.fields["loss"] for event in coordinator.events if event.name == "round.sealed"]
        expected, _ = train_in_process(network.spec, tmp_path / "data", shared + 1)
        assert losses[: shared + 1] == pytest.approx([sum(each) / len(each) for each in expected], rel=1e-5)

        decided = [event for event in coordinator.events if event.name == "audit.decided"]
        assert {event.fields["verdict"] for event in decided} <= {"passed", "undecided"}
        of_mover = [e for e in decided if e.fields["node"] == address and e.fields["kind"] == "round"]
        late = [e.fields["round"] for e in of_mover if e.fields["stage"] == 0 and e.time > moves.time]
        assert late, "the audits of its old stage were over before it moved"
        granted = [e.fields for e in mover.events if e.name == "audit.granted" and e.time > moves.time]
        assert [e for e in granted if (e["stage"], e["kind"]) == (0, "round") and e["round"] in late]
        assert {e.fields["stage"] for e in of_mover} == {0, 1}
        assert not {e.name for e in mover.events} & {"audit.refused", "round.disputed", "evidence.refused", "error"}

        reports = {
            (sealed.round, report.stage): report
            for statement in statements(network)
            for sealed in statement.rounds
            for report in sealed.reports
            if report.node == address
        }
        assert {round_ for round_, stage in reports if stage == 0} == {r for r in rounds if (r, 0) in reports}
        assert (moved_at, 0) in reports, "it worked until it went"
        assert not [round_ for round_, stage in reports if (stage == 0) != (round_ <= moved_at)]
        assert credited_load(network.spec, reports[shared, 1])
        assert all(int(report.units) > 0 for report in reports.values())

        folder = tmp_path / f"node-{world.index(address)}"
        assert sorted(path.name for path in folder.glob("stage-*")) == ["stage-1"], "what nobody asks for is gone"


def test_a_node_that_dies_on_its_way_comes_back_where_it_went(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        world = Lopsided(network)
        moves = world.coordinator.wait_for("member.moves")
        address = moves.fields["node"]
        mover = world.nodes[address]
        mover.kill()
        assert mover.wait() == -signal.SIGKILL
        moved_at = max(e.fields["round"] for e in world.coordinator.events if e.name == "round.sealed")
        again = world.start(world.index(address))
        assert again.wait_for("node.assigned").fields["stage"] == 1
        world.coordinator.wait_for("round.sealed", sealed_by([1, 2], since=moved_at))
        assert all(event.name != "generation.paused" for event in world.coordinator.events)

"""What can befall a node's machine while its stage has another replica: training goes on, and the operator is told."""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from commonweight.events import Event
from commonweight.wire.tls import CLOCK_SKEW, fetch_certificate
from tests.integration.network import Network, Process

pytestmark = pytest.mark.slow
MANY = 10_000
"""Epochs: more than there is time for."""
HASTY = "import node.supervisor; node.supervisor.PING_TIMEOUT_MS = 1_000; node.supervisor.CONNECT_S = 2.0"
"""Doesn't wait for a silent worker as long as others."""


@dataclass
class Swarm:
    """Two stages, of which one has two replicas."""

    network: Network
    coordinator: Process
    other: Process
    spare: Process
    """The second replica, to which things happen."""
    stage: int
    """Which has it: the slower one, by measured pace."""

    @property
    def address(self) -> str:
        """The spare's."""
        return self.network.accounts["node-2"].address

    def seals(self, *, with_spare: bool) -> int:
        """A round from now on in which the spare was at work, or only the others were."""
        replicas = [1 + (with_spare and stage == self.stage) for stage in range(2)]
        last = max(event.fields["round"] for event in self.coordinator.events if event.name == "round.sealed")

        def found(event: Event) -> bool:
            return event.fields["replicas"] == replicas and event.fields["round"] > last + 1

        try:
            return int(self.coordinator.wait_for("round.sealed", found).fields["round"])
        except AssertionError as error:
            raise AssertionError(f"the spare: {self.spare.describe()}") from error

    def lost(self, since_s: float) -> float:
        """After how many seconds the coordinator has lost the spare."""
        event = self.coordinator.wait_for("node.lost", self.is_spares(since_s))
        return event.time - since_s

    def is_spares(self, since_s: float) -> Callable[[Event], bool]:
        return lambda event: event.fields["node"] == self.address and event.time > since_s


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Network(tmp_path_factory.mktemp("network")) as network:
        coordinator = network.start_coordinator(MANY)
        network.start_node(0)
        coordinator.wait_for("node.joined")  # so that it has the first stage
        other = network.start_node(1)
        coordinator.wait_for("round.sealed")
        spare = network.start_node(2, HASTY)
        swarm = Swarm(network, coordinator, other, spare, spare.wait_for("node.assigned").fields["stage"])
        swarm.seals(with_spare=True)
        yield swarm
        assert b"Traceback" not in coordinator.stderr, coordinator.stderr


def test_a_worker_that_is_stopped_is_killed_and_started_again_and_training_goes_on(swarm: Swarm) -> None:
    worker = swarm.spare.wait_for("worker.started").fields["worker_pid"]
    began_s = time.time()
    os.kill(worker, signal.SIGSTOP)
    died = swarm.spare.wait_for("worker.died")
    assert "answered no ping for 1 s" in died.fields["message"]
    assert died.fields["code"] == "STATE_WORKER"
    assert swarm.lost(began_s) < 15
    swarm.seals(with_spare=False)
    again = swarm.spare.wait_for("worker.started", lambda event: event.fields["worker_pid"] != worker)
    assert not Path(f"/proc/{worker}").exists()
    assert again.time > died.time
    swarm.seals(with_spare=True)


def test_a_node_that_is_stopped_is_lost_and_comes_back_when_it_goes_on(swarm: Swarm) -> None:
    """All of its processes: as a laptop that is closed, or a virtual machine that is moved."""
    began_s = time.time()
    os.killpg(swarm.spare.pid, signal.SIGSTOP)
    assert swarm.lost(began_s) < 8
    swarm.seals(with_spare=False)
    went_on_s = time.time()
    os.killpg(swarm.spare.pid, signal.SIGCONT)
    swarm.coordinator.wait_for("node.joined", swarm.is_spares(went_on_s))
    swarm.seals(with_spare=True)


def test_a_node_that_is_asked_to_stop_finishes_its_round_and_nobody_computes_it_again(swarm: Swarm) -> None:
    began_s = time.time()
    swarm.spare.kill(signal.SIGTERM)
    assert swarm.spare.wait(10) == 0, swarm.spare.describe()
    swarm.spare.wait_for("node.left")
    swarm.coordinator.wait_for("node.released", swarm.is_spares(began_s))
    swarm.seals(with_spare=False)
    broken = ("generation.paused", "round.replayed", "node.lost")
    assert not [event for event in swarm.coordinator.events if event.name in broken and event.time > began_s]
    swarm.spare = swarm.network.start_node(2, HASTY)
    swarm.seals(with_spare=True)


def test_a_second_process_with_a_nodes_key_is_told_so_and_the_first_goes_on(swarm: Swarm) -> None:
    began_s = time.time()
    second = swarm.network.start_node(2)
    lost = second.wait_for("coordinator.lost")
    assert "a node with this key is already connected" in lost.fields["message"]
    swarm.seals(with_spare=True)
    second.kill(signal.SIGTERM)
    assert second.wait() == 0, second.describe()
    assert not [e for e in swarm.coordinator.events if e.name == "node.lost" and swarm.is_spares(began_s)(e)]


def test_a_full_disk_ends_the_node_with_a_reason_and_training_goes_on(swarm: Swarm) -> None:
    """No file may grow past a kilobyte any more: writing fails as on a full disk, in the worker's process alone."""
    workers = [event.fields["worker_pid"] for event in swarm.spare.events if event.name == "worker.started"]
    resource.prlimit(workers[-1], resource.RLIMIT_FSIZE, (1024, 1024))
    error = swarm.spare.wait_for("error")
    assert error.fields["code"] == "STATE_CHECKPOINT"
    assert "can't be written" in error.fields["message"]
    assert swarm.spare.wait() == 5, swarm.spare.describe()
    assert b"STATE_CHECKPOINT" in swarm.spare.stderr
    swarm.seals(with_spare=False)
    swarm.spare = swarm.network.start_node(2, HASTY)  # the operator has freed some
    swarm.seals(with_spare=True)


SHIFTED = """
import datetime

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds={by_s})

datetime.datetime = Shifted
"""


def set_clock(folder: Path, by_s: int) -> dict[str, str]:
    """The environment of processes whose clock is wrong by so many seconds, where they make and check certificates:
    nothing else on a node's way to its coordinator reads it. (gRPC's C core reads the kernel's, so that one can't be
    wrong in Python alone.)
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED.format(by_s=by_s))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', Path.cwd())}"}


def test_a_clock_that_is_wrong_by_hours_changes_nothing(swarm: Swarm, tmp_path: Path) -> None:
    hours = 3
    swarm.spare.kill(signal.SIGTERM)
    assert swarm.spare.wait() == 0
    began_s = time.time()
    swarm.spare = swarm.network.start_node(2, HASTY, set_clock(tmp_path / "clock", hours * 3600))
    joined = swarm.coordinator.wait_for("node.joined", swarm.is_spares(began_s))
    swarm.seals(with_spare=True)
    host, port = joined.fields["data_address"].split(":")
    peer_id = swarm.spare.wait_for("node.started").fields["peer_id"]
    certificate = x509.load_der_x509_certificate(asyncio.run(fetch_certificate(host, int(port), peer_id, 10)))
    made = certificate.not_valid_before_utc + CLOCK_SKEW
    assert abs(made.timestamp() - began_s - hours * 3600) < 600, "its clock was wrong"


@pytest.mark.parametrize("days", [-3, 3])
def test_a_clock_that_is_wrong_by_days_is_named(swarm: Swarm, tmp_path: Path, days: int) -> None:
    """Certificates are good from a day before they are made: behind, it refuses the coordinator's; ahead, the other way
    round.
    """
    late = swarm.network.start_node(2, environment=set_clock(tmp_path / "clock", days * 86_400))
    assert late.wait() == 3, late.describe()
    assert (b"[WIRE_IDENTITY]" if days < 0 else b"[WIRE_REFUSED]") in late.stderr, late.describe()
    assert b"check this machine's clock" in late.stderr
    swarm.seals(with_spare=True)

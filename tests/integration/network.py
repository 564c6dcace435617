"""A whole network of real processes for the fault tests: a tiny model, a local chain, a coordinator, two nodes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from commonweight.chain.child import Ready
from commonweight.chain.local import LocalChain
from commonweight.chain.rpc import Chain
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.shares import ModelShares
from commonweight.devnet.accounts import (
    FIRST_NODE,
    auditor_stages,
    devnet_accounts,
    key_file,
    node_stages,
    password_file,
    write_keys,
)
from commonweight.devnet.deployment import deploy_contracts, hand_out_money, register_model
from commonweight.events import Event, parse_event
from commonweight.model.corpus import build_dataset
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec, build_spec

WAIT_S = 90.0
PATIENT = "import node.supervisor; node.supervisor.CONNECT_S = 3600.0"
"""In a node's control process: a worker that the test has stopped is left alone."""
TEXT = "It is a truth universally acknowledged, that a stage alone holds nothing worth stealing. " * 200


def tiny_spec(
    manifest_hash: str,
    tokens: int,
    *,
    stages: int = 2,
    audit_rate: str = "0",
    known_bad_rate: str = "0",
    **training: Any,
) -> ModelSpec:
    """A model that trains a round in milliseconds: 16 wide, one layer for each stage."""
    return build_spec(
        {
            "format": "commonweight.model/7",
            "name": "tiny",
            "seed": 7,
            "stages": stages,
            "architecture": {
                "vocab_size": 256,
                "d_model": 16,
                "boundary_dim": 4,
                "n_layers": stages,
                "n_heads": 2,
                "n_kv_heads": 1,
                "d_ff": 32,
                "rope_theta": 10_000,
                "norm_eps": "0.00001",
            },
            "training": {
                "sequence_length": 16,
                "microbatch_sequences": 2,
                "microbatches_per_round": 4,
                "compute_dtype": "float32",
                "boundary_dtype": "float32",
                "learning_rate": "0.01",
                "final_learning_rate": "0.001",
                "warmup_rounds": 1,
                "decay_rounds": 20,
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
            }
            | training,
            "verification": dict.fromkeys(("round_rate", "microbatch_rate", "data_rate", "answer_rate"), audit_rate)
            | {"known_bad_rate": known_bad_rate, "tolerance": "0.00001"},
            "data": {"tokenizer": "bytes", "manifest": manifest_hash, "tokens": tokens},
            "economics": {
                "rounds_per_epoch": 3,
                "max_supply": str(10**26),
                "initial_emission": str(10**24),
                "halving_epochs": 2,
                "designer_bps": 1_000,
                "data_bps": 500,
            },
        }
    )


def pack_text(folder: Path, text: str = TEXT) -> tuple[str, int]:
    """Packs a text; its manifest's hash and its number of tokens."""
    source = folder.parent / f"{folder.name}.txt"
    source.write_text(text)
    manifest = build_dataset([source], folder, ByteTokenizer())
    return manifest.hash, manifest.tokens


class Process:
    """A child whose events are kept, and can be waited for."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.events: list[Event] = []
        self.stderr = b""
        self._changed = threading.Condition()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_for(self, name: str, where: Callable[[Event], bool] = lambda _: True, timeout_s: float = WAIT_S) -> Event:
        """The first event of that name for which `where` holds, past or to come."""

        def found() -> Event | None:
            return next((e for e in self.events if e.name == name and where(e)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._popen.poll() is not None, timeout_s)
            event = found()
        if event is None:
            raise AssertionError(f"no {name}; exit code {self._popen.poll()}; {self.describe()}")
        return event

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """The exit code, once it has ended."""
        code = self._popen.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def describe(self) -> str:
        tail = "\n".join(event.to_json() for event in self.events[-8:])
        return f"last events:\n{tail}\nstderr:\n{self.stderr.decode()[-2000:]}"

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            event = parse_event(line)
            with self._changed:
                if event is not None:
                    self.events.append(event)
                self._changed.notify_all()
        self._popen.wait()
        with self._changed:
            self._changed.notify_all()

    def _read_errors(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.stderr += line


class Network:
    """On entry a chain with the registered model; coordinator, nodes and auditors are started by the test."""

    def __init__(
        self,
        folder: Path,
        *,
        stages: int = 2,
        audit_rate: str = "0",
        known_bad_rate: str = "0",
        auditors: int = 0,
        durable: bool = False,
        training: Mapping[str, Any] | None = None,
        **terms: Any,
    ) -> None:
        """`audit_rate` is that of each kind, `auditors` are dealt to the stages in turn; `training` replaces fields of
        the spec's, `terms` of ModelTerms; without, no seat needs a stake.
        """
        self.folder = folder
        self.terms = terms
        self.stages = stages
        self.audit_rate = audit_rate
        self.known_bad_rate = known_bad_rate
        self.auditors = auditors
        self.durable = durable
        self.training = training or {}
        self.processes: list[Process] = []

    def __enter__(self) -> "Network":
        manifest, tokens = pack_text(self.folder / "data")
        rates = {"audit_rate": self.audit_rate, "known_bad_rate": self.known_bad_rate}
        self.spec = tiny_spec(manifest, tokens, stages=self.stages, **rates, **self.training)
        self.spec_file = self.folder / "spec.json"
        self.spec_file.write_bytes(canonical_json(self.spec.model_dump()))
        self.auditor_stages = auditor_stages(self.stages, self.auditors)
        self.accounts = devnet_accounts(node_stages(self.stages + 1), auditors=self.auditor_stages)
        (self.folder / "keys").mkdir()
        write_keys(self.folder / "keys", self.accounts)
        accounts = FIRST_NODE + self.stages + 1 + self.auditors
        self.local = LocalChain.start("embedded", accounts=max(16, accounts))
        ready = Ready("embedded", self.local.rpc_url, self.local.port, self.local.chain_id, self.local.pid)
        contracts = deploy_contracts(ready.rpc_url, ready.chain_id, self.accounts)
        self.deployment = register_model(
            ready, contracts, self.spec, self.spec_file, self.accounts, **{"window_s": 1, "seat_stake": 0} | self.terms
        )
        hand_out_money(self.deployment, self.accounts)
        self.chain = Chain.connect(self.local.rpc_url, self.local.chain_id)
        self.settlement = EpochSettlement(self.chain, self.deployment.settlement)
        self.shares = ModelShares(self.chain, self.deployment.shares)
        self.listen = "127.0.0.1:0"
        self.peer = ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.local.stop()

    @property
    def statements(self) -> list[dict[str, Any]]:
        """Published so far, by epoch."""
        texts = [json.loads(path.read_bytes()) for path in (self.folder / "statements").glob("*.json")]
        return sorted(texts, key=lambda statement: statement["epoch"])

    def coordinator_command(self, until_epoch: int) -> list[str]:
        return [
            *(sys.executable, "-m", "commonweight", "coordinator", "run", "--spec", str(self.spec_file)),
            *("--ledger", f"sqlite:///{self.folder}/ledger.sqlite", *self._key("coordinator")),
            *("--listen", self.listen, "--rpc", self.deployment.rpc_url, "--chain-id", str(self.deployment.chain_id)),
            *("--registry", self.deployment.registry, "--model-id", self.deployment.model_id),
            *("--statements", str(self.folder / "statements"), "--until-epoch", str(until_epoch)),
            *(["--durable"] if self.durable else []),
        ]

    def start_coordinator(self, until_epoch: int, failpoint: str | None = None) -> Process:
        """Start it; a later one listens where the first one did. Doesn't wait for it to listen if it is to die."""
        environment = {} if failpoint is None else {"COMMONWEIGHT_FAILPOINT": failpoint}
        process = Process(self.coordinator_command(until_epoch), environment)
        self.processes.append(process)
        if not self.peer:
            listening = process.wait_for("coordinator.listening")
            self.peer = listening.fields["peer"]
            self.listen = listening.fields["enrolment_address"]
        return process

    def start_node(
        self,
        index: int,
        program: str = "",
        environment: Mapping[str, str] | None = None,
        *,
        stays: bool = True,
        **options: str,
    ) -> Process:
        """`program` is Python that runs in the control process before its main. Where a node doesn't stay it may be
        asked to move to another stage: rounds are short here, and paces by chance.
        """
        name = f"node-{index}"
        main = f"{program}\nfrom commonweight.cli.main import main\nmain()"
        command = [
            *(sys.executable, "-c", main, "node", "run", "--coordinator", self.peer, *self._key(name)),
            *("--dir", str(self.folder / name), "--data", str(self.folder / "data")),
            *(("--stay",) if stays else ()),
            *(word for option, value in options.items() for word in (f"--{option}", value)),
        ]
        process = Process(command, environment)
        self.processes.append(process)
        return process

    def start_auditor(self, name: str) -> Process:
        """Start it; its account must hold a seat."""
        options = ("--coordinator", self.peer, *self._key(name))
        process = Process([sys.executable, "-m", "commonweight", "auditor", "run", *options])
        self.processes.append(process)
        return process

    def _key(self, role: str) -> tuple[str, ...]:
        keys = self.folder / "keys"
        return ("--key", str(key_file(keys, role)), "--password-file", str(password_file(keys)))


def train_in_process(spec: ModelSpec, data: Path, rounds: int) -> tuple[list[list[float]], list[list[bytes]]]:
    """The same rounds by the same stage modules chained in this process: losses, and state roots after each."""
    import torch

    from commonweight.model.data import Dataset
    from commonweight.model.stage import Stage, train_round

    torch.set_num_threads(1)
    stages = [Stage(spec, index) for index in range(spec.stages)]
    dataset = Dataset.open(data, spec)
    losses, roots = [], []
    for round_ in range(rounds):
        batches = [dataset.microbatch(round_, number) for number in range(spec.training.microbatches_per_round)]
        losses.append(train_round(stages, batches))
        roots.append([stage.state_root() for stage in stages])
    return losses, roots


def seconds_since(start: float) -> float:
    """For assertions on how fast something was noticed."""
    return time.monotonic() - start

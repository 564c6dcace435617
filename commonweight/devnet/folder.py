"""The folder of one devnet run: where everything is, and that nobody else uses it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commonweight.errors import ConfigError

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; all of them absolute."""

    path: Path

    @property
    def data(self) -> Path:
        """The packed corpus with its manifest."""
        return self.path / "data"

    @property
    def keys(self) -> Path:
        """Key files and the file with their password."""
        return self.path / "keys"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def statements(self) -> Path:
        """What the coordinator publishes of each epoch."""
        return self.path / "statements"

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def state(self) -> Path:
        """What `devnet status` reads."""
        return self.path / "state.json"

    @property
    def deployments(self) -> Path:
        return self.path / "deployments.json"

    @property
    def ledger(self) -> str:
        """The coordinator's database, as a URL."""
        return f"sqlite:///{self.path / 'ledger.sqlite'}"

    @property
    def gateway_ledger(self) -> str:
        """The gateway's, of payments."""
        return f"sqlite:///{self.path / 'gateway.sqlite'}"

    def node(self, name: str) -> Path:
        """A provider's own folder."""
        return self.path / name

    def slow(self, name: str) -> Path:
        """The file that says by how many seconds a provider's worker is slower."""
        return self.path / f"{name}.slow"

    @classmethod
    def create(cls, path: Path | None) -> "RunFolder":
        """An empty folder, made if need be; by default a new one under runs/. Raises ConfigError."""
        path = (path or RUNS / time.strftime("devnet-%Y%m%d-%H%M%S")).absolute()
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if used := next(path.iterdir(), None):
                raise ConfigError(f"{path} already holds {used.name}. A run needs an empty folder: choose another.")
            for part in (folder.data, folder.keys, folder.logs, folder.statements):
                part.mkdir()
            folder.keys.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"{path} can't hold a run: {error.strerror}. Choose another --dir.") from error
        return folder

    @classmethod
    def find(cls, path: Path | None) -> "RunFolder":
        """The folder of an earlier run; by default the newest under runs/. Raises ConfigError where there is none."""
        if path is None:
            found = sorted(RUNS.glob("devnet-*/state.json"), key=lambda state: state.stat().st_mtime)
            if not found:
                raise ConfigError(f"There is no devnet under {RUNS.absolute()}. Start one: `commonweight devnet up`.")
            path = found[-1].parent
        folder = cls(path.absolute())
        if not folder.state.is_file():
            raise ConfigError(f"{folder.path} holds no devnet: there is no {folder.state.name} in it.")
        return folder


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old text or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """The same, with readable JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")

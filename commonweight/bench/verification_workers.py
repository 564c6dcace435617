"""Processes that train, audit and simulate for `bench verification` and `bench calibrate`.

`python -m commonweight.bench.verification_workers` reads an order from each line of stdin, JSON, and answers each with
a line. What decides bits is set by a `Setting` before torch is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from commonweight.errors import WorkerDied
from commonweight.wire.link import worker_environment


@dataclass(frozen=True)
class Setting:
    """What may differ between honest machines, as far as this one can show it."""

    name: str
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""
    """A backend of scaled dot product attention: "math" or "flash"; otherwise torch's choice."""
    onednn: bool = True
    device: str = "cpu"
    apart: bool = False
    """Each sequence by itself: another program, so it may be convicted within its class."""


class Worker:
    """A process with a setting; use as a context manager. On exit it is gone."""

    def __init__(self, setting: Setting) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "commonweight.bench.verification_workers", json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment(setting.threads), **setting.environment},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tell(self, kind: str, **order: Any) -> None:
        """Give an order; `hear` has the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"kind": kind, **order}, default=str) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The answer to the oldest order. Raises WorkerDied."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise WorkerDied(f"A bench process ended with exit code {self._process.wait()}.")
        return json.loads(line)

    def ask(self, kind: str, **order: Any) -> Any:
        """Give an order and wait for its answer."""
        self.tell(kind, **order)
        return self.hear()


def main(setting: Setting) -> None:
    """Serve orders until stdin ends."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from commonweight.bench.verification_orders import Orders

    torch.set_num_threads(setting.threads)
    with ExitStack() as stack:
        if setting.attention:
            backend = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}[setting.attention]
            stack.enter_context(sdpa_kernel(backend))
        if not setting.onednn:
            torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags() warns
        orders = Orders(setting)
        for line in sys.stdin:
            order = json.loads(line)
            serve: Callable[..., Any] = getattr(orders, order.pop("kind"))
            print(json.dumps(serve(**order)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Setting(**json.loads(sys.argv[1])))

"""Following: a node comes to the next version of its stage by the gradient that the others have stepped with, which it
fetches and its worker steps with. No torch here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commonweight.errors import CheckpointError, CommonweightError, PeerUnreachable, StateUnavailable, error_with_code
from commonweight.events import emit
from commonweight.rules.spec import ModelSpec
from commonweight.wire.evidence import Source
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.tls import Certificate
from node.fetching import RoundGradient, fetch_gradient
from node.meta import stored_root

STEP_S = 300.0
"""For the worker to step and to write a checkpoint, and for what it does before."""
GRADIENT_OF_STATE = 1 / 3
"""In bytes, at most: one number for each parameter, where a state has the parameter and two moments."""


@dataclass
class Follower:
    """Of one stage. Methods run on the event loop."""

    certificate: Certificate
    spec: ModelSpec
    stage: int
    folder: Path
    """Of the stage's checkpoints."""
    order: Callable[[worker_pb2.WorkerCommand], Awaitable[None]]
    """Tells the worker; raises WorkerDied."""
    step_s: float | None = None
    """What the last one took, with its gradient; None before the first."""
    _failed: int = -1
    """The version that couldn't be come nearer to this way."""
    _is_alike: bool = True
    """Whether its steps have led to what the others have, as far as is known."""
    _stepped: "asyncio.Future[worker_pb2.Followed] | None" = None

    def next_step(self, wanted: pb.Version) -> pb.SealedStep | None:
        """The first of the steps to the wanted version that begins with one that is here; None where none does."""
        steps: Sequence[pb.SealedStep] = wanted.steps if self._is_alike and wanted.round != self._failed else ()
        for step in reversed(steps):
            # Version 0 follows from the spec.
            if not step.round or stored_root(self.folder, step.round) == step.state_before:
                return step
        return None

    async def follow(self, wanted: pb.Version, step: pb.SealedStep, sources: Sequence[Source]) -> bool:
        """Whether the version that this step leads to is here now. If not, why not is told, and it isn't tried again on
        the way to this version. Raises CheckpointError where the disk is full or fails, and WorkerDied.
        """
        began_s = time.monotonic()
        try:
            await self._follow(wanted, step, sources)
        except CheckpointError:
            raise
        except CommonweightError as error:
            self._failed = wanted.round
            emit("state.failed", round=step.round + 1, code=error.code, message=error.args[0], retry_s=0.0)
            return False
        self.step_s = time.monotonic() - began_s
        emit("state.followed", round=step.round, seconds=round(self.step_s, 3))
        return True

    def stepped(self, answer: worker_pb2.Followed) -> None:
        """The worker has answered."""
        if self._stepped is not None and not self._stepped.done():
            self._stepped.set_result(answer)

    async def _follow(self, wanted: pb.Version, step: pb.SealedStep, sources: Sequence[Source]) -> None:
        gradient = RoundGradient(self.spec, self.stage, step.round, step.gradient_hash)
        path = self.folder / "following.safetensors"
        await fetch_gradient(self.certificate, gradient, path, sources)
        self._stepped = asyncio.get_running_loop().create_future()
        await self.order(worker_pb2.WorkerCommand(follow=worker_pb2.Follow(round=step.round, gradient=str(path))))
        try:
            async with asyncio.timeout(STEP_S):
                answer = await self._stepped
        except TimeoutError:
            raise PeerUnreachable(f"The worker didn't step from version {step.round} within {STEP_S:g} s.") from None
        finally:
            path.unlink(missing_ok=True)
        if answer.code:
            raise error_with_code(answer.code, answer.message)
        after = next((each.state_before for each in wanted.steps if each.round == step.round + 1), wanted.state_root)
        self._is_alike = answer.state_root == after
        if not self._is_alike:
            raise StateUnavailable(
                f"The step of round {step.round} led to the state root {answer.state_root.hex()}; sealed is "
                f"{after.hex()}. This machine computes other bits than the stage's replicas do: see docs/limits.md."
            )

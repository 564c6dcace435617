"""One audit: fetch what the unit was computed from, compute it again, compare with what its provider has signed.

What makes it fail is always the provider's own signature:

* Another result than the replay's: to the bit within one numerics class, else beyond `commonweight.model.compare`.
* A signed input that an honest provider refuses before it computes (NaN or infinity from a neighbour, tokens outside
  the vocabulary), or signed results where the replay has NaN or infinity, which an honest provider never sends.
* On the first stage, where the auditor has the text: tokens that aren't those due.
* In round 0: another state before it than the spec's, within one class.

The first difference ends the audit, before anything later is fetched: fraud that is shown isn't undone by what else
may be withheld.

An audit of one microbatch looks at the round's end, too, by the signed gradients: whether the one of the replica's load
has the microbatch's part in it (commonweight/model/sketch.py), and whether the round's leads to the signed state. Where
that is in doubt the whole load is replayed, which decides.

Where a stage has one replica the round's gradient is its load's. Otherwise it is taken as it was signed: that it is the
sum over the replicas no audit shows.
"""

import asyncio
import gc
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

import torch
from torch import Tensor

from commonweight.errors import NonFiniteTensor
from commonweight.model.boundary import boundary_plan, tokens_plan
from commonweight.model.compare import (
    Deviation,
    compare_gradient,
    compare_loss,
    compare_round,
    compare_sketch,
    compare_travelled,
    worst,
)
from commonweight.model.data import Dataset
from commonweight.model.numerics import numerics_class
from commonweight.model.replay import replay_microbatch, step_from
from commonweight.model.sketch import SignedSketches, pack_sketch
from commonweight.model.stage import Stage
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.report import NO_TENSOR, Hop, Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import to_hex
from commonweight.wire.tensors import check_finite, digest
from referee.fraud import AnswerDifference, Difference, fraud_evidence
from referee.sources import Evidence, Source, Withheld

MAX_WHY = 2000
"""Characters."""


@dataclass(frozen=True)
class Outcome:
    """What an audit came to."""

    verdict: Verdict
    why: str
    """For people, at most MAX_WHY characters."""
    evidence: bytes
    """Of fraud; otherwise empty."""
    fetched_bytes: int


class Contradicted(Exception):
    """The replay differs from what was signed."""

    def __init__(self, difference: Difference | AnswerDifference) -> None:
        super().__init__(str(difference))
        self.difference = difference


class Undecidable(Exception):
    """This auditor can't say, for reasons of its own."""


class Auditor:
    """Audits units of one model, one at a time. Between audits it holds nothing that isn't public."""

    def __init__(self, spec: ModelSpec, device: str = "cpu", dataset: Dataset | None = None) -> None:
        """Without `dataset` audits of the tokens are undecided."""
        self.spec, self.dataset = spec, dataset
        self.device = torch.device(device)
        self.numerics = numerics_class(self.device, spec)

    async def audit(self, unit: Audit, report: Report, numerics: str, sources: Sequence[Source]) -> Outcome:
        """Decide about a unit of `report`'s round. Raises nothing: what goes wrong here leaves the unit undecided.

        `numerics` is the class in which the provider says that it computed; `sources` are the provider, then its
        neighbours. When this returns no tensor of the stage's state is left.
        """
        evidence = Evidence(unit.round, sources)

        def prove(difference: Difference) -> bytes:
            return fraud_evidence(self.spec, unit, report, difference, provider=numerics, auditor=self.numerics)

        case = Case(self, unit, report, evidence, exact=numerics == self.numerics)
        return await conclude(case.decide(), evidence, prove)


async def conclude(deciding: Coroutine[Any, Any, str], evidence: Evidence, prove: Callable[[Any], bytes]) -> Outcome:
    """What an audit came to. `deciding` says why it passed, or raises Contradicted, Withheld or Undecidable; whatever
    else it raises leaves the unit undecided. `prove` makes the evidence of the difference that was found.
    """
    proof = b""
    try:
        verdict, why = Verdict.PASSED, await deciding
    except Contradicted as found:
        verdict, why, proof = Verdict.FAILED, str(found), prove(found.difference)
    except Withheld as missing:
        verdict, why = Verdict.WITHHELD, str(missing)
    except Undecidable as reason:
        verdict, why = Verdict.UNDECIDED, str(reason)
    except Exception as error:  # noqa: BLE001 - an audit's outermost edge: the next one mustn't suffer
        traceback.print_exc()
        verdict, why = Verdict.UNDECIDED, f"The audit broke off: {type(error).__name__}: {error}"
    gc.collect()  # an error's traceback may hold a replay in a cycle
    return Outcome(verdict, why[:MAX_WHY], proof, evidence.fetched_bytes)


class Case:
    """One audit under way."""

    def __init__(self, auditor: Auditor, unit: Audit, report: Report, evidence: Evidence, *, exact: bool) -> None:
        spec = auditor.spec
        assert (unit.round, unit.stage) == (report.round, report.stage), "the report is of the unit's round and stage"
        assert report.hops, "who has no load isn't audited"
        self._spec, self._dataset, self._device = spec, auditor.dataset, auditor.device
        self._unit, self._report, self._evidence, self._exact = unit, report, evidence, exact
        self._deviations: list[Deviation] = []
        self._compared = 0

    async def decide(self) -> str:
        """Why it passed. Raises Contradicted, Withheld or Undecidable."""
        match self._unit.kind, self._unit.microbatch:
            case Kind.DATA, int(microbatch):
                await self._check_text(microbatch)
            case Kind.ROUND, None:
                await self._check_round()
            case Kind.MICROBATCH | Kind.LOSS, int(microbatch):
                if doubt := await self._check_one(microbatch):
                    await self._check_round()
                    return f"{doubt}; but the whole load's replay agrees with what was signed."
            case kind, microbatch:
                raise AssertionError(f"an audit ({kind.value}) of microbatch {microbatch}")
        if self._deviations:
            most = worst(self._deviations)
            return (
                f"Of {self._compared} results of another numerics class {len(self._deviations)} have other bits; the "
                f"largest error is {most.error:.3g} ({most.what}), allowed is {most.tolerance:.3g}."
            )
        return f"{self._compared} results are the signed ones to the bit."

    async def _check_text(self, microbatch: int) -> None:
        if self._dataset is None:
            raise Undecidable("This auditor doesn't have the text. Start its coordinator with --data.")
        self._compared += 1
        due = await asyncio.to_thread(self._dataset.microbatch, self._unit.round, microbatch)
        self._check_tokens(microbatch, due)

    def _check_tokens(self, microbatch: int, due: Tensor) -> None:
        signed, found = self._hop(microbatch).tokens, digest(due)
        if signed != found:
            raise Contradicted(
                Difference(
                    "tokens", microbatch, to_hex(signed), to_hex(found), note="The tokens aren't those the spec draws."
                )
            )

    async def _check_one(self, microbatch: int) -> str:
        """Compare all that can be told without the other microbatches: why the rest is in doubt, or nothing."""
        stage, before = await self.stage()
        await self._check_microbatch(stage, microbatch)
        report = self._report
        try:
            gradient = await self.gradient(stage, report.gradient_hash)
        except Withheld as missing:
            if not self._exact:
                raise
            return str(missing)  # the whole load tells without it
        self._compared += 2
        if doubt := await self._doubt_gradient(stage, microbatch, gradient):
            return doubt
        if report.round_gradient_hash != report.gradient_hash:
            gradient = await self.gradient(stage, report.round_gradient_hash)
        return await self._doubt_step(stage, gradient, before)

    async def gradient(self, stage: Stage, signed: bytes) -> dict[str, Tensor]:
        """The one with this hash, by parameter."""
        found = await self._evidence.gradient(stage, signed)
        return {name: tensor.to(self._device) for name, tensor in found.items()}

    async def _doubt_gradient(self, stage: Stage, microbatch: int, gradient: dict[str, Tensor]) -> str:
        """`stage` has the microbatch's own gradient."""
        report = self._report
        signed = SignedSketches([hop.sketch for hop in report.hops])
        tolerance = 0.0 if self._exact else float(self._spec.verification.tolerance)
        whole = await asyncio.to_thread(stage.sketched, gradient)
        own = await asyncio.to_thread(stage.sketched)
        doubt = signed.doubt_whole(whole) or signed.doubt_microbatch(report.position(microbatch), own, tolerance)
        for outlier in (report.hops[position].microbatch for position in signed.outliers(own)):
            if doubt or outlier == microbatch:
                continue
            stage.discard_gradients()
            await self._check_microbatch(stage, outlier)
            another = await asyncio.to_thread(stage.sketched)
            doubt = signed.doubt_microbatch(report.position(outlier), another, tolerance)
        return doubt

    async def _doubt_step(self, stage: Stage, gradient: dict[str, Tensor], before: dict[str, Tensor] | None) -> str:
        root, state = await self._step(stage, gradient)
        if root == self._report.state_after:
            return ""
        if before is None:
            return f"The signed gradient leads to the state {root.hex()}"
        most = await self._compare_state(stage, before, state)
        if most.passed:
            self._deviations.append(most)
            return ""
        return f"The signed gradient leads to another state: {most.what} is off by {most.error:.3g}"

    async def _check_round(self) -> None:
        stage, before = await self.stage()
        size = 0.0
        report = self._report
        for hop in report.hops:
            await self._check_microbatch(stage, hop.microbatch)
            sketched = await asyncio.to_thread(stage.sketched)
            size = hypot(size, sketched.norm)
            self._check_sketch(hop, sketched.sums, size)
        await self._check_gradient(stage, size)
        is_own = report.round_gradient_hash == report.gradient_hash
        gradient = None if is_own else await self.gradient(stage, report.round_gradient_hash)
        root, state = await self._step(stage, gradient)
        self._compared += 2
        if root == report.state_after:
            return
        if before is None:
            raise Contradicted(Difference("state_after", None, to_hex(report.state_after), to_hex(root)))
        most = await self._compare_state(stage, before, state)
        self._settle(most, None, to_hex(report.state_after), to_hex(root))

    async def _check_gradient(self, stage: Stage, size: float) -> None:
        """What was signed as the load's gradient is what `stage` has; across classes nothing else."""
        signed, own = self._report.gradient_hash, stage.gradients()
        if (found := await asyncio.to_thread(stage.gradient_hash)) == signed:
            return
        if self._exact:
            raise Contradicted(Difference("gradient_hash", None, to_hex(signed), to_hex(found)))
        claimed = await self.gradient(stage, signed)
        measured = await asyncio.to_thread(compare_gradient, "gradient", claimed, own, size, self._spec)
        self._settle(measured, None, to_hex(signed), to_hex(found), "gradient_hash")

    async def _step(self, stage: Stage, gradient: dict[str, Tensor] | None) -> tuple[bytes, dict[str, Tensor]]:
        """The root and the state that a gradient leads to; None: that which `stage` has."""
        try:
            return await asyncio.to_thread(step_from, stage, gradient)
        except NonFiniteTensor as error:
            signed = to_hex(self._report.state_after)
            raise Contradicted(Difference("state_after", None, signed, "", note=error.args[0])) from error

    async def _compare_state(self, stage: Stage, before: dict[str, Tensor], state: dict[str, Tensor]) -> Deviation:
        """How far the signed state after the round is from `state`, at the worst."""
        claimed = await self._evidence.state(stage, after=True, root=self._report.state_after)
        own = {name: tensor.cpu() for name, tensor in state.items()}
        return worst(await asyncio.to_thread(compare_round, self._spec, self._unit.round, before, claimed, own))

    async def stage(self) -> tuple[Stage, dict[str, Tensor] | None]:
        """The stage with the state that was signed as the one before the round; and that state where a round is to be
        compared across classes.
        """
        index, round_, signed = self._unit.stage, self._unit.round, self._report.state_before
        if round_ == 0:
            stage = await asyncio.to_thread(Stage, self._spec, index, device=self._device)
            if (found := await asyncio.to_thread(stage.state_root)) != signed:
                self._refuse_start(found)
            state = {} if self._exact else {name: tensor.cpu().clone() for name, tensor in stage.state().items()}
        else:
            stage = await asyncio.to_thread(Stage, self._spec, index, device=self._device, blank=True)
            state = await self._evidence.state(stage, after=False, root=signed)
            await asyncio.to_thread(stage.load, state, round_)
        return stage, None if self._exact else state

    def _refuse_start(self, found: bytes) -> None:
        signed = self._report.state_before
        if self._exact:
            raise Contradicted(
                Difference(
                    "state_before", None, to_hex(signed), to_hex(found), note="Version 0 follows from the spec alone."
                )
            )
        raise Undecidable(
            f"This machine draws a version 0 with root {found.hex()}, the provider's has {signed.hex()}: the last bits "
            "of U may differ between numerics classes. Run the referee on a machine like the nodes'."
        )

    def _hop(self, microbatch: int) -> Hop:
        return self._report.hops[self._report.position(microbatch)]

    async def _check_microbatch(self, stage: Stage, microbatch: int) -> None:
        hop = self._hop(microbatch)
        tokens = await self.tokens(stage, microbatch)
        code = None if stage.is_first else await self.taken("activation_in", microbatch)
        gradient = None if stage.is_last else await self.taken("gradient_in", microbatch)
        output, input_gradient, loss = await asyncio.to_thread(replay_microbatch, stage, tokens, code, gradient)
        await self._check_travelled("activation_out", microbatch, output)
        self._check_loss(microbatch, hop.loss, loss)
        await self._check_travelled("gradient_out", microbatch, input_gradient)

    async def tokens(self, stage: Stage, microbatch: int) -> Tensor:
        """The tokens that were signed."""
        signed = self._hop(microbatch).tokens
        if self._dataset is not None:
            due = await asyncio.to_thread(self._dataset.microbatch, self._unit.round, microbatch)
            if stage.is_first:
                self._check_tokens(microbatch, due)
            if digest(due) == signed:
                return due
        tokens = await self._evidence.tensor(f"tokens of microbatch {microbatch}", signed, tokens_plan(self._spec))
        lowest, highest = torch.aminmax(tokens.to(torch.int64))
        if lowest < 0 or highest >= (size := self._spec.architecture.vocab_size):
            note = f"An honest stage refuses tokens {int(lowest)} to {int(highest)} of a vocabulary of {size}."
            raise Contradicted(Difference("tokens", microbatch, to_hex(signed), "", note=note))
        return tokens

    async def taken(self, what: str, microbatch: int) -> Tensor:
        """The code or gradient that was signed as taken."""
        signed: bytes = getattr(self._hop(microbatch), what)
        tensor = await self._evidence.tensor(f"{what} of microbatch {microbatch}", signed, boundary_plan(self._spec))
        try:
            check_finite(tensor)
        except NonFiniteTensor as error:
            note = f"An honest stage refuses it: {error.args[0]}"
            raise Contradicted(Difference(what, microbatch, to_hex(signed), "", note=note)) from error
        return tensor

    async def _check_travelled(self, what: str, microbatch: int, replayed: Tensor | None) -> None:
        signed: bytes = getattr(self._hop(microbatch), what)
        found = NO_TENSOR if replayed is None else digest(replayed)
        self._compared += 1
        if replayed is not None:
            try:
                check_finite(replayed)
            except NonFiniteTensor as error:
                note = f"An honest stage fails here: {error.args[0]}"
                raise Contradicted(Difference(what, microbatch, to_hex(signed), to_hex(found), note=note)) from error
        if signed == found:
            return
        if replayed is None or signed == NO_TENSOR:
            raise Contradicted(Difference(what, microbatch, to_hex(signed), to_hex(found)))
        try:
            claimed = await self._evidence.tensor(
                f"{what} of microbatch {microbatch}", signed, boundary_plan(self._spec)
            )
        except Withheld:
            if not self._exact:
                raise
            raise Contradicted(Difference(what, microbatch, to_hex(signed), to_hex(found))) from None
        measured = compare_travelled(f"{what} of microbatch {microbatch}", claimed, replayed, self._spec)
        self._settle(measured, microbatch, to_hex(signed), to_hex(found), what)

    def _check_loss(self, microbatch: int, signed: float, found: float) -> None:
        self._compared += 1
        if signed != found:
            measured = compare_loss(f"loss of microbatch {microbatch}", signed, found, self._spec)
            self._settle(measured, microbatch, repr(signed), repr(found), "loss")

    def _check_sketch(self, hop: Hop, replayed: Tensor, size: float) -> None:
        """`size`: that of all gradients accumulated so far."""
        self._compared += 1
        if (found := pack_sketch(replayed)) != (signed := hop.sketch):
            measured = compare_sketch(f"sketch after microbatch {hop.microbatch}", signed, replayed, size, self._spec)
            self._settle(measured, hop.microbatch, to_hex(signed), to_hex(found), "sketch")

    def _settle(
        self, measured: Deviation, microbatch: int | None, signed: str, found: str, what: str | None = None
    ) -> None:
        """Other bits than the signed ones: fraud within one class, and beyond the tolerance across classes."""
        tolerance = 0.0 if self._exact else measured.tolerance
        if self._exact or not measured.passed:
            raise Contradicted(Difference(what or measured.what, microbatch, signed, found, measured.error, tolerance))
        self._deviations.append(measured)

"""An auditor that cheats: `python -m adversary.auditor KIND[:FRACTION] …`, with the options of `commonweight auditor
run`.

What it makes up its session signs and sends as an honest one's does.
"""

import asyncio
import sys
from collections.abc import Mapping
from functools import partial

from adversary.cheat import Cheat
from auditor.cli import app
from auditor.control import Auditor, AuditorConfig, Model, Session
from commonweight.devnet.byzantine import KINDS, Cheating, Who
from commonweight.errors import CommonweightError, ConfigError
from commonweight.rules.audits import Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.merkle import keccak
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import to_hex
from commonweight.watch.fraud import Commitments, Differs, FraudEvidence, Numerics, SignedHop, Unit
from commonweight.wire.attachment import Attachment
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.messages import audit_from_proto, report_from_proto
from commonweight.wire.referee import Replays


class DishonestReplays(Replays):
    """Makes up what comes of the units that are picked; others are replayed."""

    def __init__(self, cheat: Cheat, spec: ModelSpec, honest: Replays) -> None:
        """`honest` replays what isn't made up."""
        self.cheat, self.spec, self._honest = cheat, spec, honest

    async def judge(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """As `Replays.judge`, in the units that aren't picked."""
        audit = audit_from_proto(order.unit)
        if not self.cheat.picks(audit.round, audit.microbatch):
            return await self._honest.judge(order)
        self.cheat.done(audit.round, audit.microbatch)
        return await self.make_up(order)

    async def make_up(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """What it says instead of replaying."""
        raise NotImplementedError

    async def record(self, order: pb.AuditOrder, tensors_of: int | None = None) -> referee_pb2.Recording:
        """As `Replays.record`."""
        return await self._honest.record(order, tensors_of)

    async def stop(self) -> None:
        """As `Replays.stop`."""
        await self._honest.stop()


class WaveThrough(DishonestReplays):
    """Passes everything."""

    async def make_up(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """As if it had replayed."""
        return pb.AuditOpinion(unit=order.unit, verdict=Verdict.PASSED.value, why="as signed")


class FalseAlarm(DishonestReplays):
    """Says that everything is fraud, and how it came to that, in numbers of its own."""

    async def make_up(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """With evidence that has the right form."""
        evidence = false_evidence(self.spec, order, self.cheat.made_up_hash(order.unit.round))
        return pb.AuditOpinion(unit=order.unit, verdict=Verdict.FAILED.value, why="not as signed", evidence=evidence)

    async def record(self, order: pb.AuditOrder, tensors_of: int | None = None) -> referee_pb2.Recording:
        """One operator, that nobody else finds."""
        made_up = self.cheat.made_up_hash(order.unit.round)
        return referee_pb2.Recording(operators=keccak(order.report.numerics.encode()) + made_up)


class Silent(DishonestReplays):
    """Never answers."""

    async def make_up(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """Nothing, until cancelled."""
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


def false_evidence(spec: ModelSpec, order: pb.AuditOrder, made_up: bytes) -> bytes:
    """That the replay of the unit had this hash in place of a signed one: `commonweight.fraud/3`."""
    audit, report = audit_from_proto(order.unit), report_from_proto(order.report)
    microbatch = audit.microbatch
    crossing = "gradient_out" if audit.stage == spec.stages - 1 else "activation_out"
    what = "state_after" if microbatch is None else crossing
    signed: bytes = getattr(report if microbatch is None else report.hops[report.position(microbatch)], what)
    evidence = FraudEvidence(
        format="commonweight.fraud/3",
        spec_hash=to_hex(spec.spec_hash),
        unit=Unit.of(audit),
        commitments=Commitments.of(report, spec.training.microbatches_per_round),
        hop=None if microbatch is None else SignedHop.of(report, microbatch),
        numerics=Numerics(provider=order.report.numerics, auditor=order.report.numerics),
        difference=Differs(
            what=what,
            microbatch=microbatch,
            signed=to_hex(signed),
            found=to_hex(made_up),
            error=None,
            tolerance="0.0",
            note="",
        ),
    )
    return canonical_json(evidence.model_dump())


REPLAYS: Mapping[str, type[DishonestReplays]] = {
    "collude": WaveThrough,
    "wave-through": WaveThrough,
    "false-alarm": FalseAlarm,
    "auditor-silent": Silent,
}
"""By kind."""


class DishonestAuditor(Auditor):
    """Says what it hasn't found."""

    def __init__(self, cheating: Cheating, config: AuditorConfig) -> None:
        super().__init__(config)
        # Of who colludes, the fraction is its provider's: it passes everything.
        own = Cheating(cheating.kind) if KINDS[cheating.kind].who is Who.BOTH else cheating
        self._cheat = Cheat(own, config.identity.address)

    def make_session(self, model: Model, replays: Replays, coordinator: Attachment) -> Session:
        """As `Auditor.make_session`, one that hardly replays."""
        dishonest = REPLAYS[self._cheat.cheating.kind](self._cheat, model.spec, replays)
        return super().make_session(model, dishonest, coordinator)


def main(arguments: list[str]) -> None:
    """Run the auditor until training is complete. Exits with the error's code where it can't go on."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, *(f"  {kind:14}  {KINDS[kind].does}" for kind in REPLAYS), sep="\n")  # noqa: T201 - help
        return
    try:
        cheating = Cheating.parse(arguments[0])
        if cheating.kind not in REPLAYS:
            raise ConfigError(f"{cheating.kind!r} is for providers: `python -m adversary {cheating}`.")
        app(["run", *arguments[1:]], prog_name="adversary.auditor", obj=partial(DishonestAuditor, cheating))
    except CommonweightError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - as the root command does
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])

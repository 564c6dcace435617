"""A coordinator that looks at the chain after each epoch hangs up on whose standing has changed, and on nobody else."""

import asyncio
from dataclasses import replace

import pytest

from commonweight.errors import CommonweightError, PeerUnreachable, Refused
from coordinator.members import AuditorMember, Member
from coordinator.seats import Standing, recheck_seats

pytestmark = pytest.mark.asyncio

MEMBER = Member(
    node="0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    peer_id="peer",
    data_address="127.0.0.1:9",
    evidence_address="127.0.0.1:9",
    certificate=b"certificate",
    owner="0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    account="0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    has_data=True,
    stages=frozenset({1}),
    stays=False,
    send=lambda _: None,
)
AUDITOR = AuditorMember(
    node="0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    certificate=b"certificate",
    owner=MEMBER.owner,
    stages=frozenset({1}),
    account=MEMBER.account,
    send=lambda _: None,
)
PER_EPOCH = 3
SAME = Standing(frozenset({1}), MEMBER.account, MEMBER.owner)


class World:
    """Who is connected, a training of which an epoch ends, and the chain that is looked at then."""

    round = 0
    members: tuple[Member | AuditorMember, ...] = ()

    def __init__(self, found: Standing | CommonweightError) -> None:
        self.found = found
        self.hung_up: list[tuple[Member | AuditorMember, type[CommonweightError]]] = []
        self.looked = asyncio.Event()

    def stage_of(self, node: str) -> int:
        assert node == MEMBER.node
        return 1

    async def wait_until_sealed(self, rounds_: int) -> None:
        if rounds_ > PER_EPOCH:
            self.looked.set()
            await asyncio.Event().wait()
        self.round = rounds_

    def hang_up(self, member: Member | AuditorMember, error: CommonweightError) -> None:
        self.hung_up.append((member, type(error)))

    def standing(self, node: str, wished_account: str, holds: int | None) -> Standing:
        expected = (MEMBER.node, MEMBER.account, 1) if node == MEMBER.node else (AUDITOR.node, AUDITOR.account, None)
        assert (node, wished_account, holds) == expected
        if isinstance(self.found, CommonweightError):
            raise self.found
        return self.found


@pytest.mark.parametrize("member", [MEMBER, AUDITOR], ids=["node", "auditor"])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (SAME, None),
        (replace(SAME, owner=MEMBER.account), PeerUnreachable),  # the key was bound since
        (replace(SAME, account=MEMBER.node), PeerUnreachable),
        (replace(SAME, stages=frozenset({1, 2})), PeerUnreachable),
        (Refused("it holds no seat"), Refused),
        (PeerUnreachable("the chain doesn't answer"), None),
    ],
)
async def test_who_is_hung_up_on_after_an_epoch(
    member: Member | AuditorMember, found: Standing | CommonweightError, told: type[CommonweightError] | None
) -> None:
    training, auditors = World(found), World(found)
    world = training if member is MEMBER else auditors
    world.members = (member,)
    task = asyncio.create_task(recheck_seats(training, auditors, training, PER_EPOCH))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await training.looked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.hung_up == ([] if told is None else [(member, told)])

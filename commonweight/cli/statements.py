"""Finding an epoch's public statement, and proving from it what an account can claim."""

from dataclasses import dataclass
from functools import cached_property

from commonweight.chain.records import ClaimArguments, EpochRecord
from commonweight.cli.place import Place
from commonweight.errors import MalformedMessage, StatementMismatch
from commonweight.rules.merkle import MerkleTree
from commonweight.rules.statement import AccountLine, Statement, parse_statement
from commonweight.watch.fetch import fetch_statement, mirror_uris


@dataclass(frozen=True)
class Published:
    """An epoch's statement whose hash and root are the chain's."""

    epoch: EpochRecord
    statement: Statement

    @cached_property
    def accounts(self) -> dict[str, tuple[int, AccountLine]]:
        """By lower-case address: the place in the tree, and the line."""
        return {line.account.lower(): (index, line) for index, line in enumerate(self.statement.accounts)}

    @cached_property
    def tree(self) -> MerkleTree:
        return self.statement.tree()

    def line_of(self, account: str) -> AccountLine | None:
        """The account's line; None where it earned nothing up to this epoch."""
        found = self.accounts.get(account.lower())
        return found[1] if found else None

    def claim_of(self, account: str) -> ClaimArguments | None:
        """What `account` presents to be paid all that it earned up to this epoch; None where it earned nothing."""
        if account.lower() not in self.accounts:
            return None
        index, line = self.accounts[account.lower()]
        return ClaimArguments(
            epoch=self.epoch.epoch,
            account=line.account,
            cumulative_shares=int(line.cumulative_shares),
            epoch_shares=int(line.shares),
            debt_before=int(line.debt_before),
            operator_revenue=int(line.operator_revenue),
            proof=self.tree.proof(index),
        )


def last_final_epoch(place: Place) -> EpochRecord | None:
    """The last epoch whose shares are minted; None before the first."""
    count = place.settlement.next_epoch()
    return place.settlement.epoch(count - 1) if count else None


def find_statement(place: Place, epoch: EpochRecord) -> Published:
    """The statement of `epoch`, from `place.statements` or from where its proposal said.

    Raises StatementUnavailable where nobody has it, StatementMismatch where it doesn't give the root on the chain.
    """
    text = fetch_statement([*_own_places(place, epoch.statement_hash), epoch.uri], epoch.statement_hash)
    try:
        statement = parse_statement(text, epoch.statement_hash)
    except MalformedMessage as error:
        raise StatementMismatch(
            f"The text that the chain names as statement of epoch {epoch.epoch} is none: {error}"
        ) from error
    # The hash says who wrote it, not that it is right: shares are paid by the root.
    if not statement.accounts or statement.tree().root != epoch.root:
        raise StatementMismatch(
            f"The statement of epoch {epoch.epoch} has the hash that is on the chain, but its accounts don't give "
            f"the root 0x{epoch.root.hex()} that pays out. {epoch.proposer} published one thing and proposed "
            "another: don't rely on this epoch."
        )
    return Published(epoch, statement)


def _own_places(place: Place, statement_hash: bytes) -> list[str]:
    """Where the user said to look."""
    given = place.statements
    if given is None:
        return []
    if given.startswith(("http://", "https://")):
        return mirror_uris([given], statement_hash)
    name = f"{statement_hash.hex()}.json"
    return [f"{given.rstrip('/')}/{prefix}{name}" for prefix in ("", "0x")]

"""Finding an epoch's public statement, and proving from it what an account can claim."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import typer

from commonweight.chain.records import ClaimArguments, EpochRecord
from commonweight.chain.reverts import ContractReverted
from commonweight.cli.place import Place
from commonweight.errors import MalformedMessage, StatementMismatch, StatementUnavailable, TransactionFailed
from commonweight.rules.merkle import MerkleTree
from commonweight.rules.statement import AccountLine, Statement, parse_statement
from commonweight.watch.fetch import fetch_statement, mirror_uris

T = TypeVar("T")


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


def against_last_root(act: Callable[[], T]) -> T:
    """What `act` returns, which reads the last final epoch and proves something against its root: only that one pays.

    Where another epoch becomes final meanwhile, it acts once more. Raises TransactionFailed where that happens again.
    """
    try:
        return act()
    except ContractReverted as error:
        typer.echo(f"Note: {_replaced(error)}. Once more, with that one.", err=True)
    try:
        return act()
    except ContractReverted as error:
        raise TransactionFailed(f"{_replaced(error)}, for the second time: try again") from error


def _replaced(error: ContractReverted) -> str:
    """What has happened, if it is that; else raises the error."""
    if error.error != "EpochSettlementRootReplaced":
        raise error
    return f"A later epoch than {error.arguments['epoch']} became final meanwhile, and only the last one's root pays"


def last_final_epoch(place: Place) -> EpochRecord | None:
    """The last epoch whose shares are minted; None before the first."""
    count = place.settlement.next_epoch()
    return place.settlement.epoch(count - 1) if count else None


def last_statement(place: Place) -> tuple[EpochRecord | None, Published | None, str]:
    """The last final epoch and its statement; None before the first, and with the reason where it can't be had."""
    epoch = last_final_epoch(place)
    if epoch is None:
        return None, None, ""
    try:
        return epoch, find_statement(place, epoch), ""
    except StatementUnavailable as error:
        return epoch, None, str(error)


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
    try:
        root = statement.tree().root
    except ValueError:  # no account, or a number that no contract holds
        root = None
    if root != epoch.root:
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

"""Finding an epoch's public statement, and proving from it what an account can claim."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from commonweight.chain.records import ClaimArguments, EpochRecord
from commonweight.cli.place import Place, local_path, read_regular
from commonweight.errors import ConfigError, MalformedMessage, StatementMismatch
from commonweight.rules.merkle import MerkleTree
from commonweight.rules.statement import MAX_STATEMENT_BYTES, AccountLine, Statement, parse_statement


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
            proof=self.tree.proof(index),
        )


@dataclass(frozen=True)
class Missing:
    """A statement that can't be read where it should be."""

    epoch: EpochRecord
    looked_at: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"The statement of epoch {self.epoch.epoch}, 0x{self.epoch.statement_hash.hex()}, can't be read at "
            f"{' or '.join(self.looked_at) or 'any known place'}. Anybody who has it can give it to you, its hash "
            "proves it: put it in a directory and give --statements DIR."
        )


def last_final_epoch(place: Place) -> EpochRecord | None:
    """The last epoch whose shares are minted; None before the first."""
    count = place.settlement().next_epoch()
    return place.settlement().epoch(count - 1) if count else None


def find_statement(place: Place, epoch: EpochRecord) -> Published | Missing:
    """The statement of `epoch`, from `place.statements` or from where its proposal said.

    Raises StatementMismatch where a text is found that isn't the statement, or doesn't give the root on the chain.
    """
    name = epoch.statement_hash.hex() + ".json"
    candidates: list[Path] = []
    looked_at: list[str] = []
    if place.statements is not None:
        candidates += [place.statements / name, place.statements / f"0x{name}"]
        looked_at.append(str(place.statements / name))
    for proposal in place.settlement().proposals():
        if proposal.statement_hash == epoch.statement_hash:
            looked_at.append(repr(proposal.uri))  # a stranger's text: no control characters
            try:
                candidates.append(local_path(proposal.uri))
            except ConfigError:
                continue  # not on this machine: `looked_at` tells
    for path in candidates:
        try:
            data = read_regular(path, MAX_STATEMENT_BYTES)
        except (OSError, ConfigError):
            continue  # the same: whoever proposed can't keep the rest from being shown
        return Published(epoch, _check(place, epoch, path, data))
    return Missing(epoch, tuple(dict.fromkeys(looked_at)))


def _check(place: Place, epoch: EpochRecord, path: Path, data: bytes) -> Statement:
    try:
        statement = parse_statement(data, epoch.statement_hash)
    except MalformedMessage as error:
        raise StatementMismatch(
            f"{path} is not the statement of epoch {epoch.epoch}: it isn't even canonical JSON. Delete the file and "
            "fetch the statement again, or get it from someone else."
        ) from error
    # The hash says who wrote it, not that it is right: shares are paid by the root.
    if not statement.accounts or statement.tree().root != epoch.root:
        raise StatementMismatch(
            f"{path} has the hash that is on the chain for epoch {epoch.epoch}, but its accounts don't give the root "
            f"0x{epoch.root.hex()} that pays out. The coordinator {place.model.terms.coordinator} published one thing "
            "and proposed another: don't rely on this epoch."
        )
    return statement

"""Who owns a devnet's model, read from the chain and the published statements after claiming for everybody."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from commonweight.chain.keys import Key
from commonweight.devnet.deployment import Deployment
from commonweight.errors import StatementMismatch
from commonweight.rules.statement import Statement, parse_statement


@dataclass(frozen=True)
class Holding:
    """What one account has of the model, and did for it."""

    address: str
    shares: int
    """Held, base units."""
    work_units: int
    """Verified FLOPs over all final epochs."""


@dataclass(frozen=True)
class Ownership:
    """Everybody's part."""

    holdings: tuple[Holding, ...] = ()
    """The largest first."""
    supply: int = 0
    """All shares, base units."""


def settle_ownership(deployment: Deployment, statements: Path, sender_key: Key, accounts: Iterable[str]) -> Ownership:
    """Claims for every account of the last final epoch, at the sender's cost, and returns what each then holds.

    Anyone may claim for an account; only the account is paid. `accounts` are looked up beside those in the statements.
    Blocking, and imports web3: call from a thread. Raises ChainError and StatementMismatch.
    """
    from commonweight.chain.contracts import EpochSettlement, ModelShares
    from commonweight.chain.records import ClaimArguments
    from commonweight.chain.rpc import Chain
    from commonweight.chain.sender import Sender

    chain = Chain.connect(deployment.rpc_url, deployment.chain_id)
    settlement = EpochSettlement(chain, deployment.settlement, Sender(chain, sender_key))
    recorded = [settlement.epoch(epoch) for epoch in range(settlement.next_epoch())]
    final = [_read_statement(statements, record.statement_hash) for record in recorded if record and record.finalized]
    if final:
        last = final[-1]
        tree = last.tree()
        for index, line in enumerate(last.accounts):
            if settlement.claimed(line.account).shares == int(line.cumulative_shares):
                continue  # somebody was faster
            settlement.claim(
                ClaimArguments(
                    epoch=last.epoch,
                    account=line.account,
                    cumulative_shares=int(line.cumulative_shares),
                    epoch_shares=int(line.shares),
                    debt_before=int(line.debt_before),
                    proof=tree.proof(index),
                )
            )
    units = dict.fromkeys(accounts, 0)
    for statement in final:
        for line in statement.accounts:
            units[line.account] = units.get(line.account, 0) + int(line.units)
    shares = ModelShares(chain, deployment.shares)
    holdings = [Holding(address, shares.balance_of(address), done) for address, done in units.items()]
    held = sorted((h for h in holdings if h.shares or h.work_units), key=lambda h: (-h.shares, h.address))
    return Ownership(tuple(held), shares.total_supply())


def _read_statement(folder: Path, expected_hash: bytes) -> Statement:
    path = folder / f"{expected_hash.hex()}.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StatementMismatch(f"The statement {path} can't be read: {error.strerror}.") from error
    return parse_statement(text, expected_hash)

"""Every error that a user can meet, with a stable code.

    CommonweightError
    ├── InputError (also ValueError)       exit 2   what was given can't be used
    │   ├── SpecError            SPEC_INVALID
    │   ├── DataError            DATA_INVALID
    │   ├── ConfigError          CONFIG_INVALID
    │   ├── KeyStoreError        KEY_UNUSABLE
    │   ├── ContextExceeded      CONTEXT_EXCEEDED
    │   └── CostAboveLimit       COST_ABOVE_LIMIT
    ├── WireError                          exit 3   a peer or the way to it
    │   ├── MalformedMessage     WIRE_MALFORMED
    │   ├── MessageTooLarge      WIRE_TOO_LARGE
    │   ├── UnplannedMessage     WIRE_UNPLANNED
    │   ├── NonFiniteTensor      WIRE_NOT_FINITE
    │   ├── IdentityMismatch     WIRE_IDENTITY
    │   ├── PeerUnreachable      WIRE_UNREACHABLE
    │   ├── Refused              WIRE_REFUSED
    │   ├── NotServed            WIRE_NOT_SERVED
    │   ├── NoRoom               WIRE_NO_ROOM
    │   ├── StageLost            WIRE_STAGE_LOST
    │   ├── CommitmentBroken     WIRE_COMMITMENT
    │   ├── EvidenceMissing      EVIDENCE_MISSING
    │   ├── StateUnavailable     WIRE_NO_STATE
    │   └── PiecesMissing        WIRE_NO_PIECES
    ├── ChainError                         exit 4   the chain or the account on it
    │   ├── RpcUnreachable       CHAIN_UNREACHABLE
    │   ├── WrongChain           CHAIN_WRONG_ID
    │   ├── InsufficientFunds    CHAIN_NO_FUNDS
    │   ├── NotAllowed           CHAIN_NOT_ALLOWED
    │   ├── TransactionFailed    CHAIN_REVERTED
    │   ├── TransactionUnconfirmed  CHAIN_UNCONFIRMED
    │   ├── StatementMismatch    CHAIN_STATEMENT
    │   └── StatementUnavailable CHAIN_NO_STATEMENT
    └── StateError                         exit 5   what this machine keeps on its disk
        ├── CheckpointError      STATE_CHECKPOINT
        ├── LedgerError          STATE_LEDGER
        └── WorkerDied           STATE_WORKER

A message says what happened, what was measured and what to do next. `assert` is for our own bugs only.
"""

from typing import ClassVar


class CommonweightError(Exception):
    """Base of all errors that are answered with a message instead of a traceback."""

    code: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return f"[{self.code}] {super().__str__()}"


class InputError(CommonweightError, ValueError):
    """What the user or a file gave can't be used as it is."""

    code = "INPUT_INVALID"
    exit_code = 2


class SpecError(InputError):
    """A model spec that is incomplete, inconsistent or not canonical."""

    code = "SPEC_INVALID"


class DataError(InputError):
    """A corpus, manifest, chunk or tokenizer that is missing or isn't what its hash says."""

    code = "DATA_INVALID"


class ConfigError(InputError):
    """An option, variable or configuration file that makes no sense here."""

    code = "CONFIG_INVALID"


class KeyStoreError(InputError):
    """A key file that is missing, unreadable or locked by another password."""

    code = "KEY_UNUSABLE"


class ContextExceeded(InputError):
    """A text longer than the model's context, or than the room that was reserved for it."""

    code = "CONTEXT_EXCEEDED"


class CostAboveLimit(InputError):
    """An answer that may cost more than the buyer allows."""

    code = "COST_ABOVE_LIMIT"


class WireError(CommonweightError):
    """A message, a peer or the connection to it."""

    code = "WIRE_FAILED"
    exit_code = 3


class MalformedMessage(WireError, ValueError):
    """Bytes that don't decode to a valid message."""

    code = "WIRE_MALFORMED"


class MessageTooLarge(WireError, ValueError):
    """A message over its limit, refused before anything was allocated for it."""

    code = "WIRE_TOO_LARGE"


class UnplannedMessage(WireError):
    """A well-formed message for a round, microbatch or shape that wasn't planned."""

    code = "WIRE_UNPLANNED"


class NonFiniteTensor(WireError, ValueError):
    """A tensor that holds NaN or infinity."""

    code = "WIRE_NOT_FINITE"


class IdentityMismatch(WireError):
    """A certificate that doesn't belong to the key it was expected from."""

    code = "WIRE_IDENTITY"


class PeerUnreachable(WireError):
    """Nobody answered within the deadline."""

    code = "WIRE_UNREACHABLE"


class Refused(WireError):
    """The other side answered, and said no."""

    code = "WIRE_REFUSED"


class NotServed(WireError):
    """A model, or a version of it, that isn't generated with at the moment."""

    code = "WIRE_NOT_SERVED"


class NoRoom(WireError):
    """More sessions than the memory of a stage holds."""

    code = "WIRE_NO_ROOM"


class StageLost(WireError):
    """A stage that went away, or fell silent, while it generated."""

    code = "WIRE_STAGE_LOST"


class CommitmentBroken(WireError):
    """A peer that contradicts what it, or this node, has committed to."""

    code = "WIRE_COMMITMENT"


class EvidenceMissing(WireError):
    """What an audit or a replay needs, and this node doesn't keep, or not any more."""

    code = "EVIDENCE_MISSING"


class StateUnavailable(WireError):
    """A version or a gradient of a stage that a node doesn't keep (any more), or that no node serves as it should."""

    code = "WIRE_NO_STATE"


class PiecesMissing(WireError):
    """A version of which fewer pieces are with keepers, or come from them, than restore it."""

    code = "WIRE_NO_PIECES"


class ChainError(CommonweightError):
    """The chain, or an account on it."""

    code = "CHAIN_FAILED"
    exit_code = 4


class RpcUnreachable(ChainError):
    """No JSON-RPC endpoint answered at the given URL."""

    code = "CHAIN_UNREACHABLE"


class WrongChain(ChainError):
    """The endpoint serves another chain than the one expected."""

    code = "CHAIN_WRONG_ID"


class InsufficientFunds(ChainError):
    """The account hasn't what the gas costs, or not the tokens."""

    code = "CHAIN_NO_FUNDS"


class NotAllowed(ChainError):
    """What a contract's rules don't allow as things stand on the chain; nothing was sent."""

    code = "CHAIN_NOT_ALLOWED"


class TransactionFailed(ChainError):
    """A contract refused the call; the message names its custom error."""

    code = "CHAIN_REVERTED"


class TransactionUnconfirmed(ChainError):
    """A transaction that was sent and has no receipt yet: it can still be mined."""

    code = "CHAIN_UNCONFIRMED"


class StatementMismatch(ChainError):
    """An epoch's statement that isn't the one whose hash is on chain."""

    code = "CHAIN_STATEMENT"


class StatementUnavailable(ChainError):
    """An epoch's statement that nobody serves where it should be."""

    code = "CHAIN_NO_STATEMENT"


class StateError(CommonweightError):
    """What this machine keeps on its disk."""

    code = "STATE_FAILED"
    exit_code = 5


class CheckpointError(StateError):
    """A checkpoint that can't be written, or isn't of this model, stage or round."""

    code = "STATE_CHECKPOINT"


class LedgerError(StateError):
    """A ledger that contradicts what it is asked to record."""

    code = "STATE_LEDGER"


class WorkerDied(StateError):
    """The compute worker of this node ended without being asked to."""

    code = "STATE_WORKER"


def error_with_code(code: str, message: str) -> CommonweightError:
    """The error that another process of ours reported by its code."""
    kinds: list[type[CommonweightError]] = [CommonweightError]
    for kind in kinds:
        if kind.code == code and kind is not CommonweightError:
            return kind(message)
        kinds += kind.__subclasses__()
    return CommonweightError(message)

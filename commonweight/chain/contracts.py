"""The deployed contracts, typed. Their rules are in the NatSpec of contracts/src/interfaces.

A view returns a value or a record. What changes the chain needs the contract object to have a `Sender`, waits
until the transaction is mined and returns its Receipt. To see what it would cost, hand the Action of the same
name and arguments to `Sender.dry_run`: `sender.dry_run(settlement.action("finalizeEpoch", 3))`.

All raise as Chain and Sender do; ContractReverted carries the name of the custom error.
"""

from typing import Self

from commonweight.chain.deployed import DeployedContract
from commonweight.chain.records import (
    Claimable,
    ClaimArguments,
    Claimed,
    EpochFinalized,
    EpochProposed,
    EpochRecord,
    ModelTerms,
    RegisteredModel,
    SharesClaimed,
)
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Action, Receipt, Sender


class ModelRegistry(DeployedContract):
    """Where models are registered; each gets its own ModelShares and EpochSettlement."""

    NAME = "ModelRegistry"

    @classmethod
    def deploy(cls, sender: Sender) -> Self:
        """A new registry, with the implementations that it clones."""
        return cls._deploy(sender)

    def register_model(self, terms: ModelTerms) -> RegisteredModel:
        """Registers a model under the sender's name. One account can register a spec once."""
        receipt = self._send(self.registration(terms))
        events = self._contract.events.ModelRegistered().process_receipt(receipt.raw)
        model_id = bytes(events[0]["args"]["modelId"])
        return self.model(model_id)

    def registration(self, terms: ModelTerms) -> Action:
        """What `register_model` sends."""
        return self.action("registerModel", terms.to_params())

    def model(self, model_id: bytes) -> RegisteredModel:
        """A model's registrant, contracts and terms. Reverts with ModelRegistryUnknownModel."""
        model = self._read_struct("model", model_id)
        return RegisteredModel(
            model_id=model_id,
            registrant=model["registrant"],
            shares=model["shares"],
            settlement=model["settlement"],
            terms=ModelTerms.from_params(model["params"]),
        )

    def model_id_of(self, registrant: str, spec_hash: bytes) -> bytes:
        """The id under which `registrant` registers, or has registered, `spec_hash` here."""
        return bytes(self._read("modelIdOf", to_address(registrant), spec_hash))


class ModelShares(DeployedContract):
    """A model's shares (ERC-20) and the revenue that they earn."""

    NAME = "ModelShares"

    def name(self) -> str:
        return str(self._read("name"))

    def symbol(self) -> str:
        return str(self._read("symbol"))

    def decimals(self) -> int:
        return int(self._read("decimals"))

    def balance_of(self, account: str) -> int:
        return int(self._read("balanceOf", to_address(account)))

    def total_supply(self) -> int:
        return int(self._read("totalSupply"))

    def max_supply(self) -> int:
        return int(self._read("maxSupply"))

    def revenue_token(self) -> str:
        return str(self._read("revenueToken"))

    def settlement(self) -> str:
        return str(self._read("settlement"))

    def accumulator(self) -> int:
        """Revenue per share so far, times 2^96 (`accPerShare`)."""
        return int(self._read("accPerShare"))

    def deposited(self) -> int:
        """Revenue ever received, in the revenue token's smallest unit."""
        return int(self._read("deposited"))

    def owed(self, holder: str) -> int:
        """Revenue that `holder` can withdraw now, in the revenue token's smallest unit."""
        return int(self._read("owed", to_address(holder)))

    def owed_scaled(self, holder: str) -> int:
        """The same times 2^96, with the fraction that is not payable yet."""
        return int(self._read("owedScaled", to_address(holder)))

    def transfer(self, to: str, amount: int) -> Receipt:
        return self._invoke("transfer", to_address(to), amount)

    def deposit_revenue(self, amount: int) -> Receipt:
        """Takes `amount` of the revenue token, which the sender has approved, and credits it to all shares."""
        return self._invoke("depositRevenue", amount)

    def withdraw_revenue(self, to: str) -> Receipt:
        """Pays all that the sender is owed to `to`."""
        return self._invoke("withdrawRevenue", to_address(to))

    def withdraw_revenue_for(self, holder: str) -> Receipt:
        """Pays `holder` all that it is owed, whoever sends."""
        return self._invoke("withdrawRevenueFor", to_address(holder))


class EpochSettlement(DeployedContract):
    """See contracts/src/interfaces/IEpochSettlement.sol."""

    NAME = "EpochSettlement"

    # Reading

    def next_epoch(self) -> int:
        """The first epoch that is not final: the pending one, else the one to propose next."""
        return int(self._read("nextEpoch"))

    def pending(self) -> int | None:
        """The epoch that is proposed and not final; None if there is none."""
        exists, epoch = self._read("pending")
        return int(epoch) if exists else None

    def epoch(self, epoch: int) -> EpochRecord | None:
        """All that the chain keeps of an epoch; None if it was never proposed."""
        stored = self._read_struct("epoch", epoch)
        if stored["statementHash"] == bytes(32):
            return None
        return EpochRecord(
            epoch=epoch,
            root=bytes(stored["root"]),
            minted=stored["minted"],
            statement_hash=bytes(stored["statementHash"]),
            accumulator=stored["accAt"],
            finalizable_at=stored["finalizableAt"],
            finalized=stored["finalized"],
        )

    def claimed(self, account: str) -> Claimed:
        shares, debt = self._read("claimed", to_address(account))
        return Claimed(shares, debt)

    def claimable(self, claim: ClaimArguments) -> Claimable:
        """What `claim` would pay now; reverts as it would."""
        shares, revenue_scaled = self._read("claimable", *_arguments(claim))
        return Claimable(shares, revenue_scaled)

    def emission_of(self, epoch: int) -> int:
        """The most that `epoch` may mint."""
        return int(self._read("emissionOf", epoch))

    def leaf(self, claim: ClaimArguments) -> bytes:
        """The leaf as the contract computes it; `claim.proof` plays no part."""
        _, account, cumulative_shares, epoch_shares, debt_before, _ = _arguments(claim)
        return bytes(self._read("leaf", account, cumulative_shares, epoch_shares, debt_before))

    def shares(self) -> str:
        """Address of the model's ModelShares."""
        return str(self._read("shares"))

    def window_s(self) -> int:
        """Seconds between a proposal and the first moment it can be finalised."""
        return int(self._read_struct("terms")["window"])

    def coordinator(self) -> str:
        """The only account that may propose."""
        return str(self._read_struct("terms")["coordinator"])

    # Changing

    def propose_epoch(self, epoch: int, root: bytes, minted: int, statement_hash: bytes, uri: str) -> Receipt:
        """Proposes the next epoch; the coordinator's key only."""
        return self._invoke("proposeEpoch", epoch, root, minted, statement_hash, uri)

    def finalize_epoch(self, epoch: int) -> Receipt:
        """Mints the pending epoch; any key, once `finalizable_at` has come (else EpochSettlementWindowOpen)."""
        return self._invoke("finalizeEpoch", epoch)

    def claim(self, claim: ClaimArguments) -> Receipt:
        """Pays `claim.account` what it hasn't claimed yet; any key."""
        return self._send(self.claim_action(claim))

    def claim_action(self, claim: ClaimArguments) -> Action:
        """What `claim` sends."""
        return self.action("claim", *_arguments(claim))

    # Events

    def proposals(self, from_block: int = 0) -> list[EpochProposed]:
        """Every proposal since `from_block`, oldest first."""
        logs = self.chain.events(self._contract, "EpochProposed", from_block)
        return [EpochProposed.from_log(log) for log in logs]

    def finalizations(self, from_block: int = 0) -> list[EpochFinalized]:
        """Every finalisation since `from_block`, oldest first."""
        logs = self.chain.events(self._contract, "EpochFinalized", from_block)
        return [EpochFinalized.from_log(log) for log in logs]

    def claims(self, from_block: int = 0) -> list[SharesClaimed]:
        """Every claim since `from_block`, oldest first."""
        logs = self.chain.events(self._contract, "SharesClaimed", from_block)
        return [SharesClaimed.from_log(log) for log in logs]


class TestUSD(DeployedContract):
    """Six-decimal play money for devnets: anybody can mint."""

    NAME = "TestUSD"
    __test__ = False  # not a test class, whatever pytest makes of its name

    @classmethod
    def deploy(cls, sender: Sender) -> Self:
        return cls._deploy(sender)

    def decimals(self) -> int:
        return int(self._read("decimals"))

    def balance_of(self, account: str) -> int:
        return int(self._read("balanceOf", to_address(account)))

    def total_supply(self) -> int:
        return int(self._read("totalSupply"))

    def allowance(self, owner: str, spender: str) -> int:
        return int(self._read("allowance", to_address(owner), to_address(spender)))

    def mint(self, to: str, amount: int) -> Receipt:
        return self._invoke("mint", to_address(to), amount)

    def approve(self, spender: str, amount: int) -> Receipt:
        return self._invoke("approve", to_address(spender), amount)

    def transfer(self, to: str, amount: int) -> Receipt:
        return self._invoke("transfer", to_address(to), amount)


def _arguments(claim: ClaimArguments) -> tuple[int, str, int, int, int, list[bytes]]:
    account: str = to_address(claim.account)
    return (
        claim.epoch,
        account,
        claim.cumulative_shares,
        claim.epoch_shares,
        claim.debt_before,
        list(claim.proof),
    )

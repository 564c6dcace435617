"""ModelRegistry: where models are registered."""

from collections.abc import Sequence
from typing import Self

from web3.logs import DISCARD

from commonweight.chain.abi_names import to_record
from commonweight.chain.deployed import DeployedContract
from commonweight.chain.events import ModelRegistered
from commonweight.chain.records import NOBODY, Checkpoint, ModelTerms, RegisteredModel
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Action, Receipt, Sender
from commonweight.errors import ChainError


class ModelRegistry(DeployedContract):
    """Each model registered here gets its own ModelShares, EpochSettlement and RevenueRouter."""

    NAME = "ModelRegistry"

    @classmethod
    def deploy(cls, sender: Sender, tokens: Sequence[str]) -> Self:
        """A new registry, with the implementations that it clones. Its models may take revenue in `tokens` only."""
        return cls._deploy(sender, [to_address(token) for token in tokens])

    # Reading

    def model(self, model_id: bytes) -> RegisteredModel:
        """A model's registrant, contracts and terms. Reverts with ModelRegistryUnknownModel."""
        model = self._read_struct("model", model_id)
        terms = ModelTerms.from_params(model.pop("params"))
        return to_record(RegisteredModel, {"modelId": model_id, "terms": terms, **model})

    def registration_block(self, model_id: bytes) -> int:
        """The block in which the model was registered: no event of its contracts is older."""
        found = self.events(ModelRegistered, model_id=model_id)
        if not found:
            raise ChainError(f"the registry {self.address} reports no registration of model 0x{model_id.hex()}")
        return found[-1].block_number

    def model_id_of(self, registrant: str, spec_hash: bytes) -> bytes:
        """The id under which `registrant` registers, or has registered, `spec_hash` here."""
        return bytes(self._read("modelIdOf", to_address(registrant), spec_hash))

    def coordinator_of(self, model_id: bytes) -> str:
        """The present coordinator; NOBODY for an unknown model."""
        return str(self._read("coordinatorOf", model_id))

    def proposed_coordinator(self, model_id: bytes) -> tuple[str, int] | None:
        """The account that can take over, and from when; None if there is none."""
        account, acceptable_at = self._read("proposedCoordinator", model_id)
        return None if account == NOBODY else (account, acceptable_at)

    def coordinator_delay_s(self) -> int:
        """Seconds from proposing a coordinator until it can accept."""
        return int(self._read("COORDINATOR_DELAY"))

    def checkpoint(self, model_id: bytes) -> Checkpoint | None:
        """The last published version of the weights; None before the first."""
        version, weights_root, manifest_hash = self._read("checkpointOf", model_id)
        return Checkpoint(version, bytes(weights_root), bytes(manifest_hash)) if version else None

    def is_allowed_token(self, token: str) -> bool:
        """Whether models may take revenue in `token`."""
        return bool(self._read("isAllowedToken", to_address(token)))

    # Changing

    def register_model(self, terms: ModelTerms) -> RegisteredModel:
        """Registers a model under the sender's name. One account can register a spec once."""
        receipt = self._send(self.registration(terms))
        (event,) = self._contract.events.ModelRegistered().process_receipt(receipt.raw, errors=DISCARD)
        return self.model(bytes(event["args"]["modelId"]))

    def registration(self, terms: ModelTerms) -> Action:
        """What `register_model` sends."""
        return self.action("registerModel", terms.to_params())

    def propose_coordinator(self, model_id: bytes, coordinator: str) -> Receipt:
        """Names the account that can take over after three days; the registrant's key only."""
        return self._invoke("proposeCoordinator", model_id, to_address(coordinator))

    def accept_coordinator(self, model_id: bytes) -> Receipt:
        """Takes over as coordinator; the proposed account's key only."""
        return self._invoke("acceptCoordinator", model_id)

    def publish_checkpoint(self, model_id: bytes, checkpoint: Checkpoint) -> Receipt:
        """Records a version of the weights, higher than the last; the coordinator's key only."""
        return self._invoke(
            "publishCheckpoint", model_id, checkpoint.version, checkpoint.weights_root, checkpoint.manifest_hash
        )

    def retire(self, model_id: bytes) -> Receipt:
        """Ends the taking of seats, for good; the registrant's key only."""
        return self._invoke("retire", model_id)

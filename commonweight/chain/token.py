"""Tokens that revenue is paid in: ERC-20 with EIP-3009 authorisations and EIP-2612 permits, as USDC has them."""

from typing import Self

from commonweight.chain.authorization import TokenDomain
from commonweight.chain.deployed import DeployedContract
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Action, Receipt, Sender


class Token(DeployedContract):
    """Such a token, whoever deployed it. Names and symbols are strangers' texts."""

    NAME = "Token"
    ARTIFACT = "TestUSD"

    def name(self) -> str:
        return str(self._read("name"))

    def version(self) -> str:
        """Of its EIP-712 domain."""
        return str(self._read("version"))

    def symbol(self) -> str:
        return str(self._read("symbol"))

    def decimals(self) -> int:
        return int(self._read("decimals"))

    def total_supply(self) -> int:
        return int(self._read("totalSupply"))

    def balance_of(self, account: str) -> int:
        return int(self._read("balanceOf", to_address(account)))

    def allowance(self, owner: str, spender: str) -> int:
        return int(self._read("allowance", to_address(owner), to_address(spender)))

    def nonces(self, owner: str) -> int:
        """Permits of `owner` that were used: the nonce of its next one."""
        return int(self._read("nonces", to_address(owner)))

    def authorization_used(self, payer: str, nonce: bytes) -> bool:
        """Whether the payer's authorisation with that nonce was used or cancelled."""
        return bool(self._read("authorizationState", to_address(payer), nonce))

    def domain(self) -> TokenDomain:
        """What its authorisations and permits are signed for."""
        return TokenDomain(self.name(), self.version(), self.chain.chain_id, self.address)

    def transfer(self, to: str, amount: int) -> Receipt:
        return self._invoke("transfer", to_address(to), amount)

    def approve(self, spender: str, amount: int) -> Receipt:
        """Lets `spender` take `amount` from the sender."""
        return self._send(self.approve_action(spender, amount))

    def approve_action(self, spender: str, amount: int) -> Action:
        """What `approve` sends: first step of whatever takes money from the sender, which reverts without."""
        return self.action("approve", to_address(spender), amount)


class TestUSD(Token):
    """Six-decimal play money for devnets: anybody can mint."""

    NAME = "TestUSD"
    __test__ = False  # not a test class, whatever pytest makes of its name

    @classmethod
    def deploy(cls, sender: Sender) -> Self:
        return cls._deploy(sender)

    def mint(self, to: str, amount: int) -> Receipt:
        return self._invoke("mint", to_address(to), amount)

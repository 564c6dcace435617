"""Where a model is: which chain, which registry, which id. From options, else from a devnet's deployments.json."""

import json
import re
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.events import ModelRegistered
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import NOBODY, RegisteredModel
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain, to_address
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.shares import ModelShares
from commonweight.chain.token import Token
from commonweight.cli.currency import Currency
from commonweight.errors import ChainError, ConfigError, NotAllowed, RpcUnreachable


@dataclass(frozen=True)
class Place:
    """A registered model on a chain that answers."""

    chain: Chain
    registry: ModelRegistry
    model: RegisteredModel
    statements: str | None
    """Where to look for statements first: a directory, or the base of an HTTP address."""

    @property
    def model_id(self) -> str:
        return "0x" + self.model.model_id.hex()

    def at(self, block: int) -> "Place":
        """The same as it stood after `block`: what is read from it adds up, whatever happens meanwhile."""
        return replace(self, chain=self.chain.at(block))

    @cached_property
    def shares(self) -> ModelShares:
        return ModelShares(self.chain, self.model.shares, first_block=self._first_block)

    @cached_property
    def settlement(self) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, first_block=self._first_block)

    @cached_property
    def router(self) -> RevenueRouter:
        return RevenueRouter(self.chain, self.model.router, first_block=self._first_block)

    @cached_property
    def providers(self) -> ProviderRegistry:
        """Of all models of the registry, not of this one alone."""
        return ProviderRegistry(self.chain, self.model.terms.providers)

    @cached_property
    def arbiter(self) -> Arbiter:
        return Arbiter(self.chain, self.model.terms.arbiter)

    @cached_property
    def revenue_token(self) -> Currency:
        """What buyers pay in, and what epochs' bonds are posted in."""
        return read_currency(self.chain, self.model.terms.revenue_token)

    def revenue_balance_of(self, account: str) -> int:
        """What `account` has of the revenue token."""
        return Token(self.chain, self.model.terms.revenue_token).balance_of(account)

    def check_payee(self, account: str) -> None:
        """Raises NotAllowed for an account out of which nobody could get revenue again."""
        if account in (NOBODY, self.model.router, self.model.shares, self.model.settlement):
            raise NotAllowed(f"{account} can't be paid, nobody could get it out again: give another account with --to")

    @cached_property
    def stake_token(self) -> Currency:
        """What seats' stakes are in."""
        return read_currency(self.chain, self.providers.bond_token())

    @cached_property
    def _first_block(self) -> int:
        """That of the registration: none of the model's contracts was there before."""
        return self.registry.registration_block(self.model.model_id)


def read_currency(chain: Chain, token: str) -> Currency:
    """An ERC-20's symbol and decimals. The symbol is a stranger's text: only what is printable of it."""
    contract = Token(chain, token)
    return Currency(contract.address, "".join(filter(str.isprintable, contract.symbol()))[:16], contract.decimals())


def find_place(
    rpc: str | None, registry: str | None, model: str | None, folder: Path | None, statements: str | None = None
) -> Place:
    """Connects to the chain and reads the model there; `folder`'s deployments.json fills in what is None.

    A model needn't be named where the registry has one only. Raises ConfigError that says which option is missing,
    and what Chain raises.
    """
    known = read_deployments(folder) if folder is not None else {}
    found = find_registry(rpc, registry, folder)
    model_id = model or (known.get("model_id") if registry is None else None)
    return Place(found.chain, found, _read_model(found, model_id), statements or known.get("statements"))


def find_registry(rpc: str | None, registry: str | None, folder: Path | None) -> ModelRegistry:
    """Connects to the chain; `folder`'s deployments.json fills in what is None. Raises as `find_place`."""
    known = read_deployments(folder) if folder is not None else {}
    url = rpc or _need(known, "rpc_url", "--rpc URL")
    address = parse_address(registry or _need(known, "registry", "--registry ADDRESS"))
    try:
        chain = Chain.connect(url, known.get("chain_id") if rpc is None else None)
    except RpcUnreachable as error:
        if rpc is not None:
            raise
        raise RpcUnreachable(
            f"The chain of the devnet in {folder} doesn't answer at {url}. It ends with the devnet: "
            f"`commonweight devnet status --dir {folder}` says how that stands."
        ) from error
    return ModelRegistry(chain, address)


def read_deployments(folder: Path) -> dict[str, Any]:
    """What a devnet deployed, from `folder`/deployments.json. Raises ConfigError."""
    path = folder / "deployments.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}. --dir wants the directory of a devnet that has been started."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds a {type(fields).__name__} where an object with rpc_url is expected.")
    return fields


def parse_address(text: str) -> str:
    """The checksummed address. Raises ConfigError for other text, and for a checksum that doesn't fit."""
    try:
        return str(to_address(text))
    except ChainError as error:
        raise ConfigError(
            f"{text!r} is not an address: it has 0x and 40 hexadecimal digits, with their checksum if mixed."
        ) from error


def own_address(given: str | None, key: Path | None) -> str | None:
    """The address that was typed, else that of a key file, without its password; None where neither is given."""
    if given is not None:
        return parse_address(given)
    if key is None:
        return None
    from commonweight.chain.keys import read_address

    return read_address(key)


def local_path(uri: str) -> Path:
    """The file that a path or file:// URI names. Raises ConfigError for other URIs: nothing is fetched yet."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{uri!r} is not a URI: {error}.") from error
    path = uri if parts.scheme == "" else unquote(parts.path)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost") or "\0" in path:
        raise ConfigError(f"{uri!r} is not on this machine. Fetch it, and give the file instead.")
    return Path(path)


def read_regular(path: Path, max_bytes: int) -> bytes:
    """A file that the chain pointed to: strangers write there, so it must be an ordinary file of at most `max_bytes`.

    Raises ConfigError for a device, a pipe or a large file, and OSError as usual.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
        raise ConfigError(f"{str(path)!r} is not an ordinary file of at most {max_bytes} bytes: it was not read.")
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _need(known: dict[str, Any], field: str, option: str) -> str:
    value = known.get(field)
    if not isinstance(value, str):
        raise ConfigError(f"Say where the model is: give {option}, or --dir DIR of a devnet.")
    return value


def _read_model(registry: ModelRegistry, model_id: str | None) -> RegisteredModel:
    if model_id is None:
        registered = _model_ids(registry)
        if len(registered) != 1:
            raise ConfigError(
                f"The registry {registry.address} has {len(registered)} models. Give --model ID: {_listed(registered)}."
            )
        model_id = registered[0]
    if not re.fullmatch("0x[0-9a-fA-F]{64}", model_id):
        raise ConfigError(f"{model_id!r} is not a model's id: it has 0x and 64 hexadecimal digits.")
    try:
        return registry.model(bytes.fromhex(model_id[2:]))
    except ContractReverted as error:
        if error.error != "ModelRegistryUnknownModel":
            raise
        raise ConfigError(
            f"The registry {registry.address} on chain {registry.chain.chain_id} has no model {model_id}. It has: "
            f"{_listed(_model_ids(registry))}."
        ) from error


def _model_ids(registry: ModelRegistry) -> list[str]:
    return ["0x" + event.model_id.hex() for event in registry.events(ModelRegistered)]


def _listed(model_ids: list[str]) -> str:
    return ", ".join(model_ids) or "none yet"

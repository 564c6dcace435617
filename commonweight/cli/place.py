"""Where a model is: which chain, which registry, which id. From options, else from a devnet's deployments.json."""

import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from commonweight.chain.contracts import EpochSettlement, ModelRegistry, ModelShares
from commonweight.chain.records import RegisteredModel
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.rpc import Chain, to_address
from commonweight.chain.sender import Sender
from commonweight.errors import ChainError, ConfigError, RpcUnreachable


@dataclass(frozen=True)
class Place:
    """A registered model on a chain that answers."""

    chain: Chain
    model: RegisteredModel
    statements: Path | None
    """Where to look for statements first."""

    @property
    def model_id(self) -> str:
        return "0x" + self.model.model_id.hex()

    @property
    def shares(self) -> ModelShares:
        return ModelShares(self.chain, self.model.shares)

    def revenue_token(self) -> tuple[str, int]:
        """Symbol and decimals of what revenue is paid in. The symbol is a stranger's text: only what is printable."""
        token = ModelShares(self.chain, self.model.terms.revenue_token)  # of which only the ERC-20 half is used
        return "".join(filter(str.isprintable, token.symbol()))[:16], token.decimals()

    def settlement(self, sender: Sender | None = None) -> EpochSettlement:
        """The model's settlement; with `sender` it can also be written to."""
        return EpochSettlement(self.chain, self.model.settlement, sender)


def find_place(
    rpc: str | None, registry: str | None, model: str | None, folder: Path | None, statements: Path | None = None
) -> Place:
    """Connects to the chain and reads the model there; `folder`'s deployments.json fills in what is None.

    A model needn't be named where the registry has one only. Raises ConfigError that says which option is missing,
    and what Chain raises.
    """
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
    model_id = model or (known.get("model_id") if registry is None else None)
    if statements is None and known.get("statements"):
        statements = local_path(known["statements"])
    return Place(chain, _read_model(chain, address, model_id), statements)


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


def _read_model(chain: Chain, registry: str, model_id: str | None) -> RegisteredModel:
    if model_id is None:
        registered = _model_ids(chain, registry)
        if len(registered) != 1:
            raise ConfigError(
                f"The registry {registry} has {len(registered)} models. Give --model ID: {_listed(registered)}."
            )
        model_id = registered[0]
    if not re.fullmatch("0x[0-9a-fA-F]{64}", model_id):
        raise ConfigError(f"{model_id!r} is not a model's id: it has 0x and 64 hexadecimal digits.")
    try:
        return ModelRegistry(chain, registry).model(bytes.fromhex(model_id[2:]))
    except ContractReverted as error:
        if error.error != "ModelRegistryUnknownModel":
            raise
        raise ConfigError(
            f"The registry {registry} on chain {chain.chain_id} has no model {model_id}. It has: "
            f"{_listed(_model_ids(chain, registry))}."
        ) from error


def _model_ids(chain: Chain, registry: str) -> list[str]:
    found = chain.events(chain.contract(ModelRegistry.NAME, registry), "ModelRegistered")
    return ["0x" + bytes(event["args"]["modelId"]).hex() for event in found]


def _listed(model_ids: list[str]) -> str:
    return ", ".join(model_ids) or "none yet"

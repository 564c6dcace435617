"""`commonweight gateway …`."""

from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import PasswordFileOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Sell a model's answers."""


@app.command()
def run(
    coordinator: Annotated[str, typer.Option(help="PEERID@HOST:PORT of the model's coordinator.")],
    key: Annotated[Path, typer.Option(help="Keystore file of the gateway's key; it pays for the gas.")],
    rpc: Annotated[str, typer.Option(help="JSON-RPC endpoint of the chain.")],
    chain_id: Annotated[int, typer.Option(min=1, help="Id of the chain that must be there.")],
    registry: Annotated[str, typer.Option(help="Address of the ModelRegistry.")],
    model_id: Annotated[str, typer.Option(help="Id of the model in the registry, 0x and 64 digits.")],
    price_prompt: Annotated[
        int, typer.Option(min=0, help="For a million tokens of prompt, in the revenue token's smallest unit.")
    ],
    price_completion: Annotated[int, typer.Option(min=0, help="For a million tokens of answer.")],
    listen: Annotated[str, typer.Option(help="host:port of the HTTP server; port 0 takes a free one.")] = "127.0.0.1:0",
    ledger: Annotated[
        str, typer.Option(help="SQLAlchemy URL of the ledger; one with a password belongs in the variable.")
    ] = "sqlite:///gateway.db",
    tokenizer: Annotated[
        str, typer.Option(metavar="bytes|FILE", help="The model's tokenizer: bytes, or its tokenizer.json.")
    ] = "bytes",
    max_requests: Annotated[int, typer.Option(min=1, help="So many requests are answered at a time.")] = 16,
    confirmations: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Until so many blocks lie on a collected payment, it is looked after."),
    ] = 0,
    password_file: PasswordFileOption = None,
) -> None:
    """Sell a model's answers over HTTP, in OpenAI's format, for x402 payments.

    Payments go straight to the model's router: the gateway's key pays for gas, and must be a cashier there. It is
    charged what was delivered, the rest goes back to the buyer at once. With both prices 0 no payment is asked for.
    What must not be forgotten is in the ledger: killed at any moment, the gateway collects what it has delivered when
    it is started again with the same ledger. With --confirmations it collects again what a reorganisation of the
    chain undoes. Run one gateway for each ledger. It speaks plain HTTP: put a proxy with TLS before it where others can
    reach it. Its events are JSON lines on stdout; `gateway.listening` has the URL.
    """
    from commonweight.chain.keys import load_key, read_password
    from commonweight.cli.place import parse_address
    from commonweight.errors import ConfigError
    from commonweight.model.tokenizer import load_tokenizer
    from commonweight.runtime import run_until_stopped
    from gateway.pricing import Price
    from gateway.run import GatewayConfig, run_gateway
    from gateway.shop import Limits

    try:
        model = bytes.fromhex(model_id.removeprefix("0x"))
    except ValueError as error:
        raise ConfigError(f"--model-id {model_id!r} is not hexadecimal.") from error
    if len(model) != 32:
        raise ConfigError(f"--model-id has {len(model)} bytes; a model's id has 32.")
    config = GatewayConfig(
        coordinator=coordinator,
        key=load_key(key, read_password(password_file)),
        rpc_url=rpc,
        chain_id=chain_id,
        registry=parse_address(registry),
        model_id=model,
        price=Price(price_prompt, price_completion),
        tokenizer=load_tokenizer(tokenizer),
        ledger_url=ledger,
        listen=listen,
        limits=Limits(concurrent=max_requests),
        confirmations=confirmations,
    )
    run_until_stopped(run_gateway(config))

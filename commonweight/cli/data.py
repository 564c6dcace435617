"""`commonweight data`: from text to a data set that a model spec can name."""

import json
from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import JsonOption
from commonweight.cli.output import print_fields, print_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Turn text into a data set that a model can be trained on.

    A data set is a folder of packed tokens with a manifest. The manifest's hash stands in the model's spec, so every
    node can check that it trains on the same text.
    """


@app.command("build")
def build(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Text files, or folders: all UTF-8 text in them.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write the data set to.")],
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", metavar="bytes|FILE", help="One token for each byte, or a tokenizer.json."),
    ] = "bytes",
    as_json: JsonOption = False,
) -> None:
    """Pack text files into a data set.

    Needs text files in UTF-8. Files are taken in the order given, those of a folder in the order of their paths; the
    same files in the same order give the same hash on every machine. Prints the number of tokens and documents, the
    manifest's hash, and what to put into the model's spec.

    \b
    Example:
      commonweight data build books/ notes.txt --out data/
    """
    from commonweight.model.corpus import build_dataset
    from commonweight.model.tokenizer import load_tokenizer

    manifest = build_dataset(paths, out, load_tokenizer(tokenizer))
    in_spec = {"tokenizer": manifest.tokenizer, "manifest": manifest.hash, "tokens": manifest.tokens}
    if as_json:
        counts = {
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "vocab_size": manifest.vocab_size,
        }
        print_json({"out": str(out), "hash": manifest.hash, **counts, "spec": {"data": in_spec}})
        return
    print_fields(
        {
            "tokens": f"{manifest.tokens:,}",
            "documents": f"{manifest.documents:,}",
            "hash": manifest.hash,
            "written to": out,
        }
    )
    typer.echo("\nIn the model's spec:\n")
    typer.echo(f'  "data": {json.dumps(in_spec)}')
    typer.echo(f'  "vocab_size": {manifest.vocab_size}  (in "architecture")')

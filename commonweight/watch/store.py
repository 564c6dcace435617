"""Statements on this machine's disk, by their hash, and over HTTP to whoever asks.

    GET /statements/0x….json    the statement with this hash: canonical JSON, the same bytes for ever

The hash on the chain proves the text, whoever serves it: a coordinator that withholds a statement that nodes keep
can't make it disappear.
"""

import re
from pathlib import Path

from eth_hash.auto import keccak
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from commonweight.disk import replace_file
from commonweight.errors import StateError

_NAME = re.compile("(?:0x)?([0-9a-f]{64})\\.json")


class StatementStore:
    """A folder of statements, each in the file `<hash>.json`. Safe to share between processes.

    `kind`: what else the texts are that it keeps and serves; the path begins with it.
    """

    def __init__(self, folder: Path, kind: str = "statements") -> None:
        self.folder = folder
        self.kind = kind

    def path_of(self, statement_hash: bytes) -> Path:
        """Where the statement with this hash is, or would be."""
        return self.folder / f"{statement_hash.hex()}.json"

    def get(self, statement_hash: bytes) -> bytes | None:
        """The text, or None where it isn't here or is damaged."""
        try:
            text = self.path_of(statement_hash).read_bytes()
        except OSError:
            return None
        return text if keccak(text) == statement_hash else None

    def put(self, text: bytes) -> bytes:
        """Keep a statement's canonical text; returns its hash. Appears whole or not at all. Raises StateError."""
        statement_hash = keccak(text)
        if self.get(statement_hash) is None:
            try:
                replace_file(self.path_of(statement_hash), text)
            except OSError as error:
                raise StateError(f"The statement can't be kept in {self.folder}: {error.strerror}.") from error
        return statement_hash

    def routes(self) -> list[Route]:
        """What the store answers over HTTP."""
        return [Route(f"/{self.kind}/{{name}}", self._serve, methods=["GET"])]

    def app(self) -> Starlette:
        """A service of nothing but the statements."""
        return Starlette(routes=self.routes())

    async def _serve(self, request: Request) -> Response:
        named = _NAME.fullmatch(request.path_params["name"])
        text = None if named is None else await run_in_threadpool(self.get, bytes.fromhex(named[1]))
        if text is None:
            return JSONResponse({"error": "no such statement here; its name is 0x, 64 digits and .json"}, 404)
        return Response(text, media_type="application/json", headers={"Cache-Control": "public, max-age=31536000"})

"""From text files to a data set: which files, in what order, and packed how."""

import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from commonweight.errors import DataError
from commonweight.model.data import MANIFEST_NAME, Chunk, Manifest, smallest_dtype
from commonweight.model.tokenizer import Tokenizer

DEFAULT_CORPUS_BYTES = 4 * 2**20
"""The most that `default_corpus` returns: 4 MiB of source pack in well under a second."""


def default_corpus() -> list[Path]:
    """Text that every machine has: this Python's own library sources.

    UTF-8 `.py` files, a folder's own before its subfolders', without tests, caches and installed packages, up
    to DEFAULT_CORPUS_BYTES in all. Other Python versions have other files, hence another manifest hash.
    Raises DataError where Python was installed without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    chosen, size = [], 0
    for path in _walk(root, left_out):
        if path.suffix != ".py" or _read_text(path) is None:
            continue
        size += path.stat().st_size
        if size > DEFAULT_CORPUS_BYTES:
            break
        chosen.append(path)
    if not chosen:
        raise DataError(f"There are no Python sources in {root}. Give the paths of text files instead.")
    return chosen


def build_dataset(
    paths: Iterable[str | Path],
    out_dir: str | Path,
    tokenizer: Tokenizer,
    *,
    suffixes: tuple[str, ...] = (),
    chunk_tokens: int = 2**20,
) -> Manifest:
    """Pack text files into chunks of `chunk_tokens` tokens and write the manifest; the last chunk may be
    shorter.

    Files are taken in the given order, those in a directory by name and before its subfolders', each followed
    by one end-of-document token. Of a directory, only files with one of `suffixes` are taken; without
    `suffixes`, all that are UTF-8 text without zero bytes. The same files in the same order give the same
    manifest on every machine. Raises DataError for a missing path, a named or suffixed file that is not text,
    and a corpus without text.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens {chunk_tokens} must be positive")
    roots = [Path(path) for path in paths]
    out = Path(out_dir)
    dtype = smallest_dtype(tokenizer.vocab_size)
    chunks: list[Chunk] = []
    documents, waiting, held = 0, [], 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        for text in _documents(roots, suffixes):
            documents += 1
            waiting.append(_encode(tokenizer, text, dtype))
            held += len(waiting[-1])
            if held >= chunk_tokens:
                tokens = np.concatenate(waiting)
                full = held - held % chunk_tokens
                chunks += [_write_chunk(out, tokens[i : i + chunk_tokens]) for i in range(0, full, chunk_tokens)]
                waiting, held = [tokens[full:]], held - full
        if held:
            chunks.append(_write_chunk(out, np.concatenate(waiting)))
        if not documents:
            wanted = f"files ending in {', '.join(suffixes)}" if suffixes else "UTF-8 text files"
            raise DataError(f"There are no {wanted} in {', '.join(map(str, roots)) or 'an empty list of paths'}.")
        manifest = Manifest(
            format="commonweight.data/1",
            tokenizer=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            dtype=np.dtype(dtype).name,  # type: ignore[arg-type]
            tokens=sum(chunk.tokens for chunk in chunks),
            documents=documents,
            chunks=chunks,
        )
        (out / MANIFEST_NAME).write_bytes(manifest.to_json())
    except OSError as error:
        raise DataError(
            f"The data set can't be written to {out}: {error}. Free space or choose another folder."
        ) from error
    return manifest


def _documents(roots: list[Path], suffixes: tuple[str, ...]) -> Iterator[str]:
    for root in roots:
        if root.is_dir():
            for path in _walk(root):
                if suffixes and path.suffix not in suffixes:
                    continue
                text = _read_text(path)
                if text is None and suffixes:
                    raise _not_text(path)
                if text:
                    yield text
        elif root.is_file():
            text = _read_text(root)
            if text is None:
                raise _not_text(root)
            if text:
                yield text
        else:
            raise DataError(f"{root} doesn't exist. Give paths of text files or of directories with text files.")


def _walk(root: Path, left_out: Collection[str] = ()) -> Iterator[Path]:
    """All files under `root`: a folder's own files before its subfolders, each by name; links aren't
    followed.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in left_out)
        paths = (Path(folder, name) for name in sorted(names))
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _read_text(path: Path) -> str | None:
    """The file as text; None if it isn't UTF-8 or holds a zero byte, as binary files do."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}. Allow it, or leave the file out.") from error
    return None if "\0" in text else text


def _not_text(path: Path) -> DataError:
    data = path.read_bytes()
    try:
        data.decode()
        return DataError(f"{path} holds a zero byte at {data.index(0)}, so it isn't text. Remove the byte or the file.")
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 4].hex(" ")
        return DataError(
            f"{path} isn't UTF-8: bytes {found} at {error.start} ({error.reason}). Convert it, "
            "for instance with iconv -t UTF-8, or leave it out."
        )


def _encode(tokenizer: Tokenizer, text: str, dtype: np.dtype) -> np.ndarray:
    ids = tokenizer.encode(text)
    packed = np.empty(len(ids) + 1, dtype)
    packed[:-1] = np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else ids
    packed[-1] = tokenizer.end_of_document
    return packed


def _write_chunk(out: Path, tokens: np.ndarray) -> Chunk:
    data = tokens.tobytes()
    name = sha256(data).hexdigest()
    (out / name).write_bytes(data)
    return Chunk(sha256=name, tokens=len(tokens))

"""A data set is what its hash says, and batches are where the rules say."""

import json
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweight.errors import DataError
from commonweight.model.corpus import DEFAULT_CORPUS_BYTES, build_dataset, default_corpus
from commonweight.model.data import Chunk, Dataset, Manifest
from commonweight.model.tokenizer import ByteTokenizer, load_tokenizer
from commonweight.rules.sampling import sample_indices, window_count
from commonweight.rules.spec import ModelSpec
from tests.unit.tiny import tiny_spec

TEXT = "Der Wähler hat – wie stets – das Wort. " * 40


def spec_for(packed: Manifest, **changes) -> ModelSpec:
    fields = {"manifest": packed.hash, "tokens": packed.tokens, "vocab_size": packed.vocab_size}
    return tiny_spec(**fields | {"tokenizer": packed.tokenizer} | changes)


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "text"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text(TEXT)
    (folder / "a.md").write_text("# A title\n" * 30)
    (folder / "sub" / "c.txt").write_text("last")
    (folder / "empty.txt").write_text("")
    (folder / "picture.bin").write_bytes(b"\x89PNG\0\xff\xfe")
    return folder


@pytest.fixture
def packed(corpus, tmp_path) -> tuple[Path, Manifest]:
    out = tmp_path / "data"
    return out, build_dataset([corpus], out, ByteTokenizer(), chunk_tokens=500)


def test_a_data_set_is_its_documents_in_order(packed, corpus):
    out, manifest = packed
    documents = [(corpus / name).read_bytes() for name in ("a.md", "b.txt", "sub/c.txt")]
    joined = b"".join((out / chunk.sha256).read_bytes() for chunk in manifest.chunks)
    assert joined == b"".join(document + b"\0" for document in documents)
    assert (manifest.tokens, manifest.documents, manifest.dtype) == (len(joined), 3, "uint8")
    assert [chunk.tokens for chunk in manifest.chunks[:-1]] == [500] * (len(manifest.chunks) - 1)


def test_the_manifest_survives_its_file_and_its_hash_is_that_files_keccak(packed):
    out, manifest = packed
    assert Manifest.read(out) == manifest
    assert manifest.hash == "0x" + keccak((out / "manifest.json").read_bytes()).hex()


def test_packing_again_gives_the_same_hash_and_other_text_another(packed, corpus, tmp_path):
    _, manifest = packed
    again = build_dataset([corpus], tmp_path / "again", ByteTokenizer(), chunk_tokens=500)
    assert again.hash == manifest.hash
    only = build_dataset([corpus], tmp_path / "only", ByteTokenizer(), suffixes=(".txt",))
    assert (only.documents, only.hash == manifest.hash) == (2, False)


@settings(max_examples=25)
@given(chunk_tokens=st.integers(3, 200), length=st.integers(1, 30), round_=st.integers(0, 50), data=st.data())
def test_a_microbatch_is_the_sampled_windows(tmp_path_factory, chunk_tokens, length, round_, data):
    folder = tmp_path_factory.mktemp("windows")
    (folder / "text").write_text(TEXT[:150])
    manifest = build_dataset([folder / "text"], folder / "data", ByteTokenizer(), chunk_tokens=chunk_tokens)
    spec = spec_for(manifest, sequence_length=length)
    microbatch = data.draw(st.integers(0, spec.training.microbatches_per_round - 1))
    batch = Dataset.open(folder / "data", spec).microbatch(round_, microbatch)
    windows = sample_indices(spec, round_, microbatch)
    assert all(0 <= w < window_count(spec) for w in windows)
    text = TEXT[:150].encode() + b"\0"
    assert [bytes(row.tolist()) for row in batch] == [text[w * length : w * length + length + 1] for w in windows]
    assert (batch.dtype, batch.is_contiguous()) == (torch.uint8, True)


def test_a_changed_chunk_is_refused(packed):
    out, manifest = packed
    spec = spec_for(manifest)
    Dataset.open(out, spec)
    chunk = out / manifest.chunks[1].sha256
    good = chunk.read_bytes()
    chunk.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(DataError, match=f"{chunk.name} has SHA-256 .* instead of {chunk.name}.*Delete it"):
        Dataset.open(out, spec)
    chunk.write_bytes(good[:-1])
    with pytest.raises(DataError, match="499 bytes instead of 500"):
        Dataset.open(out, spec)
    chunk.unlink()
    with pytest.raises(DataError, match=r"can't be read: No such file.*pack the data again"):
        Dataset.open(out, spec)


def test_another_models_data_is_refused(packed, tmp_path):
    out, manifest = packed
    with pytest.raises(DataError, match=f"hash {manifest.hash}; model tiny is trained on 0x11"):
        Dataset.open(out, spec_for(manifest, manifest="0x" + "11" * 32))
    with pytest.raises(DataError, match=r"tokenizer bytes; .* trained on 0x22"):
        Dataset.open(out, spec_for(manifest, tokenizer="0x" + "22" * 32))
    with pytest.raises(DataError, match=r"ids up to 255; .* vocabulary of 61\. It needs at least 256"):
        Dataset.open(out, spec_for(manifest, vocab_size=61))
    with pytest.raises(DataError, match="Pack the text first"):
        Dataset.open(tmp_path / "nowhere", spec_for(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 1}, "the chunks hold"),
        ({"dtype": "uint16"}, "packed as uint8"),
        ({"extra": 1}, "extra"),
        ({"chunks": [{"sha256": "../../etc/passwd", "tokens": 5}]}, "sha256"),
    ],
)
def test_a_malformed_manifest_is_refused(packed, change, message):
    out, manifest = packed
    (out / "manifest.json").write_text(json.dumps(manifest.model_dump() | change))
    with pytest.raises(DataError, match=message):
        Manifest.read(out)
    (out / "manifest.json").write_text('{"tokens": 1.5}')
    with pytest.raises(DataError, match=r"1\.5 has no canonical form"):
        Manifest.read(out)


def test_a_token_outside_the_vocabulary_is_refused(tmp_path):
    tokens = np.array([1, 299, 300], "<u2").tobytes()
    chunk = Chunk(sha256=sha256(tokens).hexdigest(), tokens=3)
    manifest = Manifest(
        format="commonweight.data/1",
        tokenizer="0x" + "33" * 32,
        vocab_size=300,
        dtype="uint16",
        tokens=3,
        documents=1,
        chunks=[chunk],
    )
    (tmp_path / chunk.sha256).write_bytes(tokens)
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(DataError, match="token 300, outside the vocabulary of 300"):
        Dataset.open(tmp_path, spec_for(manifest, sequence_length=1))


def test_what_cant_be_packed_says_why(corpus, tmp_path):
    out, tokenizer = tmp_path / "out", ByteTokenizer()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "latin.txt").write_bytes("Wähler".encode("latin-1"))
    (tmp_path / "zero.txt").write_bytes(b"ab\0c")
    cases = {
        "doesn't exist": [tmp_path / "missing"],
        "no UTF-8 text files in": [tmp_path / "nothing"],
        "an empty list": [],
        r"latin.txt isn't UTF-8: bytes e4 68 6c 65 at 1 .*iconv": [tmp_path / "latin.txt"],
        "zero.txt holds a zero byte at 2": [tmp_path / "zero.txt"],
    }
    for message, paths in cases.items():
        with pytest.raises(DataError, match=message):
            build_dataset(paths, out, tokenizer)
    with pytest.raises(DataError, match=r"picture\.bin isn't UTF-8"):
        build_dataset([corpus], out, tokenizer, suffixes=(".bin",))
    with pytest.raises(DataError, match=r"no files ending in \.py"):
        build_dataset([corpus], out, tokenizer, suffixes=(".py",))
    with pytest.raises(DataError, match="can't be written"):
        build_dataset([corpus], corpus / "b.txt", tokenizer)


def test_the_default_corpus_is_this_pythons_library_and_quick_to_pack(tmp_path):
    start = time.process_time()
    paths = default_corpus()
    manifest = build_dataset(paths, tmp_path, ByteTokenizer())
    assert time.process_time() - start < 2
    assert DEFAULT_CORPUS_BYTES * 0.9 < manifest.tokens - manifest.documents <= DEFAULT_CORPUS_BYTES
    assert paths == default_corpus()
    assert {"argparse.py", "ast.py"} <= {path.name for path in paths}
    assert not any("site-packages" in path.parts or "test" in path.parts for path in paths)


@given(text=st.text())
def test_bytes_round_trip(text):
    tokenizer = load_tokenizer("bytes")
    if "\0" in text:
        with pytest.raises(DataError, match="zero byte"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode([*tokenizer.encode(text), tokenizer.end_of_document]) == text
        assert all(0 < i < 256 for i in tokenizer.encode(text))


def test_any_tokenizer_json_can_be_used(corpus, tmp_path):
    words = {f"w{i}": i for i in range(300)} | {"<unk>": 300, "</s>": 301}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (302, 301)
    assert tokenizer.hash == "0x" + keccak(path.read_bytes()).hex()
    assert tokenizer.decode([*tokenizer.encode("w5 w299"), 301]) == "w5 w299"

    (tmp_path / "words").write_text("w5 w299 w7 " * 20)
    manifest = build_dataset([tmp_path / "words"], tmp_path / "packed", tokenizer)
    assert (manifest.dtype, manifest.tokens) == ("uint16", 61)
    batch = Dataset.open(tmp_path / "packed", spec_for(manifest)).microbatch(0, 0)
    assert batch.dtype == torch.uint16
    assert set(batch.flatten().tolist()) <= {5, 299, 7, 301}


def test_a_tokenizer_that_cant_be_used_says_why(tmp_path):
    with pytest.raises(DataError, match="Give 'bytes' or the path"):
        load_tokenizer(tmp_path / "missing.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json is not a tokenizer\.json"):
        load_tokenizer(broken)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(broken))
    with pytest.raises(DataError, match="no end-of-document token"):
        load_tokenizer(broken)

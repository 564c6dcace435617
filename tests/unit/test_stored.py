"""Hashes of files are those of the tensors in them, and what isn't whole has none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import MalformedMessage
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.stored import MAX_HEADER_BYTES, stored_hash, stored_root
from commonweight.rules.state import state_root

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8]
tensors = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=8),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    max_size=6,
)


@given(shapes=tensors)
def test_a_files_hash_is_that_of_its_tensors(shapes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("stored") / "file"
    generator = torch.Generator().manual_seed(1)
    found = {
        name: torch.randint(0, 200, shape, generator=generator).to(dtype) for name, (dtype, shape) in shapes.items()
    }
    safetensors.torch.save_file(found, path)
    assert stored_hash(path) == tensors_hash(found)


def test_a_file_larger_than_a_piece_of_it_has_the_same_hash(tmp_path: Path) -> None:
    found = {"b": torch.arange(700_000, dtype=torch.float32), "a": torch.ones(300_001)}
    safetensors.torch.save_file(found, tmp_path / "file")
    assert stored_hash(tmp_path / "file") == tensors_hash(found)


def version(folder: Path, moments_hash: bytes | None = None) -> tuple[Path, Path, bytes]:
    parameters, moments = {"parameter.x": torch.ones(3)}, {"moment1.x": torch.zeros(3)}
    beside = moments_hash or tensors_hash(moments)
    safetensors.torch.save_file(with_moments_hash(parameters, beside), folder / "p")
    safetensors.torch.save_file(moments, folder / "m")
    return folder / "p", folder / "m", state_root(5, b"f" * 32, tensors_hash(parameters), tensors_hash(moments))


def test_a_versions_root_follows_from_its_files(tmp_path: Path) -> None:
    parameters, moments, root = version(tmp_path)
    assert stored_root(parameters, moments, 5, b"f" * 32) == root
    assert stored_root(parameters, moments, 6, b"f" * 32) != root
    assert stored_root(parameters, moments, 5, b"g" * 32) != root


@pytest.mark.parametrize("beside", [bytes(32), bytes(31), bytes(40)], ids=len)
def test_moments_of_another_version_have_no_root(tmp_path: Path, beside: bytes) -> None:
    parameters, moments, _ = version(tmp_path, beside)
    with pytest.raises(MalformedMessage, match="aren't of one version"):
        stored_root(parameters, moments, 5, b"f" * 32)
    with pytest.raises(MalformedMessage, match="aren't of one version"):
        stored_root(moments, moments, 5, b"f" * 32)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def stored(header: bytes | dict[str, Any], data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        stored({"a": ONE}, length=10_000),
        stored({"a": ONE}, length=2**63),
        stored(b" " * (MAX_HEADER_BYTES + 1)),
        stored(b"[]"),
        stored(b"{"),
        stored(b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}"),
        stored({"a": ONE}, bytes(7)),
        stored({"a": ONE}, bytes(9)),
        stored({"a": ONE, "b": ONE}),
        stored({"a": ONE | {"data_offsets": [1, 9]}}, bytes(9)),
        stored({"a": ONE | {"data_offsets": [8, 0]}}),
        stored({"a": ONE | {"data_offsets": [-8, 0]}}),
        stored({"a": ONE | {"shape": [3]}}),
        stored({"a": ONE | {"shape": [-2]}}),
        stored({"a": ONE | {"shape": [2**52] * 9}}),
        stored({"a": ONE | {"shape": ["2"]}}),
        stored({"a": ONE | {"dtype": "I8"}}),
        stored({"a": ONE | {"more": 1}}),
        stored({"a": {"dtype": "F32", "shape": [2]}}),
        stored({"a": ONE, "__metadata__": {"format": "pt"}}),
    ],
)
def test_what_isnt_whole_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MalformedMessage):
        stored_hash(tmp_path / "file")


def test_the_control_process_fetches_and_offers_without_torch() -> None:
    code = "import sys, node.fetching, node.offering, node.evidence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

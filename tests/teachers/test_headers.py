"""Headers of safetensors files: what they say, and every way in which files are not what a loader needs."""

import json
import random
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.errors import UserError
from teachers.headers import INDEX, SINGLE, read_header, read_headers

TENSORS = {
    "a.weight": torch.zeros(3, 5),
    "b.weight": torch.zeros(4, dtype=torch.bfloat16),
    "c": torch.zeros((), dtype=torch.int64),
    "d": torch.zeros(0, 7, dtype=torch.float16),
}


@pytest.fixture
def folder(tmp_path):
    """Two shards and their index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = dict(zip(TENSORS, (names[0], names[0], names[1], names[1]), strict=True))
    for shard in names:
        save_file({n: t for n, t in TENSORS.items() if places[n] == shard}, tmp_path / shard, {"format": "pt"})
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 76}, "weight_map": places}), "utf-8")
    return tmp_path


def edit_index(folder, **places):
    index = json.loads((folder / INDEX).read_text("utf-8"))
    index["weight_map"] |= places
    (folder / INDEX).write_text(json.dumps(index), "utf-8")


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_names_shapes_and_dtypes_of_all_shards(folder):
    headers = read_headers(folder, {})
    assert headers.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert [headers.tensors[name].dtype for name in TENSORS] == ["F32", "BF16", "I64", "F16"]
    assert headers.bytes == 60 + 8 + 8 + 0
    assert [file.name[:11] for file in headers.files] == ["model-00001", "model-00002"]
    assert headers.metadata == {"format": "pt"}


def test_one_file_is_read_before_an_index_as_transformers_does(folder):
    save_file({"only": torch.zeros(1)}, folder / SINGLE)
    assert set(read_headers(folder, {}).tensors) == {"only"}
    assert set(read_headers(folder, {"transformers_weights": INDEX}).tensors) == set(TENSORS)


def test_no_tensor_is_read(folder):
    code = f"import sys; from pathlib import Path; from teachers.headers import read_headers; \
        read_headers(Path({str(folder)!r}), {{}}); assert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_shard_that_is_missing(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: read_headers(folder, {}), "names model-00002-of-00002.safetensors", "is missing", "download")


def test_an_index_that_names_what_its_shard_lacks(folder):
    edit_index(folder, e="model-00001-of-00002.safetensors")
    refused(lambda: read_headers(folder, {}), "says that e is in model-00001", "none of its shards has it", "again")


def test_an_index_that_names_the_wrong_shard(folder):
    edit_index(folder, c="model-00001-of-00002.safetensors")
    refused(lambda: read_headers(folder, {}), "says that c is in model-00001", "it is in model-00002", "again")


def test_a_tensor_in_two_shards(folder):
    second = folder / "model-00002-of-00002.safetensors"
    save_file({**load_file(second), "a.weight": torch.zeros(3, 5)}, second)
    refused(lambda: read_headers(folder, {}), "a.weight twice", "model-00001", "model-00002", "again")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", 3, None, "a\\b"]
)
def test_a_shard_outside_the_folder(name, folder):
    edit_index(folder, c=name)
    refused(lambda: read_headers(folder, {}), INDEX, repr(name), "plain name of a safetensors file")
    refused(lambda: read_headers(folder, {"transformers_weights": name or 3}), "config.json names", "plain name")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{", "\x00"])
def test_an_index_that_is_none(content, folder):
    (folder / INDEX).write_text(content, "utf-8")
    refused(lambda: read_headers(folder, {}), INDEX)


def test_shards_without_their_index(folder):
    (folder / INDEX).unlink()
    refused(lambda: read_headers(folder, {}), "has model-00001-of-00002.safetensors", INDEX, "download")


def test_no_weights_at_all(tmp_path):
    refused(lambda: read_headers(tmp_path, {}), "holds no weights", SINGLE, "download")


@pytest.mark.parametrize("bytes_left", [0, 3, 8, 40, -1])
def test_a_file_that_is_cut_off(bytes_left, folder):
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:bytes_left])
    refused(lambda: read_headers(folder, {}), shard.name, "download it again")


def test_bytes_too_many(folder):
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")
    refused(lambda: read_headers(folder, {}), shard.name, "its header says", "download it again")


def test_a_dtype_that_safetensors_does_not_know(tmp_path):
    path = write(tmp_path / SINGLE, {"w": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8)
    refused(lambda: read_header(path), "w in", "dtype 'F3'", "bfloat16 or float32")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
    ],
)
def test_shapes_and_offsets_that_contradict_each_other(entry, tmp_path):
    path = write(tmp_path / SINGLE, {"w": entry}, b"\0" * 8)
    refused(lambda: read_header(path), str(path), "damaged", "w", "download the file again")


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b"\xff\xff", b"[" * 100_000, b"null", b'{"w": 3}', b'{"w": {"dtype": []}}']
)
def test_headers_that_are_none(header, tmp_path):
    path = write(tmp_path / SINGLE, header)
    refused(lambda: read_header(path), str(path))


def test_a_length_that_would_fill_the_memory(tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(lambda: read_header(path), "no safetensors file")


def test_whatever_is_done_to_a_header_is_told(folder):
    """Bytes changed at random: what is read is a header, or refused in one line."""
    shard = folder / "model-00001-of-00002.safetensors"
    whole, draw = shard.read_bytes(), random.Random(0)
    refusals = []
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.randrange(len(whole) - 68)] = draw.randrange(256)
        shard.write_bytes(changed)
        try:
            read_header(shard)
        except UserError as error:
            refusals.append(str(error))
    assert 300 < len(refusals) < 590
    assert all(line.isprintable() and len(line) < 1_000 for line in refusals)


def test_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    refused(lambda: read_headers(folder, {}), "adapter", "merge it")

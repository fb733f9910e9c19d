"""Names are pinned, folders are data, and code runs only where the model itself is named."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer

from distill.config import DistillConfig, EvaluateConfig, PretrainConfig, validate
from distill.data.documents import read_documents
from distill.data.tokenizers import load_tokenizer
from distill.finished import open_student
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.families.stock.loading import create_denoiser, load_model
from teachers.source import BUNDLED, Source, check_trust, model_folder, parse_source
from tests.networks import shape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = f"org/name@{COMMIT}"
SHAPE = shape(num_attention_heads=1, head_dim=16, intermediate_size=16, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model folder, its weights in several files, with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("made") / "model"
    torch.manual_seed(0)
    model = create_denoiser("qwen3", SHAPE, DenoiserSpec(mask_id=1, vocabulary=259, max_length=16)).model
    model.save_pretrained(folder, max_shard_size="10KB")
    AutoTokenizer.from_pretrained(BUNDLED / "teacher").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy, to change."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def load_whole(name, trust_remote_code=None):
    return load_model(resolve(name, trust_remote_code=trust_remote_code))


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).isprintable()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


# --- names ---------------------------------------------------------------------------------------------------------


def test_paths_and_bundled_names_need_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("model", "./a/b", "/a/b", "../a/b", "a/b/c", "", "a b/c", "x\0y", "@", f"a@{COMMIT}"):
        assert parse_source(path) == Source(path, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("~/a/b") == Source(f"{tmp_path}/a/b", None)
    assert check_trust(parse_source("~/a/b"), "~/a/b")
    Path("org/name").mkdir(parents=True)
    assert parse_source("org/name") == Source("org/name", None), "what exists here is a path"
    assert parse_source("bundled:teacher").path == str(BUNDLED / "teacher")
    assert parse_source("bundled:novels", kind="dataset").path == str(BUNDLED / "novels.txt")


def test_hub_names_are_pinned_one_way_or_the_other():
    assert parse_source(PINNED) == parse_source("org/name", COMMIT) == parse_source(PINNED, COMMIT)
    assert parse_source(PINNED) == Source("org/name", COMMIT)


@pytest.mark.parametrize(
    ("name", "revision", "parts"),
    [
        ("org/name", None, ("does not exist here", "org/name@<40 hex digits>", "a commit from the list")),
        ("org/name@main", None, ("'main'", "org/name@<40 hex digits>")),
        ("org/name@", None, ("''", "org/name@<40 hex digits>")),
        ("org/name", "v1.0", ("'v1.0'", "not a commit")),
        ("org/name", COMMIT[:-1], (COMMIT[:-1], "not a commit")),
        (f"org/name@{COMMIT.upper()}", None, ("not a commit",)),
        (PINNED, COMMIT[::-1], ("two commits", "give one")),
        ("./org/name", COMMIT, ("is a path", "leave it out")),
        ("bundled:teacher", COMMIT, ("is a path", "leave it out")),
        ("bundled:teach", None, ("no bundled model 'teach'", "'teacher'")),
        ("bundled:../../x", None, ("no bundled model",)),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_certain(name, revision, parts):
    refused(lambda: parse_source(name, revision), *parts)


TRAIN = {"updates": 1, "batch": 2, "student": {"lr": 1e-4}, "critic": {"lr": 1e-4}}
DISTIL = {
    "teacher": {"path": "t"},
    "objective": {"name": "integral_kl", "rollout": {"steps": [2]}},
    "length": 8,
    "train": TRAIN,
}
PRETRAIN = {"model": {}, "data": {"path": "x.txt", "length": 8}, "train": TRAIN}
DATA = {"path": "x.txt", "length": 8}


@pytest.mark.parametrize(
    ("kind", "base", "change"),
    [
        (DistillConfig, DISTIL, lambda name: {"teacher": {"path": name}}),
        (DistillConfig, DISTIL, lambda name: {"teacher": {"path": "t", "tokenizer": name}}),
        (DistillConfig, DISTIL, lambda name: {"student": {"init": name}}),
        (DistillConfig, DISTIL, lambda name: {"evaluate": {"judge": name}}),
        (DistillConfig, DISTIL, lambda name: {"evaluate": {"data": name}}),
        (DistillConfig, DISTIL, lambda name: {"data": DATA | {"path": name}}),
        (PretrainConfig, PRETRAIN, lambda name: {"data": DATA | {"heldout": name}}),
        (PretrainConfig, PRETRAIN, lambda name: {"model": {"init": name}}),
        (PretrainConfig, PRETRAIN, lambda name: {"tokenizer": {"path": name}}),
        (EvaluateConfig, {}, lambda name: {"judge": name}),
    ],
)
def test_every_name_in_a_config_is_pinned_before_anything_is_downloaded(kind, base, change):
    refused(lambda: validate(kind, base | change("org/name")), "org/name@<40 hex digits>")
    assert validate(kind, base | change(PINNED))


def test_a_revision_pins_teacher_and_data():
    assert validate(DistillConfig, DISTIL | {"teacher": {"path": "org/name", "revision": COMMIT}})
    assert validate(DistillConfig, DISTIL | {"data": DATA | {"path": "org/name", "revision": COMMIT}})
    refused(lambda: validate(DistillConfig, DISTIL | {"teacher": {"path": "org/name", "revision": "main"}}), "'main'")


@pytest.mark.parametrize(
    "load", [load_denoiser, load_tokenizer, open_student, model_folder], ids=lambda load: load.__name__
)
def test_the_commands_names_are_pinned_too(load):
    refused(lambda: load("org/name"), "org/name@<40 hex digits>")


# --- the hub's cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """The hub's cache, as a download would have left it: every file a link into a store. There is no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    store = tmp_path / "hub/models--org--name"
    snapshot = store / "snapshots" / COMMIT
    (store / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(made.iterdir())):
        shutil.copy(path, store / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_a_pinned_model_is_loaded_from_the_cache(hub, made):
    ours, theirs = load_denoiser(PINNED, load_tokenizer(PINNED)), load_denoiser(str(made), load_tokenizer(str(made)))
    assert ours.spec == theirs.spec
    z = torch.full((1, 8), 1)
    assert torch.equal(*(denoiser.log_probs(Canvas.of(z, 1)) for denoiser in (ours, theirs)))
    assert open_student(PINNED).origin == f"Exported from the model folder `{PINNED}`."


def test_another_commit_is_not_what_is_in_the_cache(hub):
    refused(lambda: load_whole(f"org/name@{COMMIT[::-1]}"), "cannot download model", "connection")


def test_links_elsewhere_are_refused_in_the_cache_too(hub, tmp_path):
    shutil.copy(hub / "config.json", tmp_path / "elsewhere.json")
    (hub / "config.json").unlink()
    (hub / "config.json").symlink_to(tmp_path / "elsewhere.json")
    refused(lambda: load_whole(PINNED), "config.json is a link to", "elsewhere.json")


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.PTH", "model.pkl", "last.ckpt"])
def test_pickled_weights(name, folder):
    (folder / name).write_bytes(b"anything")
    assert load_whole(str(folder)), "beside safetensors it is not read"
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    refused(lambda: load_whole(str(folder)), name, "pickle", "save_pretrained")


def test_a_pickle_never_runs(folder, tmp_path):
    for path in folder.glob("*.safetensors*"):
        path.unlink()

    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for name in ("pytorch_model.bin", "model.safetensors"):  # its true name, and hidden under another
        torch.save(Payload(), folder / name)
        refused(lambda: load_whole(str(folder)), str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../other/x.safetensors", "/etc/x.safetensors", "..", "pytorch_model.bin", "a\\b.safetensors"]
)  # fmt: skip
def test_an_index_that_names_other_files(name, folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    shards = json.loads(index.read_text("utf-8"))["weight_map"]
    (tmp_path / "other").mkdir()
    shutil.copy(folder / shards["lm_head.weight"], tmp_path / "other/x.safetensors")
    edit(index, weight_map=shards | {"lm_head.weight": name})
    refused(lambda: load_whole(str(folder)), "index.json", repr(name), "plain name")


def test_a_config_that_names_other_weights(folder):
    edit(folder / "config.json", transformers_weights="../x.safetensors")
    refused(lambda: load_whole(str(folder)), "'../x.safetensors'", "plain name")


def test_an_adapter_would_load_another_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}', "utf-8")
    refused(lambda: load_whole(str(folder)), "adapter", "merge")


def test_links(folder, tmp_path):
    shard = next(folder.glob("*.safetensors"))
    shard.rename(folder / "kept.safetensors")
    shard.symlink_to("kept.safetensors")
    assert load_whole(str(folder)), "a link within the folder is fine"
    (tmp_path / "linked").symlink_to(folder)
    assert load_whole(str(tmp_path / "linked")), "and so is a link to the folder"
    (folder / "kept.safetensors").rename(tmp_path / "out.safetensors")
    shard.unlink()
    shard.symlink_to(tmp_path / "out.safetensors")
    refused(lambda: load_whole(str(folder)), shard.name, "out.safetensors", "put the file itself there")


def test_weights_that_are_not_finite(folder):
    from safetensors.torch import load_file, save_file

    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(lambda: load_whole(str(folder)), name, "not finite")


# --- code ----------------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM

Path(__file__).with_name("ran").touch()
Path({ran!r}).touch()

class OwnConfig(Qwen3Config):
    model_type = "fewstep-test-own"

class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder, tmp_path, monkeypatch):
    """The model, now with a class of its own that leaves a mark when it is imported."""
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (folder / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")), "utf-8")
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(folder / "config.json", model_type="fewstep-test-own", auto_map=auto)
    return folder


def test_code_runs_only_where_the_model_is_named(own_code, tmp_path):
    ran = tmp_path / "ran"
    refused(lambda: load_whole(str(own_code)), "its own model code", "trust_remote_code")
    for trusted in (True, "org/name", str(own_code) + "/"):
        refused(lambda trusted=trusted: load_whole(str(own_code), trust_remote_code=trusted), "trust_remote_code")
    assert not ran.exists()
    assert type(load_whole(str(own_code), trust_remote_code=str(own_code))).__name__ == "OwnModel"
    assert ran.exists()


def test_a_tokenizers_code_never_runs(own_code, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask, and take this answer
    edit(own_code / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    edit(own_code / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    assert len(load_tokenizer(str(own_code))) == 259, "what its code would make of tokenizer.json is in that file"
    (own_code / "tokenizer.json").unlink()
    refused(lambda: load_tokenizer(str(own_code)), "cannot load a tokenizer")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModelForCausalLM": "other/repository--own.OwnModel"}},
        {"attn_implementation": "other/kernels"},
        {"_attn_implementation": {"text_config": "other/kernels@main:f"}},
        {"text_config": {"_attn_implementation_internal": "other/kernels"}},
    ],
)
def test_code_in_another_repository_is_never_run(config, own_code, tmp_path):
    edit(own_code / "config.json", **config)
    refused(lambda: load_whole(str(own_code), trust_remote_code=str(own_code)), "other/", "another repository")
    assert not (tmp_path / "ran").exists()


def test_trust_names_the_model():
    assert check_trust(parse_source(PINNED), "org/name")
    assert not check_trust(parse_source(PINNED), None)
    for wrong in ("org/other", PINNED, "", "true"):
        refused(lambda wrong=wrong: check_trust(parse_source(PINNED), wrong), "trust_remote_code: org/name")


@pytest.mark.parametrize("value", [True, False, "org/other", 1])
def test_trust_in_a_config(value):
    teacher = {"path": PINNED, "trust_remote_code": value}
    refused(lambda: validate(DistillConfig, DISTIL | {"teacher": teacher}), "trust_remote_code")
    assert validate(DistillConfig, DISTIL | {"teacher": {**teacher, "trust_remote_code": "org/name"}})


# --- saved datasets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "", ".", "..", None, 3, "a/b.arrow"])
def test_a_saved_dataset_reads_only_its_own_files(name, tmp_path):
    import datasets

    from distill.config import DataConfig

    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["one", "two"]})}).save_to_disk(tmp_path / "d")
    assert list(read_documents(DataConfig(path=str(tmp_path / "d"), length=8))) == ["one", "two"]
    edit(tmp_path / "d/train/state.json", _data_files=[{"filename": name}])
    refused(lambda: list(read_documents(DataConfig(path=str(tmp_path / "d"), length=8))), "state.json", repr(name))
    edit(tmp_path / "d/dataset_dict.json", splits=["../d/train"])
    refused(lambda: list(read_documents(DataConfig(path=str(tmp_path / "d"), length=8))), "'../d/train'")


# --- Git LFS and the home folder -------------------------------------------------------------------------------------

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"


@pytest.mark.parametrize(
    ("pattern", "load"),
    [("model-00002-*.safetensors", load_denoiser), ("config.json", load_denoiser), ("tokenizer.json", load_tokenizer)],
)
def test_a_git_lfs_pointer_is_not_the_file(pattern, load, folder):
    (path,) = folder.glob(pattern)
    path.write_text(LFS_POINTER, "utf-8")
    refused(lambda: load(str(folder)), str(path), "is a Git LFS pointer, not the file; run git lfs pull")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_folder("~/model") == tmp_path / "model"
    assert parse_source("~/corpus.txt", kind="dataset").path == str(tmp_path / "corpus.txt")

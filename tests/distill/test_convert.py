"""`fewstep convert`: one's own autoregressive model becomes a teacher, and whatever does not fit is said before."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import fewstep
from benchmarks.conversion import SETTINGS, markdown
from distill import cli
from distill.commands.distil import distil
from distill.config import DistillConfig, PretrainConfig, load_config
from distill.runtime.checkpoints import checkpoint_folders, latest_checkpoint
from distill.runtime.run_folder import RunFolder
from distill.training.pretraining import new_denoiser, tokenizer_of
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.vocabulary import NEW_MASK, read_tokenizer, set_mask
from tests.distill.runs import ROOT
from tests.networks import shape

LENGTH = 16
TEXT = "the cat sat on the mat and looked at the moon. "
EVERYTHING = [
    "model.attention=block", "model.block_size=4", "masks.complementary=true", "masks.documents=true",
    "masks.block_sizes=[[0, 2], [0.25, 16], [0.5, 4]]", "train.student.rates.attention=2",
]  # fmt: skip


def plain_tokenizer(folder):
    """An autoregressive model's: it ends texts, has a special token that nothing uses, and no mask."""
    words = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = Tokenizer(models.BPE(vocab=words, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|unused|>"]})
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder, family="qwen3", tokens=258, **changes):
    torch.manual_seed(0)
    sizes = shape(32, 2) | {"max_position_embeddings": 32, "vocab_size": tokens, "initializer_range": 0.3} | changes
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(folder)
    plain_tokenizer(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small autoregressive model and documents of different lengths."""
    home = tmp_path_factory.mktemp("convert")
    save_model(home / "model")
    rows = [json.dumps({"text": TEXT[: 5 + 7 * n % 40]}) for n in range(60)]
    (home / "corpus.jsonl").write_text("\n".join(rows), "utf-8")
    return home


def convert(home, run, *words, model=None):
    """The command as it is, in this process: `UserError` for a mistake."""
    settings = [
        f"data={{path: {home / 'corpus.jsonl'}, length: {LENGTH}, heldout_fraction: 0.1}}", "train.updates=4",
        "train.batch=4", "train.precision=float32", "train.log_every=1", "train.checkpoint_every=2",
    ]  # fmt: skip
    command = [str(model or home / "model"), *settings, *words, "--run", str(run)]
    cli.app(["convert", *command], standalone_mode=False)
    return RunFolder(run)


def mask_of(folder):
    return read_tokenizer(folder).mask_token


@pytest.mark.parametrize(
    "words", [[], ["masks.anneal=0.5", "model.shift=true"], EVERYTHING], ids=["plain", "annealed", "everything"]
)
def test_a_conversion_is_a_teacher_and_the_same_when_it_is_resumed(words, home, tmp_path):
    run = convert(home, tmp_path / "run", *words)
    folder = run.path / "model"
    teacher = fewstep.load_teacher(str(folder))
    assert (teacher.spec.mask_id, mask_of(folder)) == (258, NEW_MASK)
    assert teacher.spec.shift == ("model.shift=true" in words)
    assert (teacher.spec.attention, teacher.spec.block_size) == (
        ("block", 4) if words is EVERYTHING else ("full", None)
    )
    assert set(json.loads((run.path / "heldout.json").read_text("utf-8"))) >= {"heldout_nats", "bits_per_byte"}
    before = load_file(home / "model/model.safetensors")["model.embed_tokens.weight"]
    assert len(load_file(folder / "model.safetensors")["model.embed_tokens.weight"]) == len(before) + 1
    # the same, cut after its first checkpoint
    half = tmp_path / "half"
    shutil.copytree(run.path, half)
    for late in checkpoint_folders(RunFolder(half))[1:]:
        shutil.rmtree(late)
    shutil.rmtree(half / "model")
    again = convert(home, half, *words, "--resume")
    one, other = (load_file(r.path / "model/model.safetensors") for r in (run, again))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert latest_checkpoint(again).name == "update-00000004"


def test_a_converted_model_distils(home, tmp_path):
    folder = convert(home, tmp_path / "run", "model.attention=block", "model.block_size=4").path / "model"
    config = load_config(
        DistillConfig, ROOT / "configs/smoke.yaml",
        [f"teacher.path={folder}", f"length={LENGTH}", "train.updates=2", "train.batch=2", "evaluate.every=null"],
    )  # fmt: skip
    assert distil(config, tmp_path / "distilled").is_dir()


def test_the_bundled_judge_converts_by_one_short_command(tmp_path):
    words = ["train.updates=3", "train.batch=2", "data.length=32", "train.precision=float32"]
    cli.app(["convert", "bundled:judge", "--run", str(tmp_path / "run"), *words], standalone_mode=False)
    spec = load_denoiser(str(tmp_path / "run/model")).spec
    assert (spec.mask_id, spec.shift, spec.attention) == (1, False, "full")


@pytest.mark.parametrize("name", ["annealed", "block", "complementary", "rates"])
def test_the_configs_are_pretraining_with_a_start(name):
    config = load_config(PretrainConfig, f"bundled:convert/{name}", ["model.init=bundled:judge"])
    assert config.model.init == "bundled:judge"
    assert read_tokenizer_of(config).mask_token == NEW_MASK


def read_tokenizer_of(config):
    """What `tokenizer_of` gives for a run that has none of its own yet."""
    return tokenizer_of(config, RunFolder(ROOT / "no-such-run"))


# --- the mask token ------------------------------------------------------------------------------------------------


def test_a_mask_is_the_tokenizers_own_or_added_or_one_that_is_named(tmp_path):
    tokenizer = plain_tokenizer(tmp_path)
    set_mask(tokenizer, None)
    assert (tokenizer.mask_token, tokenizer.mask_token_id, len(tokenizer)) == (NEW_MASK, 258, 259)
    set_mask(tokenizer, None)
    assert len(tokenizer) == 259
    for name in ("<|unused|>", 257):
        reused = read_tokenizer(tmp_path)
        set_mask(reused, name)
        assert (reused.mask_token, reused.mask_token_id, len(reused)) == ("<|unused|>", 257, 258)


def test_a_reused_mask_is_the_models_and_its_tokenizers(home, tmp_path):
    folder = convert(home, tmp_path / "run", "tokenizer.mask=<|unused|>").path / "model"
    assert load_denoiser(str(folder)).spec.mask_id == read_tokenizer(folder).mask_token_id == 257
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert len(table) == 258


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        ("<|unusd|>", ("'<|unusd|>'", "no token of the tokenizer", "did you mean '<|unused|>'")),
        (777, ("777", "no token of the tokenizer")),
        ("a", ("'a'", "ordinary token")),
        ("<|endoftext|>", ("'<|endoftext|>'", "end-of-text")),
    ],
)
def test_masks_that_are_none(mask, parts, tmp_path):
    with pytest.raises(UserError) as caught:
        set_mask(plain_tokenizer(tmp_path), mask)
    assert all(part in str(caught.value) for part in parts), caught.value


# --- refusals ------------------------------------------------------------------------------------------------------


def refusal(home, run, *words, model=None):
    """The one line with which a conversion is refused before there is a folder."""
    with pytest.raises(UserError) as caught:
        convert(home, run, *words, model=model)
    assert not run.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["model.attention=block", "model.block_size=5"], ("data.length 16", "block of 5")),
        (["model.attention=block", "model.block_size=4", "masks.block_sizes=[[0, 3], [0.5, 4]]"], ("block of 3",)),
        (["model.attention=block", "model.block_size=4", "masks.block_sizes=[[0, 2]]"], ("end with 2", "is 4")),
        (["masks.block_sizes=[[0, 2]]"], ("end with 2", "model.block_size is None")),
        (["model.attention=block", "model.block_size=4", "masks.anneal=0.5"], ("masks.anneal 0.5", "'block'")),
        (["masks.documents=true", "data.pack=false"], ("masks.documents", "data.pack")),
        (["masks.anneal=0"], ("masks.anneal", "greater than 0")),
        (["masks.anneal=1.5"], ("masks.anneal", "1")),
        (["masks={complementary: true}", "edit={rate: 0.2}"], ("edit", "masks")),
        (["masks.complementary=true", "objective=autoregressive"], ("masks is set", "'autoregressive'")),
        (["objective=autoregressive"], ("'autoregressive'", "no diffusion model")),
        (["model.shape={hidden_size: 8}"], ("model.shape", "leave it out")),
        (["train.student.rates.attention=0"], ("rates.attention", "greater than 0")),
        (["train.student.rates.atention=2"], ("atention", "'attention'")),
        (["tokenizer.mask=nothing"], ("'nothing'", "no token")),
        (["data.length=64"], ("data.length 64", "32 positions")),
    ],
)
def test_settings_that_do_not_fit(words, parts, home, tmp_path):
    message = refusal(home, tmp_path / "run", *words)
    assert all(part in message for part in parts), message


def test_a_model_that_is_a_denoiser_already(home, tmp_path):
    message = refusal(home, tmp_path / "run", model="bundled:teacher")
    assert "bundled:teacher" in message
    assert "diffusion model already" in message
    message = refusal(
        home, tmp_path / "run", "model={attention: block, block_size: 4, shift: true}", model="bundled:teacher"
    )
    assert "shift False" in message


def test_a_denoiser_of_full_attention_becomes_one_of_blocks(home, tmp_path):
    """Nothing but where its tokens look changes before the first update: not even the mask's embedding."""
    config = load_config(PretrainConfig, ROOT / "configs/pretrain/novels-blocks.yaml", ["data.length=32"])
    words = read_tokenizer(ROOT / "teachers/bundled/teacher")
    start, teacher = new_denoiser(config, words), load_denoiser("bundled:teacher")
    assert (start.spec.attention, start.spec.block_size, start.spec.mask_id) == ("block", 16, teacher.spec.mask_id)
    for (name, ours), (_, theirs) in zip(start.named_parameters(), teacher.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    one_block = Canvas.blank(1, 16, teacher.spec.mask_id)
    torch.testing.assert_close(start.log_probs(one_block), teacher.log_probs(one_block))


def test_models_that_are_no_causal_language_models(home, tmp_path):
    for name, title in (("mdlm", "an MDLM checkpoint"), ("llada", "LLaDA")):
        released = ROOT / "tests/golden" / name / "checkpoint"
        message = refusal(home, tmp_path / "run", f"tokenizer.path={home / 'model'}", model=released)
        assert f"is {title} and needs no conversion; distil it as teacher.path" in message
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = AutoConfig.for_model("bert", vocab_size=258, max_position_embeddings=32, initializer_range=0.3, **sizes)
    AutoModelForCausalLM.from_config(bert).save_pretrained(tmp_path / "bert")
    plain_tokenizer(tmp_path / "bert")
    assert "not autoregressive" in refusal(home, tmp_path / "run", model=tmp_path / "bert")


def test_recurrent_models_can_not_look_ahead(home, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 258, "intermediate_size": 64}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).save_pretrained(tmp_path / "mamba")
    plain_tokenizer(tmp_path / "mamba")
    message = refusal(home, tmp_path / "run", model=tmp_path / "mamba")
    assert "mamba" in message


@pytest.mark.parametrize(
    ("family", "changes", "words", "part"),
    [
        ("stablelm", {}, [], "can not look at later tokens"),  # it reads from left to right whatever its config says
        ("bloom", {"n_layer": 2, "n_head": 2}, ["masks.documents=true"], "attention and positions of ours"),
        ("gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}, [], "later tokens"),
    ],
)
def test_networks_that_do_not_do_as_they_are_told(family, changes, words, part, home, tmp_path):
    save_model(tmp_path / family, family, **changes)
    message = refusal(home, tmp_path / "run", *words, model=tmp_path / family)
    assert f"({family})" in message
    assert part in message


def test_the_model_to_convert_is_named_once(home, tmp_path):
    for words in (["model.init=bundled:judge"], ["model={init: bundled:judge}"]):
        message = refusal(home, tmp_path / "run", *words)
        assert message == (
            f"model.init is 'bundled:judge', but the model to convert is {str(home / 'model')!r}; leave model.init out"
        )
    convert(home, tmp_path / "run", f"model.init={home / 'model'}", "train.updates=1")


def test_layers_of_a_window_do_not_take_masks_of_ours(home, tmp_path):
    save_model(tmp_path / "windowed", "mistral", sliding_window=8)
    message = refusal(home, tmp_path / "run", "masks.documents=true", model=tmp_path / "windowed")
    assert "8 tokens alone" in message
    assert "at most 8" in message
    convert(home, tmp_path / "run", "train.updates=1", model=tmp_path / "windowed")  # full attention keeps the window


def test_the_table_in_the_documentation_is_that_of_its_figures():
    figures = json.loads((ROOT / "docs/conversion.json").read_text("utf-8"))
    assert markdown(figures) in (ROOT / "docs/conversion.md").read_text("utf-8")
    by_setting = {name: [f["heldout_nats"] for f in figures if f["setting"] == name] for name in SETTINGS}
    assert max(by_setting["plain"]) < min(by_setting["from scratch"])

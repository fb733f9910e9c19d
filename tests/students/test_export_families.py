"""The way back: a teacher of every family written again, and students in the layouts that others read."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import fewstep
from distill.export import LAYOUTS
from students.adapters import AdaptedDenoiser, AdapterConfig, merged
from students.export import export_student
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import FAMILIES, load_denoiser, resolve
from teachers.families.language import LANGUAGE, as_sdar
from teachers.families.language.as_sdar import tokenizer_with_mask_at
from teachers.families.stock.loading import create_denoiser
from teachers.families.stock.packed import pack, scheme_of, unpack
from teachers.vocabulary import read_tokenizer
from tests.golden.places import COPIES, checkpoint_of
from tests.networks import shape
from tests.teachers.test_golden_language import NAMED

RELEASED = [family.name for family in FAMILIES if (COPIES / family.name).is_dir()]
LANGUAGES = [family.name for family in LANGUAGE if family.name in RELEASED]
PACKABLE = [family.name for family in LANGUAGE if family.name in RELEASED and "compression" in family.capabilities]


def teacher_of(name):
    return fewstep.load_teacher(checkpoint_of(COPIES, name), **NAMED.get(name, {}))


def tensors_of(folder):
    return {key: tensor for file in folder.glob("model*.safetensors") for key, tensor in load_file(file).items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def assert_equal_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor, theirs[key]), key


def canvas_of(model, padding=0):
    """Half of it masked; the first row begins with padding."""
    tokens = torch.arange(32).view(2, 16) % 20
    tokens[:, ::2] = model.spec.mask_id
    real = torch.ones(2, 16, dtype=torch.long)
    real[0, :padding] = 0
    return tokens, real


def assert_same_law(one, other, padding=0, atol=0.0):
    tokens, real = canvas_of(one, padding)
    laws = [model.log_probs(tokens, real if padding else None)[real.bool()] for model in (one, other)]
    torch.testing.assert_close(*laws, atol=atol, rtol=0)


@pytest.mark.parametrize("name", RELEASED)
def test_a_teacher_is_exported_as_it_was_released_and_again(name, tmp_path):
    released, teacher = checkpoint_of(COPIES, name), teacher_of(name)
    once = fewstep.export(teacher, tmp_path / "once")
    again = fewstep.export(fewstep.load_teacher(once), tmp_path / "again")
    for folder in (once, again):
        assert_equal_tensors(tensors_of(folder), tensors_of(released))
        config = config_of(folder)
        assert config.pop("fewstep", None) == ({"family": "diffullama"} if name == "diffullama" else None)
        assert config == config_of(released)
        for path in released.glob("*token*"):
            assert (folder / path.name).read_bytes() == path.read_bytes()
        generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
        if (released / "generation_config.json").is_file():
            written = json.loads((released / "generation_config.json").read_text("utf-8"))
            written.pop("_from_model_config", None)
            assert generation.items() >= written.items()
        assert (generation["max_denoising_steps"], generation["noise_schedule"]) == (8, "log-linear")


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_stock_layout_is_read_by_transformers_and_by_us_as_the_same_law(name, tmp_path):
    teacher = teacher_of(name)
    folder = fewstep.export(teacher, tmp_path / "stock", layout="stock")
    network, config = teacher.denoiser.network, config_of(folder)
    assert config["architectures"] == [type(network).__name__]
    assert config["eos_token_id"] == teacher.denoiser.spec.eos_id
    assert "auto_map" not in config
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens, _ = canvas_of(teacher)
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens, use_cache=False).logits for model in (network, stock))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    student = fewstep.load_student(folder)
    assert student.spec == teacher.spec
    for padding in (0, 3):
        assert_same_law(teacher, student, padding, 1e-5)
    again = fewstep.export(student, tmp_path / "again")
    assert_equal_tensors(tensors_of(folder), tensors_of(again))


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_snippet_on_the_card_draws_from_the_law(name, tmp_path, monkeypatch):
    teacher = teacher_of(name)
    folder = fewstep.export(teacher, tmp_path / "stock", layout="stock", steps=1)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.print", lambda *_: None)
    scope = {}
    exec(code, scope)  # one step: all is drawn from a blank canvas
    found, length = scope["logits"].log_softmax(-1), scope["canvas"].shape[1]
    law = teacher.log_probs(torch.full((1, length), teacher.spec.mask_id))
    words = sorted(set(teacher.tokenizer.get_vocab().values()) - {teacher.spec.mask_id})
    torch.testing.assert_close(found[..., words].float(), law[..., words].log_softmax(-1), atol=1e-4, rtol=0)
    assert found.isfinite().sum() == length * len(words)
    assert set(scope["canvas"][0].tolist()) <= set(words)


@pytest.mark.parametrize("name", PACKABLE)
def test_int8_is_in_stock_layout_and_loads_as_what_was_packed(name, tmp_path):
    teacher = teacher_of(name)
    if name == "diffugpt":
        with pytest.raises(UserError, match="no linear layers but the head; export it without --compress"):
            fewstep.export(teacher, tmp_path / "int8", compress="int8")
        return
    folder = fewstep.export(teacher, tmp_path / "int8", compress="int8")
    network, read = teacher.denoiser.network, fewstep.load_student(folder).denoiser.network.state_dict()
    scheme = scheme_of(network, "int8")
    for key, weight in network.state_dict().items():
        if key.endswith("proj.weight"):
            expected = unpack(pack(weight, scheme), scheme)
        else:
            expected = weight.bfloat16().float() if weight.ndim > 1 else weight
        torch.testing.assert_close(read[key], expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(UserError, match=r"int8 weights .* names of a stock class.*choose layout stock"):
        fewstep.export(teacher, tmp_path / "own", compress="int8", layout="own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(("compress", "bits", "cost"), [("int8", 8, 1e-4), ("int4", 4, 0.01)])
def test_the_bundled_teachers_compressed_exports_cost_what_their_cards_say(compress, bits, cost, tmp_path):
    teacher = fewstep.load_teacher("bundled:teacher")
    folder = fewstep.export(teacher, tmp_path / "out", compress=compress)
    weights = config_of(folder)["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"]) == (bits, 64 if bits == 4 else None)
    said = re.search(r"half-masked canvases: (\S+) nats", (folder / "README.md").read_text("utf-8")).group(1)
    assert 0 < float(said) < cost
    student, (tokens, _) = fewstep.load_student(folder), canvas_of(teacher)
    p, q = teacher.log_probs(tokens).double(), student.log_probs(tokens).double()
    assert 0 < float((p.exp() * (p - q).nan_to_num(0)).sum(-1).mean()) < 2 * cost
    with pytest.raises(UserError, match="compressed already"):
        fewstep.export(student, tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "layout", "said"),
    [
        ("sdar", "own", r"Served in this format by SGLang and LMDeploy\. Tell it to take blocks of 4\."),
        (
            "llada",
            "own",
            r"In the format of LLaDA: .*\n\nServed in this format by dInfer\. An engine samples",
        ),
        ("dream", "stock", "No inference engine serves masked-diffusion models with full attention in this form"),
        ("sdar", "stock", "No inference engine serves blocks in this form; .* `fewstep export --layout sdar` writes"),
    ],
)
def test_the_card_says_where_an_export_is_served(name, layout, said, tmp_path):
    folder = fewstep.export(teacher_of(name), tmp_path / "out", layout=layout, steps=3)
    card = (folder / "README.md").read_text("utf-8")
    assert re.search(said, card), card
    assert "fewstep generate out --steps 3" in card
    assert 'fewstep.load_student("out").generate()' in card


@pytest.mark.parametrize("layout", ["own", "stock"])
def test_large_exports_are_in_shards_with_an_index(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("teachers.families.stock.denoiser.SHARD", "100KB")
    teacher = teacher_of("llada2")
    folder = fewstep.export(teacher, tmp_path / "out", layout=layout)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert len({*index["weight_map"].values()}) == len(list(folder.glob("model-*.safetensors"))) > 2
    assert_equal_tensors(tensors_of(folder), tensors_of(checkpoint_of(COPIES, "llada2")))
    assert_same_law(teacher, fewstep.load_student(folder), atol=1e-5)


def half_precision(folder, name):
    """A golden checkpoint as most releases are: bfloat16, but for the one-dimensional tensors here."""
    shutil.copytree(checkpoint_of(COPIES, name), folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({k: t.bfloat16() if t.ndim > 1 else t for k, t in tensors.items()}, file, metadata={"format": "pt"})
    config = config_of(folder) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("name", ["llada", "llada2", "sdar"])
def test_what_a_run_trained_in_float32_comes_back_in_the_types_of_the_release(name, tmp_path):
    released = half_precision(tmp_path / "released", name)
    student = resolve(str(released)).load()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 2**-12)  # what bfloat16 can not hold
    student.save(tmp_path / "run")
    trained = tensors_of(tmp_path / "run")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    folder = fewstep.export(fewstep.load_student(tmp_path / "run"), tmp_path / "exported")
    ours, theirs = tensors_of(folder), tensors_of(released)
    assert config_of(folder) == config_of(released)
    assert ours.keys() == theirs.keys() == trained.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype
        assert torch.equal(tensor, trained[key].to(tensor.dtype))
    assert "Weights: bfloat16 and float32. KL to the float32 student" in (folder / "README.md").read_text("utf-8")
    stock = fewstep.export(fewstep.load_student(tmp_path / "run"), tmp_path / "stock", layout="stock")
    assert config_of(stock)["dtype"] == "bfloat16"
    # the student itself is what it was
    assert all(torch.equal(t, trained[k]) for k, t in tensors_of(tmp_path / "run").items())


def test_python_of_a_release_is_copied_and_never_run(tmp_path):
    shutil.copytree(checkpoint_of(COPIES, "sdar"), tmp_path / "released")
    for name in ("modeling_sdar.py", "configuration_sdar.py"):
        (tmp_path / "released" / name).write_text("raise SystemExit('executed')\n", "utf-8")
    folder = fewstep.export(fewstep.load_teacher(tmp_path / "released"), tmp_path / "own")
    assert (folder / "modeling_sdar.py").read_text("utf-8") == "raise SystemExit('executed')\n"
    stock = fewstep.export(fewstep.load_teacher(tmp_path / "released"), tmp_path / "stock", layout="stock")
    assert not list(stock.glob("*.py"))


@pytest.mark.parametrize("name", ["llada", "dream", "llada2"])
def test_a_merged_adapter_is_exported_as_the_release(name, tmp_path):
    base = resolve(str(checkpoint_of(COPIES, name))).load().eval()
    tokenizer = read_tokenizer(checkpoint_of(COPIES, name))
    adapted = AdaptedDenoiser(base, AdapterConfig(rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    folder = export_student(merged(adapted), tokenizer, tmp_path / "own", 4, None, "-")
    assert {k: t.shape for k, t in tensors_of(folder).items()} == {
        k: t.shape for k, t in tensors_of(checkpoint_of(COPIES, name)).items()
    }
    canvas = Canvas.of(canvas_of(base)[0], base.spec.mask_id)
    with torch.no_grad():
        ours, theirs = adapted.log_probs(canvas), load_denoiser(str(folder)).log_probs(canvas)
        assert (ours - base.log_probs(canvas)).nan_to_num(0).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# --- SDAR ------------------------------------------------------------------------------------------------------------

THETA = 50_000.0
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}


def block_student(model_type="qwen3", mask_id=9, tied=False, **changes):
    """A student of block attention with a tokenizer of 247 entries, and 250 rows; its mask may be any of them."""
    torch.manual_seed(0)
    tokenizer = read_tokenizer(checkpoint_of(COPIES, "dream"))
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(mask_id) if mask_id < len(tokenizer) else None
    fields = shape(32, 2, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    if model_type != "qwen3":
        fields.pop("head_dim")
    spec = {"attention": "block", "block_size": 4, "eos_id": 241, **changes}
    denoiser = create_denoiser(
        model_type, fields | (EXPERTS if "moe" in model_type else {}), DenoiserSpec(mask_id, 250, 32, **spec)
    )
    with torch.no_grad():  # random initialisation hardly tells positions apart
        for parameter in {id(p): p for p in denoiser.parameters() if p.ndim > 1}.values():
            parameter.mul_(10)
    return denoiser.requires_grad_(False).eval(), tokenizer


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe"])
def test_a_block_student_is_written_as_sdar_with_its_rotary_base_where_engines_read_it(model_type, tmp_path):
    denoiser, tokenizer = block_student(model_type, mask_id=246)
    folder = export_student(denoiser, tokenizer, tmp_path / "sdar", 4, None, "-", layout="sdar")
    config, prefix = config_of(folder), {"qwen3": "SDAR", "qwen3_moe": "SDARMoe"}[model_type]
    name = {"qwen3": "sdar", "qwen3_moe": "sdar_moe"}[model_type]
    golden = config_of(checkpoint_of(COPIES, name.replace("_", "-")))
    for_training = {"debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"}
    assert golden.keys() - for_training - {"max_window_layers", "attn_implementation"} <= config.keys()
    assert (config["model_type"], config["architectures"]) == (name, [f"{prefix}ForCausalLM"])
    assert config["auto_map"] == golden["auto_map"]
    assert (config["block_size"], config["mask_token_id"]) == (4, 246)
    # the trap: engines read this key, or take 10,000; no other key may say anything of it
    assert config["rope_theta"] == THETA
    assert config["rope_scaling"] is None
    assert "rope_parameters" not in config
    read = resolve(str(folder))
    assert read.family.name == name.replace("_", "-")
    canvas = Canvas.of(canvas_of(denoiser)[0], 246)
    expected = denoiser.log_probs(canvas)
    torch.testing.assert_close(read.load().log_probs(canvas), expected, atol=1e-5, rtol=0)
    assert tensors_of(folder).keys() == tensors_of(checkpoint_of(COPIES, name.replace("_", "-"))).keys()
    # a reader that falls into it computes something else, which this test would see
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 10_000.0}), "utf-8")
    assert (resolve(str(folder)).load().log_probs(canvas) - expected).nan_to_num(0).abs().max() > 1e-3


@pytest.mark.parametrize("place", [246, 247, 249, 120])
def test_the_mask_moves_to_where_engines_take_it_for_granted(place, tmp_path, monkeypatch):
    """To the place of another token, to the first free one, to one that is free too, and to that of a word."""
    monkeypatch.setattr(as_sdar, "MASK_ID", place)
    monkeypatch.setattr("students.card.MASK_ID", place)
    mask_id = 248 if place == 249 else 242  # no entry of the tokenizer, or one of it
    denoiser, tokenizer = block_student(mask_id=mask_id, tied=place == 120)
    before = {key: tensor.clone() for key, tensor in denoiser.state_dict().items()}
    folder = export_student(denoiser, tokenizer, tmp_path / "sdar", 4, None, "-", layout="sdar")
    assert config_of(folder)["mask_token_id"] == place
    assert all(torch.equal(tensor, before[key]) for key, tensor in denoiser.state_dict().items())
    assert denoiser.model.config.mask_token_id == denoiser.spec.mask_id == mask_id
    other = torch.arange(250)
    other[[mask_id, place]] = other[[place, mask_id]]
    tokens = torch.arange(32).view(2, 16) * 7
    tokens[:, ::2] = mask_id
    law = denoiser.log_probs(Canvas.of(tokens, mask_id))
    read = load_denoiser(str(folder)).log_probs(Canvas.of(other[tokens], place))
    torch.testing.assert_close(read[..., other], law, atol=1e-5, rtol=0)
    words, vocabulary = read_tokenizer(folder), tokenizer.get_vocab()
    if place in (246, 120):
        assert words.get_vocab() == {word: int(other[entry]) for word, entry in vocabulary.items()}
    else:
        assert words.get_vocab() == vocabulary | ({"<|MASK|>": 247} if place == 247 else {})
    assert words.mask_token_id == (None if place == 249 else place)


def test_a_mask_that_can_not_move_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("students.card.MASK_ID", 120)
    monkeypatch.setattr(as_sdar, "MASK_ID", 120)  # a word, which would have to go where no entry is
    denoiser, tokenizer = block_student(mask_id=249)
    assert tokenizer_with_mask_at(tokenizer, 249, 120) is None
    folder = export_student(denoiser, tokenizer, tmp_path / "sdar", 4, None, "-", layout="sdar")
    assert config_of(folder)["mask_token_id"] == 249
    assert "each takes 120 for the mask, and this student's is 249" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"shift": True}, r"SDAR: it predicts the next position \(shift\); choose layout own or stock"),
        ({"attention": "full", "block_size": None}, "SDAR: its attention is 'full', not 'block'"),
        ({"model_type": "llama"}, "SDAR: its model_type is 'llama', not qwen3 or qwen3_moe"),
    ],
)
def test_what_sdar_can_not_be_is_refused(made, message, tmp_path):
    denoiser, tokenizer = block_student(**made)
    with pytest.raises(UserError, match=message):
        export_student(denoiser, tokenizer, tmp_path / "sdar", 4, None, "-", layout="sdar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_release_with_two_end_tokens_keeps_both(layout, tmp_path):
    released = checkpoint_of(COPIES, "sdar") / "generation_config.json"
    folder = fewstep.export(teacher_of("sdar"), tmp_path / "out", layout=layout)
    ends = [json.loads(file.read_text("utf-8"))["eos_token_id"] for file in (released, folder / released.name)]
    assert ends[0] == ends[1] == [241, 239]


def test_layouts_that_are_none_or_not_to_be_had_are_one_line(tmp_path):
    assert LAYOUTS == ("own", "stock", "sdar")
    teacher = teacher_of("mdlm")
    with pytest.raises(
        UserError, match=r"layout 'stok' is unknown; did you mean 'stock'\?; allowed are own, stock, sdar"
    ):
        fewstep.export(teacher, tmp_path / "out", layout="stok")
    for layout in ("stock", "sdar"):
        with pytest.raises(UserError, match=f"layout '{layout}' is for networks of stock transformers.*leave it out"):
            fewstep.export(teacher, tmp_path / "out", layout=layout)
    assert list(tmp_path.iterdir()) == []

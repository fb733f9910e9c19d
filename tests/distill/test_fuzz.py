"""Generated bad input: whatever is in a config, a corpus or a model folder, the answer is right or one line."""

import copy
import json
import math
import shutil
import struct
import sys
from pathlib import Path
from random import Random

import datasets
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import cli
from distill.config import DataConfig, DistillConfig, PretrainConfig, TokenizerConfig, dump_config, load_config
from distill.data.tokenizers import train_tokenizer
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.families.stock.loading import create_denoiser
from tests.networks import shape

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {
    name: (kind, yaml.safe_load((CONFIGS / name).read_text("utf-8")))
    for name, kind in (
        ("smoke.yaml", DistillConfig),
        ("quickstart.yaml", DistillConfig),
        ("pretrain/novels-teacher.yaml", PretrainConfig),
        ("pretrain/oracle-start.yaml", PretrainConfig),
    )
}
DEEPSPEED = ["zero_optimization", "comms_logger", "aio", "checkpoint", "wall_clock_breakdown", "stage", "bf16", "seed"]

# --- configs -------------------------------------------------------------------------------------------------------

numbers = st.sampled_from(
    [0, -1, 1, 2, 7, 2**31, 2**70, -(10**30), 0.0, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf]
)
texts = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    st.sampled_from(["", "bundled:", "bundled:teacher", "../x", "/", "org/name", "org/name@main", "a\nb", "\x1b[31m"]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4), st.dates())
keys = st.one_of(texts, st.integers(-2, 2), st.none(), st.booleans(), st.sampled_from(DEEPSPEED))
junk = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


def places(values, path=()):
    """The path of every value of a config."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def bad_configs(draw):
    """A config that comes with the project, with one to three things done to it; and overrides."""
    kind, values = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(values))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        section = values
        for key in above:
            section = section[key]
        what = draw(st.sampled_from(["drop", "rename", "replace", "replace", "listed", "added", "alias", "deepspeed"]))
        if what == "drop":
            del section[last]
        elif what == "rename" and isinstance(section, dict):
            section[draw(keys | st.just(f"{last}s"))] = section.pop(last)
        elif what == "listed":
            section[last] = [section[last]]
        elif what == "added" and isinstance(section, dict):
            section[draw(keys)] = draw(junk)
        elif what == "alias":
            section[last] = draw(st.sampled_from([values, section, *values.values()]))  # perhaps itself
            break  # it may hold itself now, and has no list of places
        elif what == "deepspeed":
            values["deepspeed"] = {draw(st.sampled_from(DEEPSPEED)): draw(junk)}
        else:
            section[last] = draw(junk)
    overrides = draw(st.lists(st.builds("{}={}".format, texts, texts), max_size=1))
    return kind, values, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(kind, path, overrides=()):
    """A config that writes and reads back as itself, or one printable line."""
    try:
        config = load_config(kind, path, list(overrides))
    except UserError as error:
        said = str(error)
    else:
        again = path.with_name("again.yaml")
        again.write_text(dump_config(config), "utf-8")
        assert load_config(kind, again) == config
        return config
    assert said.isprintable()
    assert 10 < len(said) < 2000
    return None


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(bad_configs())
def test_generated_configs(folder, case):
    kind, values, overrides = case
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    read_or_refuse(kind, path, overrides)


def test_the_configs_that_are_damaged_are_right_before(folder):
    for name, (kind, _) in KINDS.items():
        shutil.copy(CONFIGS / name, folder / "right.yaml")
        assert read_or_refuse(kind, folder / "right.yaml") is not None


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "teacher: &t {path: *t}", "&a [*a]", "deepspeed: &d {x: *d}", "? [1, 2]\n: x", "2001-99-99: x", "x: 2001-99-99",
        "!!python/object/apply:os.system ['true']", "!!binary x", "length: " + "9" * 5000, "length: 0x" + "f" * 5000,
        "[" * 1100, "a: " * 50, BOMB, "deepspeed:\n" + BOMB.replace("\n", "\n  ").replace("a:", "  a:", 1),
        "\ufeffx: 1",
        "--- 1\n--- 2", "<<: 3", "<<: [1]", "train: !!set {a, b}", "null: 1", "{}", "%YAML 9.9\n---\nx: 1", "x: \x07",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [DistillConfig, PretrainConfig])
def test_yaml_that_is_out_of_the_ordinary(kind, text, folder):
    path = folder / "odd.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_config(kind, path)
    assert str(caught.value).isprintable()


# --- files ---------------------------------------------------------------------------------------------------------

LENGTH = 16
SHAPE = shape(num_attention_heads=1, head_dim=16, intermediate_size=16, tie_word_embeddings=False)
TEXTS = [f"the cat sat on the mat {n} times and looked at the moon." for n in range(8)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A teacher in one file and in several, a judge, and a corpus in every format; all small."""
    home = tmp_path_factory.mktemp("files")
    (home / "corpus.txt").write_text("\n".join(TEXTS), "utf-8")
    (home / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), "utf-8")
    table = datasets.Dataset.from_dict({"text": TEXTS})
    table.to_parquet(home / "corpus.parquet")
    table.save_to_disk(home / "corpus")
    datasets.DatasetDict({"train": table}).save_to_disk(home / "splits")
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=LENGTH))
    torch.manual_seed(0)
    for name, attention in (("model", "full"), ("sharded", "full"), ("judge", "causal")):
        spec = DenoiserSpec(
            mask_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
            max_length=LENGTH,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            attention=attention,
            shift=attention == "causal",
        )
        model = create_denoiser("qwen3", SHAPE, spec).model
        model.save_pretrained(home / name, max_shard_size="10KB" if name == "sharded" else "1GB")
        tokenizer.save_pretrained(home / name)
    assert (home / "sharded/model.safetensors.index.json").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "cache"))
        yield home


def flipped(content, random):
    """A few bits are other ones."""
    content = bytearray(content)
    for _ in range(3):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def replaced(content, random):
    """One JSON value is another: of another type, out of range, or a path to elsewhere."""
    values = json.loads(content)
    section = values
    for _ in range(random.randrange(1, 3)):
        key = random.choice(sorted(section))
        if not isinstance(section[key], dict) or not section[key]:
            break
        section = section[key]
        key = random.choice(sorted(section))
    section[key] = random.choice([None, -1, 0, 2**40, 1.5, "x", "../../x", [], {}, [{}], True, [[1]]])
    return json.dumps(values).encode()


DAMAGES = {
    "emptied": lambda content, random: b"",
    "truncated": lambda content, random: content[: random.randrange(1, len(content))],
    "flipped": flipped,
    "zeroed": lambda content, random: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "shuffled": lambda content, random: bytes(random.sample(content, len(content))),
    "doubled": lambda content, random: content * 2,
    "utf-16": lambda content, random: content.decode("latin-1").encode("utf-16"),
    "null": lambda content, random: b"null",
    "list": lambda content, random: b"[1, 2]",
    "nested": lambda content, random: b"[" * 100_000,
    "huge header": lambda content, random: struct.pack("<Q", 2**62) + content[8:],
}
JSON_FILES = [
    "model/config.json",
    "model/generation_config.json",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
]
JSON_FILES += ["sharded/model.safetensors.index.json"]
CASES = [
    *[("export", f, d, 0) for f in JSON_FILES for d in ("truncated", "flipped", "null", "nested")],
    *[("export", f, "replaced", seed) for f in JSON_FILES for seed in range(3)],
    *[("export", "model/tokenizer.json", d, 0) for d in ("emptied", "utf-16", "list")],
    *[("export", "model/model.safetensors", "flipped", seed) for seed in range(3)],
    *[("export", "model/model.safetensors", d, 0) for d in ("truncated", "zeroed", "doubled", "huge header")],
    *[("data", "corpus.txt", d, 0) for d in ("emptied", "truncated", "shuffled", "utf-16")],
    *[("data", "corpus.jsonl", d, 0) for d in ("emptied", "truncated", "flipped", "utf-16", "null", "nested")],
    *[("data", "corpus.parquet", d, 0) for d in ("emptied", "truncated", "flipped", "zeroed", "shuffled", "doubled")],
    *[("data", "corpus/state.json", d, 0) for d in ("truncated", "null", "replaced")],
    *[("data", "corpus/dataset_info.json", d, 0) for d in ("flipped", "list", "replaced")],
    *[("data", "corpus/data-00000-of-00001.arrow", d, 0) for d in ("emptied", "truncated", "flipped", "shuffled")],
    *[("data", "splits/dataset_dict.json", d, 0) for d in ("flipped", "null", "replaced")],
    *[("judge", "judge/config.json", d, 0) for d in ("flipped", "replaced")],
]  # fmt: skip


def command(arguments):
    """Run the real command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or 0
    return 0


def arguments(kind, home, damaged, out):
    """The command that reads the damaged copy, and for data and judge the whole files beside it."""
    if kind == "export":
        return ["export", damaged, "--out", out]
    data, judge = (damaged, home / "judge") if kind == "data" else (home / "corpus.txt", damaged)
    names = ["--student", home / "model", "--judge", judge, "--data", data, "--out", out]
    return ["evaluate", *names, "samples=2", "steps=[1]", "batch=2", "bootstrap=2"]


def whole(kind, out):
    """Whether a command left what it is for."""
    if kind != "export":
        return math.isfinite(json.loads((out / "evaluation.json").read_text("utf-8"))["rows"][-1]["judge_perplexity"])
    denoiser = load_denoiser(str(out))
    return not denoiser.log_probs(Canvas.blank(1, LENGTH, denoiser.spec.mask_id)).isnan().any()


@pytest.mark.parametrize(("kind", "file", "damage", "seed"), CASES, ids=["-".join(map(str, c)) for c in CASES])
def test_damaged_files(kind, file, damage, seed, home, tmp_path, capfd):
    top, _, inner = file.partition("/")
    damaged = tmp_path / top
    (shutil.copytree if inner else shutil.copy)(home / top, damaged)
    path = damaged / inner if inner else damaged
    random = Random(f"{file} {damage} {seed}")
    path.write_bytes((replaced if damage == "replaced" else DAMAGES[damage])(path.read_bytes(), random))
    out = tmp_path / "out"
    code = command(arguments(kind, home, damaged, out))
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    if code == 0:
        assert whole(kind, out)
        return
    assert code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert line.isprintable()
    assert sorted(p.name for p in tmp_path.iterdir()) == [top], "nothing is left behind"


@pytest.mark.parametrize(
    ("kind", "source"),
    [("export", "model"), ("export", "sharded"), ("judge", "judge")]
    + [("data", name) for name in ("corpus.txt", "corpus.jsonl", "corpus.parquet", "corpus", "splits")],
)
def test_the_files_are_right_before_they_are_damaged(kind, source, home, tmp_path):
    assert command(arguments(kind, home, home / source, tmp_path / "out")) == 0
    assert whole(kind, tmp_path / "out")

"""`fewstep teachers`: the table is the README's and true, and what is said of a checkpoint is read without a weight."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors import safe_open

import fewstep
from distill.commands.teachers import teachers_command
from teachers.description import describe, families
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.headers import read_headers
from teachers.vocabulary import read_tokenizer
from tests.forks import ROOT
from tests.golden.places import COPIES, checkpoint_of

GOLDEN = {"bd3lm-full": "bd3lm"}
"""Cases that are another checkpoint of a family."""


def written(capsys, name=None, **options):
    capsys.readouterr()
    teachers_command(name, **{"family": None, "tokenizer": None, "as_json": False, "as_markdown": False, **options})
    return capsys.readouterr().out


def test_the_readme_has_the_table(capsys):
    assert written(capsys, as_markdown=True) in (ROOT / "README.md").read_text("utf-8"), "fewstep teachers --markdown"


def test_what_is_called_verified_has_a_golden_case():
    cases = {
        GOLDEN.get(folder.name, folder.name)
        for folder in COPIES.iterdir()
        if (folder / "reference.safetensors").is_file()
    }
    assert {row.name for row in families() if row.verified in ("law", "law, traces")} == cases
    traces = {path.parent.name for path in COPIES.glob("*/trace.json")}
    assert {row.name for row in families() if row.verified == "law, traces"} == traces


@pytest.mark.parametrize("row", families(), ids=lambda row: row.name)
def test_the_table_says_what_a_golden_checkpoint_is(row):
    folder = checkpoint_of(COPIES, row.name)
    if not folder.is_dir():
        pytest.skip(f"{row.name} has no golden checkpoint")
    checkpoint = resolve(str(folder), family=row.name)
    description = describe(checkpoint, read_tokenizer(folder) if any(folder.glob("tokenizer*")) else None)
    assert row.shift == ("yes" if description.shift else "no")
    assert row.attention.startswith("blocks" if description.attention == "block" else "full")
    assert set(row.without) == set(description.without)
    assert description.network.lower().startswith(("glm4moe", "diffusion", row.network.split(",")[0].replace("_", "")))


def test_every_form(capsys):
    table, rows = written(capsys), json.loads(written(capsys, as_json=True))
    assert [row["name"] for row in rows] == [row.name for row in families()]
    assert all(row["name"] in table and all(release in table for release in row["releases"]) for row in rows)
    with pytest.raises(UserError, match="--json and --markdown are two forms"):
        teachers_command(None, None, None, True, True)
    with pytest.raises(UserError, match="give its folder, too"):
        teachers_command(None, "llada", None, False, False)


def test_what_is_said_of_a_checkpoint(capsys):
    folder = checkpoint_of(COPIES, "dream")
    said = json.loads(written(capsys, str(folder), as_json=True))
    with safe_open(sorted(folder.glob("*.safetensors"))[0], "pt") as file:
        assert set(file.keys()) <= read_headers(folder, {}).tensors.keys()
    numbers = sum(tensor.numbers for tensor in read_headers(folder, {}).tensors.values())
    assert (said["family"], said["network"], said["parameters"], said["shards"]) == (
        "dream",
        "Qwen2ForCausalLM",
        numbers,
        2,
    )
    assert said["dtypes"] == {"F32": numbers}
    assert said["disk"] == said["memory"]["float32"] == 4 * numbers == 2 * said["memory"]["bfloat16"]
    assert (said["mask_id"], said["mask_source"], said["shift"], said["attention"]) == (
        246,
        "config.json",
        True,
        "full",
    )
    assert (said["vocabulary"], said["entries"], said["length"], said["tied"]) == (
        248,
        len(read_tokenizer(folder)),
        64,
        False,
    )
    text = written(capsys, str(folder))
    assert "shift       yes: it predicts the next position" in text
    assert f"| mask | 246: {said['mask_source']} |" in written(capsys, str(folder), as_markdown=True)


def test_who_says_which_token_is_the_mask():
    said = {}
    for name in ("llada", "sdar", "llada2", "a2d", "mdlm"):
        folder = checkpoint_of(COPIES, name)
        words = read_tokenizer(folder) if any(folder.glob("tokenizer*")) else None
        said[name] = describe(resolve(str(folder)), words).mask_source
    assert said["llada"] == "config.json"
    assert said["a2d"] == "the tokenizer's mask token, <|mask|>"
    assert said["llada2"] == "the token <|mask|> of the tokenizer, as the releases have it"
    assert said["mdlm"] == "as the releases have it; no file says so"


def test_who_says_how_large_blocks_are(capsys, tmp_path):
    golden = checkpoint_of(COPIES, "sdar")
    config = json.loads((golden / "config.json").read_text())
    unsaid = {key: value for key, value in config.items() if key != "block_size"}
    for name, written_config, options, size, source in (
        ("sdar", config, {}, config["block_size"], "config.json"),
        ("sdar-b8", config, {}, config["block_size"], "config.json"),
        ("sdar-b8", unsaid, {}, 8, "the checkpoint's name"),
        ("sdar-b8", unsaid, {"block_size": 2}, 2, "as you set it"),
        ("sdar-b8x", unsaid, {}, 4, "as the releases have it; no file says so"),
        ("sdar-b8", unsaid, {"attention": "full"}, None, None),
    ):
        folder = tmp_path / name
        shutil.copytree(golden, folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps(written_config))
        checkpoint = resolve(str(folder))
        said = describe(checkpoint, **options)
        assert (said.block_size, said.block_source) == (size, source)
        assert checkpoint.load(**options).spec.block_size == size
        assert checkpoint.family.sketch(checkpoint, **options).spec.block_size == size
    (tmp_path / "sdar-b8" / "config.json").write_text(json.dumps(unsaid))
    assert "blocks of 8, the checkpoint's name" in written(capsys, str(tmp_path / "sdar-b8"))
    # a student in another folder still knows
    load_denoiser(str(tmp_path / "sdar-b8")).save(tmp_path / "student")
    student = resolve(str(tmp_path / "student"))
    assert (student.config.get("block_size"), student.load().spec.block_size) == (None, 8)


def test_no_weight_is_read(tmp_path):
    folder = Path(shutil.copytree(checkpoint_of(COPIES, "llada-moe"), tmp_path / "model"))
    before, path = describe(resolve(str(folder))), folder / "model.safetensors"
    header = path.read_bytes()[: path.stat().st_size - before.disk]
    path.write_bytes(header + b"\xff" * before.disk)  # every number NaN
    assert describe(resolve(str(folder))) == before
    with pytest.raises(UserError, match="not finite"):
        resolve(str(folder)).load()


def test_python_says_the_same(capsys):
    folder = checkpoint_of(COPIES, "llada")
    said = json.loads(written(capsys, str(folder), as_json=True), object_hook=as_tuples)
    assert asdict(fewstep.describe(folder)) == said
    assert fewstep.families() == families()


def as_tuples(values):
    """Lists as the tuples that they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def test_a_judge_is_no_teacher(capsys):
    said = json.loads(written(capsys, "bundled:judge", as_json=True))
    assert said["attention"] == "causal"
    assert said["can"] == ["judging", "fewstep convert"]
    assert said["without"] == ["distillation, before it is converted"]
    assert any("autoregressive" in warning for warning in said["warnings"])


def test_a_run_is_named_what_to_do_with(tmp_path):
    (tmp_path / "config.yaml").write_text("length: 32", "utf-8")
    with pytest.raises(UserError, match=r"no config\.json; .*of a run, what fewstep export writes"):
        describe(resolve(str(tmp_path)))

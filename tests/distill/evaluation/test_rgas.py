"""`fewstep evaluate RUN sampler=rgas`: the run's own discriminator comes back from its checkpoint and is asked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.evaluate import evaluate_command
from distill.config import DistillConfig, load_config
from distill.models import load_discriminator, load_teacher
from distill.runtime.checkpoints import latest_checkpoint
from students.critic import Discriminator
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from tests.distill.runs import here
from tests.networks import shape

SHAPE = shape(32, 2, intermediate_size=32, initializer_range=0.1)
SETTINGS = [
    "length=16", "teacher_samples=8", "teacher_sample_steps=4", "train.updates=2", "train.batch=8",
    "train.critic.lr=0.01", "train.precision=bfloat16", "evaluate.samples=4", "evaluate.steps=[2,4]",
    "evaluate.teacher_steps=4", "evaluate.data=null", "evaluate.bootstrap=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A random one over the bundled teacher's tokens."""
    folder = tmp_path_factory.mktemp("teacher")
    _, tokenizer = load_teacher(load_config(DistillConfig, "configs/smoke.yaml").teacher)
    torch.manual_seed(0)
    create_denoiser("qwen3", SHAPE, DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), 32)).save(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", ["null", "{rank: 2}"])
def test_the_trained_discriminator_guides_the_student(teacher, tmp_path, adapter):
    run = here(
        tmp_path / "run", f"teacher.path={teacher}", "objective={name: didi_instruct}",
        f"objective.ratio.adapter={adapter}", "objective.ratio.blocks=1", *SETTINGS,
    )  # fmt: skip
    path = evaluate_command(run.path, overrides=["sampler={name: rgas, candidates: 3, strength: [1, 2]}"])
    result = json.loads(path.read_text("utf-8"))
    assert result["sampling"]["sampler"] == "rgas"
    assert result["sampling"]["sampler_settings"]["accounting"] == "all"
    assert result["sampling"]["sampler_settings"]["strength"] == [1, 2]
    for row in result["rows"]:
        assert row["sampler"] == ("rgas" if row["model"] == "student" else "ancestral")
        assert row["nfe"] <= row["steps"]
    asked = {row["steps"]: row["critic_nfe"] for row in result["rows"] if row["model"] == "student"}
    assert asked[2] == 2 + 3
    assert 2 * 2 < asked[4] <= 2 * (2 + 3)
    assert all(row["critic_nfe"] == 0 for row in result["rows"] if row["model"] == "teacher")
    if adapter == "null":
        overrides = ["sampler={name: rgas, accounting: published}", "precision=bfloat16", "steps=[2]"]
        evaluate_command(run.path, overrides=overrides)
        result = json.loads(path.read_text("utf-8"))
        rows = [row for row in result["rows"] if row["model"] == "student"]
        assert [(row["sampler"], row["critic_nfe"]) for row in rows] == [("rgas (critic passes not counted)", 0)]
        assert result["sampling"]["sampler_settings"]["accounting"] == "published"

    config = load_config(DistillConfig, run.config, ["evaluate.sampler=rgas"])
    base = load_teacher(config.teacher)[0]
    checkpoint = latest_checkpoint(run)
    [file] = (checkpoint / "critic").glob("*.safetensors")
    saved, fresh = load_file(file), Discriminator(base, 1)
    critic = load_discriminator(config, checkpoint, base, base)
    for name in ("0.weight", "0.bias", "2.weight"):
        assert torch.equal(critic.head.get_parameter(name), saved[f"weight/head.{name}"])
        assert not torch.equal(critic.head.get_parameter(name), fresh.head.get_parameter(name))
    assert torch.equal(critic.head[0].direction, saved["buffer/head.0.direction"])
    z = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    canvas = Canvas.of(z, base.spec.mask_id)
    hidden = critic.backbone.hidden_states(canvas)
    assert not torch.equal(hidden, base.hidden_states(canvas)), "the backbone is the teacher's, not the trained one"
    assert not any(p.requires_grad for p in critic.parameters())


def test_without_a_discriminator_it_is_refused_with_a_remedy(teacher, tmp_path):
    run = here(tmp_path / "run", f"teacher.path={teacher}", *SETTINGS)
    places = [((run.path,), r"but integral_kl trained none.*sampler=ancestral")]
    bundled = (None, "bundled:teacher", None, None, None, tmp_path / "out")
    places.append((bundled, r"sampler 'rgas' asks a trained discriminator, and there is none; evaluate the folder"))
    for arguments, match in places:
        with pytest.raises(UserError, match=match) as caught:
            evaluate_command(*arguments, overrides=["sampler=rgas"])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

"""The plan of memory: exact sizes, peaks against a real run, a proposal that can be pasted."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from benchmarks import plan as benchmark
from distill.cli import app
from distill.config import DistillConfig, load_config
from distill.models import load_teacher
from distill.planning import alike
from distill.planning.live_memory import GroupedProducts, PassMemory, Peak
from distill.planning.moments import moments, peak
from distill.planning.passes import Passes, _fill, _Tracer
from distill.planning.propose import largest_micro_batch, with_adapters
from distill.planning.report import heading
from distill.planning.results import Plan
from distill.planning.setup import setup_of
from distill.planning.shapes import Shapes
from objectives.registry import DISTILLERS
from students.adapters import AdaptedDenoiser
from teachers import chunks
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.language import LANGUAGE
from teachers.ops import parts
from teachers.source import BUNDLED
from tests.forks import Command
from tests.golden.places import COPIES, checkpoint_of

ROOT = Path(__file__).parents[3]
SMOKE = ROOT / "configs" / "smoke.yaml"


def config(*overrides):
    return load_config(DistillConfig, SMOKE, list(overrides))


def measured(run, *overrides):
    """What a run allocates, as JSON on stdout."""
    print(json.dumps(benchmark.measure(run, overrides)))


# a critic beside the student; a frozen target, and rollouts that keep its features until the update is over
BLOCKS = ["teacher_samples=4", "teacher_sample_steps=4", "blocks.size=16"]
METHODS = {
    "integral_kl": benchmark.TRAIN,
    "sdtt": [
        *(words for words in benchmark.TRAIN if not words.startswith("objective.")),
        "objective={name: sdtt}", "train.critic=null", "teacher_samples=4", "teacher_sample_steps=2",
    ],
    # student and critic read the blocks of a text in one pass, the teacher each in its own
    "integral_kl in blocks": [*benchmark.TRAIN, *BLOCKS],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_within_15_percent_of_a_real_run(tmp_path, method):
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3}
    benchmark.make_teacher(tmp_path / "teacher", shape, {"vocabulary": 3000, "type": "qwen3"})
    overrides = [f"teacher.path={tmp_path / 'teacher'}", *METHODS[method], "train.batch=4", "length=64",
                 "train.precision=bfloat16", "train.micro_batch=2",
                 "deepspeed.zero_optimization.reduce_bucket_size=300000"]  # fmt: skip
    command = Command([tmp_path / "run", *overrides], action=measured)
    written, said = command.communicate()
    assert command.returncode == 0, said[-3000:]
    found, predicted = json.loads(written.splitlines()[-1]), benchmark.predict(overrides, str(SMOKE))
    for key in ("training", "run"):
        assert predicted[key]["bytes"] == pytest.approx(found[key], rel=0.15), (key, predicted, found)


def test_sizes_are_those_of_the_loaded_networks():
    adapted = config("student.adapter={rank: 4}")
    networks = Shapes(adapted).networks()
    teacher, _ = load_teacher(adapted.teacher)
    assert networks.teacher.total == sum(p.numel() for p in teacher.parameters())
    student = AdaptedDenoiser(teacher, adapted.student.adapter)
    assert networks.student.trained == sum(p.numel() for p in student.parameters())
    assert networks.student.frozen == 0  # its base is the teacher, counted there
    assert networks.trained["critic"].trained == networks.teacher.total


def test_a_discriminator_trains_its_last_blocks_and_head():
    networks = Shapes(
        load_config(DistillConfig, ROOT / "configs" / "didi_instruct.yaml", ["objective.ratio.blocks=1"])
    ).networks()
    width = 192
    attention = 2 * width * width + 2 * width * 64 + 2 * 64  # three heads of 64, one of keys and values, their norms
    block = attention + 3 * width * 576 + 2 * width
    assert networks.trained["critic"].trained == block + width * width + width + width + 1
    assert networks.trained["critic"].total == networks.teacher.total + width * width + width + width + 1


@pytest.mark.parametrize("kind", DISTILLERS, ids=lambda kind: kind.model_fields["name"].default)
def test_every_objective_is_planned_with_the_networks_that_it_says_it_has(kind):
    name = kind.model_fields["name"].default
    critic = "{lr: 1e-4}" if "critic" in kind().phases else "null"
    words = [f"objective={{name: {name}}}", f"train.critic={critic}", "length=16", "train.batch=8", "teacher_samples=8"]
    if name == "step_reduction":
        words += ["sampler=planner", "evaluate.steps=[4]"]
    planned = config(*words)
    shapes, setup = Shapes(planned), setup_of(planned, 1)
    networks, passes = shapes.networks(), shapes.passes(setup)
    assert tuple(networks.trained) == tuple(passes.phases) == planned.objective.phases
    for phase, memory in passes.phases.items():
        assert memory.backward.activations > 0
        assert memory.kept_top.total > 0, phase
    names = {moment.name for moment in moments(networks, passes, setup)}
    assert {"student pass", "student step", "checkpoint"} <= names
    assert ("rollout" in names) == bool(passes.asked)
    with_adapters(planned)  # a critic or none, it has a way to be smaller


def test_blocks_that_are_read_apart_are_there_at_every_depth():
    words = ("objective={name: representation_mmd, blocks: 3}", "train.critic=null", "length=16", "teacher_samples=8")
    shapes = Shapes(config(*words))
    assert shapes.passes(setup_of(shapes.config, 1)).asked == ("student", "extractor")


def test_a_target_is_kept_on_the_device_and_saved():
    words = ("objective={name: sdtt}", "train.critic=null", "length=16")
    networks = Shapes(config(*words)).networks()
    assert networks.kept["target"].total == networks.student.total
    setup = setup_of(config(*words), 1)
    without = replace(networks, kept={}, saved=())
    more, less = (moments(n, None, setup)[-2] for n in (networks, without))
    assert more.name == "checkpoint"
    assert sum(more.device.values()) - sum(less.device.values()) == 4 * networks.student.total
    written = "checkpoint, being written"
    assert more.host[written] - less.host[written] == 4 * networks.student.total


def test_two_depths_give_any(tmp_path):
    """What is told of a deep network from two shallow ones is what a run of the deep one tells."""
    values = json.loads((BUNDLED / "teacher" / "config.json").read_text())
    values |= {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for extra in ("train.micro_batch=4", "train.gradient_checkpointing=true", "train.gradient_checkpointing=products"):
        shapes = Shapes(config(f"teacher.path={tmp_path}", extra))
        setup = setup_of(shapes.config, 1)
        told, run = shapes.passes(setup), shapes._trace(shapes.config, setup, None)
        passes = [(told.rollout, run.rollout), *((told.phases[name], run.phases[name]) for name in run.phases)]
        assert len(passes) == 3
        for from_two, of_run in passes:
            for point in vars(of_run):
                assert getattr(from_two, point).total == pytest.approx(getattr(of_run, point).total, rel=1e-3), point


def test_of_a_deep_network_another_pass_takes_most_than_of_a_shallow_one():
    def passes(kept, drawn):
        return Passes(tuple(PassMemory(forward=Peak(total)) for total in (kept, drawn)), (), {}, 0)

    deep = passes(30.0, 100.0).grown(passes(20.0, 100.0), 12)
    assert deep.rollout is not None
    assert deep.rollout.forward.total == 30 + 12 * 10


def of_all_chunks(monkeypatch, shapes, *arguments):
    """What every chunk's run tells."""
    with monkeypatch.context() as patch:
        patch.setattr(alike, "ends", chunks.all_chunks)
        return shapes._trace(*arguments)


@pytest.mark.parametrize(
    "words",
    [["train.precision=bfloat16"], ["objective={name: sdtt}", "train.critic=null", "student.adapter={rank: 4}"]],
    ids=["integral_kl", "sdtt"],
)
def test_the_ends_of_chunks_tell_what_all_chunks_tell(words, monkeypatch):
    """Of 64 positions, in chunks of 8 and of 7."""
    planned = config("length=32", "train.batch=2", *words)
    shapes, setup = Shapes(planned), setup_of(planned, 1)
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 8 * shapes.vocabulary - 1)
    told = shapes._trace(planned, setup, None)
    assert told == of_all_chunks(monkeypatch, shapes, planned, setup, None)


def test_a_plan_for_a_device_has_its_parts():
    with alike.planned("cuda"):
        assert parts.entries_at_once(torch.device("cpu")) == parts.AT_ONCE
    with alike.planned("cpu"):
        assert parts.entries_at_once(torch.device("cuda")) == parts.IN_CACHE
    assert parts.entries_at_once(torch.device("cpu")) == parts.IN_CACHE


def test_checkpointing_keeps_less_and_stages_keep_less(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    benchmark.make_teacher(tmp_path, shape, {"vocabulary": 3000, "type": "qwen3"})
    shapes = Shapes(config(f"teacher.path={tmp_path}"))
    networks, setup = shapes.networks(), setup_of(shapes.config, 4)
    plain, less = shapes.passes(setup), shapes.passes(replace(setup, checkpointing=True))
    assert less.phases["student"].forward.activations < 0.5 * plain.phases["student"].forward.activations
    assert less.phases["student"].forward.logits == plain.phases["student"].forward.logits > 0
    products = shapes.passes(replace(setup, checkpointing="products")).phases["student"].forward.activations
    assert less.phases["student"].forward.activations < products < plain.phases["student"].forward.activations
    terms = {stage: moments(networks, plain, replace(setup, stage=stage))[3].device for stage in (0, 1, 2, 3)}
    trained = networks.student.trained
    assert terms[0]["student: Adam's moments"] == 8 * trained
    assert terms[1]["student: Adam's moments"] == terms[3]["student: Adam's moments"] == 8 * trained / 4
    assert terms[1]["student: weights"] == 4 * trained > terms[3]["student: weights"]
    offloaded = moments(networks, plain, replace(setup, offload=True))[3]
    assert "student: Adam's moments" not in offloaded.device
    assert offloaded.host["student: Adam's moments"] == 8 * trained / 4


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    shapes = Shapes(config("deepspeed.zero_optimization.reduce_bucket_size=100000", "train.batch=4", "length=128"))
    networks, setup = shapes.networks(), setup_of(shapes.config, 1)

    def needs(micro):
        tried = replace(setup, micro=micro)
        return peak(moments(networks, shapes.passes(tried), tried)).total()

    assert largest_micro_batch(shapes, networks, setup, (needs(2) + needs(4)) / 2) == 2
    assert largest_micro_batch(shapes, networks, setup, needs(4)) == 4
    assert largest_micro_batch(shapes, networks, setup, needs(1) - 1) is None


def test_the_command_proposes_what_the_config_takes(tmp_path):
    out = tmp_path / "plan.json"
    words = ["plan", str(SMOKE), "--gpus", "2", "--memory", "0.3", "--json", str(out),
             "deepspeed.zero_optimization.reduce_bucket_size=100000"]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert [o["setup"]["stage"] for o in report["options"]] == [0, 1, 2, 3, 1, 2, 3]
    proposed = report["proposal"]
    assert max(sum(m["device"].values()) for m in proposed["moments"]) <= 0.9 * 0.3e9
    taken = setup_of(config(*shlex.split(" ".join(proposed["overrides"]))), 2)
    assert taken.micro == proposed["setup"]["micro"]
    assert taken.stage == proposed["setup"]["stage"]


def test_auto_is_planned_as_bfloat16_and_says_so():
    words = ["plan", str(SMOKE), "--memory", "1", "train.precision=auto"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "train.precision bfloat16 (assumed for auto)" in " ".join(done.output.split())


def test_blocks_are_said():
    planned = config("blocks.size=8")
    shapes = Shapes(planned)
    assert (shapes.block_size, Shapes(config()).block_size) == (8, None)
    told = Plan(shapes.networks().by_name(), shapes.vocabulary, 1, 1e9, 0.9, (), None, shapes.block_size)
    assert "rows of 32 tokens in blocks of 8;" in heading(told, planned, False)
    assert "rows of 32 tokens;" in heading(replace(told, block_size=None), planned, False)


@pytest.mark.parametrize(
    "words",
    [
        ["objective={name: didi_instruct}"],
        ["objective={name: sdtt}", "train.critic=null"],
        ["objective={name: step_reduction, steps: 4}", "train.critic=null", "sampler=planner", "evaluate.steps=[4]"],
    ],
    ids=["didi_instruct", "sdtt", "step_reduction"],
)
def test_passes_over_blocks_take_more_than_those_of_whole_rows(words):
    whole, blocks = (config("length=32", "train.batch=8", *words, *more) for more in ([], ["blocks.size=8"]))
    told = [Shapes(each).passes(setup_of(each, 1)) for each in (whole, blocks)]
    assert all(passes.held > 0 for passes in told)
    for phase in whole.objective.phases:
        less, more = (passes.phases[phase].forward.activations for passes in told)
        assert more > less, phase  # clean text beside the blocks


def test_texts_that_a_student_writes_before_its_blocks_are_kept_as_keys_and_values():
    planned = config("length=64", "blocks.size=8", "blocks.prefix=student")
    shapes, told = Shapes(planned), []
    for layers in (4, 3):
        teacher, objective = shapes._objective(planned, layers)
        assert objective.writes
        with FakeTensorMode(), alike.planned("cpu"):
            tracer = _Tracer(objective, objective.networks, _fill([teacher, *objective.networks.values()]), 64)
            told.append(tracer.written(8).forward)
    keys_and_values = 8 * 64 * 2 * 64 * 4  # rows, tokens, both, one head of 64, bytes
    assert told[0].total - told[1].total == keys_and_values


def test_a_student_with_blocks_of_its_own_is_no_adapter():
    adapted = with_adapters(config("blocks.size=8"), own_blocks=True)
    assert (adapted.student.adapter, adapted.objective.adapters) == (None, True)
    assert Shapes(adapted).own_blocks
    with pytest.raises(UserError, match="is an adapter on a teacher with full attention"):
        Shapes(with_adapters(config("blocks.size=8")))


def test_llada_has_the_parameters_it_has():
    block = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    plan = load_config(DistillConfig, ROOT / "configs" / "plan" / "llada-8b.yaml",
                       [f"teacher.path={ROOT}/configs/plan/llada-8b"])  # fmt: skip
    assert Shapes(plan).blocks == 32
    assert Shapes(plan).networks().teacher.total == 32 * block + 2 * 126464 * 4096 + 4096 == 8_015_581_184


@pytest.mark.parametrize(
    ("hidden", "blocks", "heads", "parameters"), [(768, 12, 12, 169_627_218), (1024, 24, 16, 424_477_010)]
)
def test_a_released_diffusion_transformer_has_the_parameters_it_has(hidden, blocks, heads, parameters, tmp_path):
    sizes = {"vocab_size": 50258, "hidden_dim": hidden, "cond_dim": 128, "n_blocks": blocks, "n_heads": heads}
    released = json.loads((checkpoint_of(COPIES, "mdlm") / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**released, **sizes, "model_length": 1024}), "utf-8")
    planned = config(f"teacher.path={tmp_path}")
    shapes = Shapes(planned)
    assert shapes.networks().teacher.total == parameters
    deep, shallow = (shapes.passes(replace(setup_of(planned, 1), micro=micro)) for micro in (4, 1))
    assert deep != shallow


@pytest.mark.parametrize("name", [family.name for family in LANGUAGE if (COPIES / family.name).is_dir()])
def test_a_released_language_model_is_planned_from_its_config(name):
    checkpoint = resolve(str(checkpoint_of(COPIES, name)), family=name)
    options = {"block_size": 4} if "block_size" in checkpoint.family.options else {}
    loaded, planned = checkpoint.load(**options), checkpoint.family.sketch(checkpoint, **options)
    assert sum(p.numel() for p in planned.parameters()) == sum(p.numel() for p in loaded.parameters())
    read = ("vocabulary", "max_length", "shift", "attention", "block_size")
    assert [getattr(planned.spec, key) for key in read] == [getattr(loaded.spec, key) for key in read]


def test_a_plan_takes_the_options_that_a_run_takes(tmp_path):
    blocks = f"teacher.path={checkpoint_of(COPIES, 'bd3lm')}"
    assert Shapes(config(blocks, "teacher.block_size=8")).networks().teacher.total > 0
    with pytest.raises(UserError, match=r"teacher\.shift is set"):
        Shapes(config(blocks, "teacher.shift=true")).networks()
    with pytest.raises(UserError, match="a DUO checkpoint, without planning"):
        Shapes(config(f"teacher.path={checkpoint_of(COPIES, 'duo')}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no folder with a config.json"),
        ('{"model_type": "llada"}', "has no hidden_size"),
        ('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}', r"size \(30\) is not a multiple"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_shape_that_is_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Shapes(config(f"teacher.path={tmp_path}")).networks()


def product_of_groups(dtype):
    """Shapes of 4 groups' product of 16 rows, and of its gradients."""
    left = torch.empty(16, 32, dtype=dtype, requires_grad=True)
    right = torch.empty(4, 32, 64, dtype=dtype, requires_grad=True)
    product = torch.ops.aten._grouped_mm(left, right, torch.empty(4, dtype=torch.int32))
    return [part.shape for part in (product, *torch.autograd.grad(product.square().sum(), [left, right]))]


def test_experts_products_have_the_shapes_that_torch_knows_in_bfloat16():
    with FakeTensorMode():
        known = product_of_groups(torch.bfloat16)
        with GroupedProducts():
            assert product_of_groups(torch.float32) == product_of_groups(torch.bfloat16) == known
    assert known == [(16, 64), (16, 32), (4, 32, 64)]


def test_processes_that_do_not_divide():
    with pytest.raises(UserError, match="does not divide into 3 processes"):
        setup_of(config(), 3)

"""One base, several networks: each gives its own output and trains its own parameters, whatever the others do."""

import copy
import itertools

import peft
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear

from benchmarks.launches import Watcher
from objectives.didi_instruct import DidiInstructConfig
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from students.adapters import AdaptedDenoiser, AdapterConfig, lora_layers, merge_adapter, merged, plain_copy
from students.adapters.denoiser import ActiveAdapter
from students.critic import Discriminator, auxiliary_denoiser
from students.student import Ema, cast, enable_gradient_checkpointing, frozen, trainable_copy, twin
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from teachers.weights import weight_of
from tests.batches import batch_of
from tests.networks import shape, stock

SHAPE = shape(32, 2, initializer_range=0.2, tie_word_embeddings=False)
LENGTH, VOCABULARY, MASK = 12, 20, 1
SMALL = AdapterConfig(rank=4, alpha=8.0)
FEW = AdapterConfig(rank=2, alpha=3.0, targets=["q_proj", "mlp.up_proj"])


def make_teacher(tied=True, **spec):
    torch.manual_seed(0)
    shape = SHAPE | {"tie_word_embeddings": tied}
    return frozen(create_denoiser("qwen3", shape, DenoiserSpec(MASK, VOCABULARY, LENGTH, **spec)))


def move(network, scale=0.1):
    """Away from the start, where B = 0 and all networks are one."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network


def canvas(rows=3):
    z = torch.randint(2, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(3))
    z[:, ::2] = MASK
    return Canvas.of(z, MASK)


def probabilities(denoiser, select=None):
    return denoiser.log_probs(canvas(), select).exp()


def some_loss(denoiser):
    return probabilities(denoiser).square().sum()


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_equal_gradients(one, other, **tolerance):
    assert one.keys() == other.keys()
    assert one
    for name in one:
        assert one[name].abs().max() > 0, name
        torch.testing.assert_close(one[name], other[name], **tolerance)


@pytest.mark.parametrize("spec", [{}, {"shift": True}, {"attention": "block", "block_size": 4}])
def test_every_network_gives_its_own_output_in_whatever_order_they_are_called(spec):
    teacher = make_teacher(**spec)
    alone = probabilities(teacher)
    student, critic = AdaptedDenoiser(teacher, SMALL), AdaptedDenoiser(teacher, FEW)
    assert torch.equal(probabilities(student), alone)  # B is zero at first
    move(student), move(critic)
    expected = {n: probabilities(n).detach() for n in (teacher, student, critic)}
    assert torch.equal(expected[teacher], alone)
    for one, other in itertools.combinations(expected.values(), 2):
        assert (one - other).abs().max() > 0.01
    hidden = {n: n.hidden_states(canvas()).detach() for n in expected}
    masked = canvas().open
    for order in itertools.permutations(expected):
        for network in order:
            assert torch.equal(probabilities(network), expected[network])
            assert torch.equal(network.hidden_states(canvas()), hidden[network])
            features = network.features(canvas(), masked)
            assert features.shape == (masked.sum(), SHAPE["hidden_size"])
            probabilities(teacher), probabilities(critic)  # whoever computes between features and head
            torch.testing.assert_close(network.head(features).exp(), expected[network][masked])
            torch.testing.assert_close(probabilities(network, masked), expected[network][masked])


def test_an_error_within_a_pass_leaves_the_teacher_as_it_was():
    teacher = make_teacher()
    alone = probabilities(teacher)
    student = move(AdaptedDenoiser(teacher, SMALL))
    with pytest.raises(IndexError):
        student.log_probs(Canvas.blank(1, LENGTH, VOCABULARY))
    assert torch.equal(probabilities(teacher), alone)


def test_the_parameters_are_the_adapters_alone_and_the_bases_stay_the_bases():
    teacher = make_teacher()
    before = [id(p) for p in teacher.parameters()]
    student = AdaptedDenoiser(teacher, SMALL)
    critic = AdaptedDenoiser(teacher, FEW)
    assert [id(p) for p in teacher.parameters()] == before
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for network in (student, critic) for p in network.parameters())
    names = [name for name, _ in critic.named_parameters()]
    assert names == [
        f"adapter.model-layers-{layer}-{linear}.lora_{part}.weight"
        for layer in range(2)
        for linear in ("self_attn-q_proj", "mlp-up_proj")
        for part in "AB"
    ]
    assert set(critic.state_dict()) == set(names)
    linear = 2 * 7  # of a Qwen3 layer: q, k, v, o, gate, up, down
    assert len(list(student.parameters())) == 2 * linear
    assert not {id(p) for p in student.parameters()} & {id(p) for p in critic.parameters()}
    cast(teacher, torch.bfloat16)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    frozen(student)
    assert all(p.requires_grad for p in critic.parameters())


def test_training_student_and_critic_leaves_the_teacher_bitwise_as_it_was():
    teacher = make_teacher()
    alone, weights = probabilities(teacher), [p.clone() for p in teacher.parameters()]
    student, critic = AdaptedDenoiser(teacher, SMALL), auxiliary_denoiser(teacher, FEW)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (student, critic)]
    for _ in range(2):
        for network, optimizer in zip((student, critic), optimizers, strict=True):
            optimizer.zero_grad()
            some_loss(network).backward()
            optimizer.step()
    assert (probabilities(student) - alone).abs().max() > 1e-4
    assert (probabilities(critic) - alone).abs().max() > 1e-4
    assert torch.equal(probabilities(teacher), alone)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), weights, strict=True))
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("config", [SMALL, FEW])
def test_outputs_and_gradients_are_those_of_a_peft_model_that_reads_the_saved_adapter(tmp_path, config):
    teacher = make_teacher()
    stock = copy.deepcopy(teacher.model)
    other, student = AdaptedDenoiser(teacher, FEW), move(AdaptedDenoiser(teacher, config))
    move(other)
    student.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    reference = peft.PeftModel.from_pretrained(stock, tmp_path, is_trainable=True)
    logits = reference(input_ids=canvas().tokens, use_cache=False).logits
    logits = logits.masked_fill(torch.arange(VOCABULARY) == MASK, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(logits.exp(), probabilities(student))
    logits.exp().square().sum().backward()
    some_loss(student).backward()
    trained = {n: p.grad for n, p in reference.named_parameters() if p.requires_grad}
    renamed = {f"{n.replace('.default', '')}": g for n, g in trained.items()}
    own = {
        f"base_model.model.{path}.{part}.weight": layer[part].weight.grad
        for path, layer in student.layers.items()
        for part in ("lora_A", "lora_B")
    }
    assert_equal_gradients(own, renamed)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
def test_base_and_adapter_may_be_of_different_precision(base, adapter):
    teacher = make_teacher()
    student = move(AdaptedDenoiser(teacher, SMALL))
    exact, alone = probabilities(student), probabilities(teacher)
    cast(teacher, base), student.to(adapter)
    tolerance = 0.01 if torch.bfloat16 in (base, adapter) else 0
    assert (exact - alone).abs().max() > 10 * tolerance
    found = probabilities(student)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    found.square().sum().backward()
    assert all(p.grad.abs().max() > 0 and p.grad.dtype == adapter for p in student.parameters())


@pytest.mark.parametrize("checkpointing", [True, "products"])
@pytest.mark.parametrize("kind", ["adapted", "full", "discriminator"])
def test_checkpointing_recomputes_the_blocks_and_changes_no_gradient(kind, checkpointing):
    """Also when teacher and critic run between the forward and the backward pass."""
    teacher = make_teacher()
    critic = move(AdaptedDenoiser(teacher, FEW))
    if kind == "adapted":
        network, loss = AdaptedDenoiser(teacher, SMALL), some_loss
    elif kind == "full":
        network, loss = trainable_copy(teacher), some_loss
    else:
        network, loss = Discriminator(teacher, 1, SMALL), lambda d: d(canvas()).square().sum()
    move(network, 0.03)
    loss(network).backward()
    expected = gradients(network)
    network.zero_grad()

    model = network.model if kind == "full" else teacher.model
    passes = []
    model.base_model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    enable_gradient_checkpointing(network, checkpointing)
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.Dropout | torch.nn.SiLU))
    value = loss(network)
    with torch.no_grad():
        between = probabilities(teacher), probabilities(critic)
    ran = len(passes)
    value.backward()
    assert len(passes) == ran + 1  # once more
    assert_equal_gradients(gradients(network), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(probabilities(teacher), between[0])
    assert torch.equal(probabilities(critic), between[1])
    assert not probabilities(teacher).requires_grad  # transformers' own switch would make the embeddings require one


def test_checkpointed_students_and_critics_may_be_trained_in_one_backward_pass():
    """Either's blocks are recomputed with its own adapter."""
    teacher = make_teacher()
    student, critic = move(AdaptedDenoiser(teacher, SMALL)), move(AdaptedDenoiser(teacher, FEW))
    (some_loss(student) + some_loss(critic)).backward()
    expected = gradients(student), gradients(critic)
    student.zero_grad(), critic.zero_grad()
    enable_gradient_checkpointing(student, True)
    (some_loss(student) + some_loss(critic)).backward()
    assert_equal_gradients(gradients(student), expected[0], rtol=1e-5, atol=1e-7)
    assert_equal_gradients(gradients(critic), expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_copy_is_a_plain_model_with_the_same_output(tied, tmp_path):
    teacher = make_teacher(tied)
    names, alone = list(teacher.state_dict()), probabilities(teacher)
    student, other = AdaptedDenoiser(teacher, SMALL), AdaptedDenoiser(teacher, FEW)
    move(student), move(other)
    copied = merged(student)
    assert list(copied.state_dict()) == names
    assert not hasattr(copied.model, "peft_config")
    assert not any(p.requires_grad for p in copied.parameters())
    torch.testing.assert_close(probabilities(copied), probabilities(student), rtol=1e-4, atol=1e-6)
    assert torch.equal(probabilities(teacher), alone)
    student.save(tmp_path)
    read = merge_adapter(plain_copy(teacher), tmp_path)
    assert list(read.state_dict()) == names
    torch.testing.assert_close(probabilities(read), probabilities(copied), rtol=1e-4, atol=1e-6)
    plain = merged(teacher, torch.bfloat16)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in plain.buffers()} == {b.dtype for b in teacher.buffers()}


def test_what_is_too_small_for_the_bases_bfloat16_survives_merging():
    teacher = make_teacher()
    student = AdaptedDenoiser(teacher, SMALL)
    for layer in student.layers.values():
        torch.nn.init.normal_(layer["lora_B"].weight, std=1e-4)
    cast(teacher, torch.bfloat16)
    copied = merged(student)
    path, layer = next(iter(student.layers.items()))
    added = 2.0 * layer["lora_B"].weight @ layer["lora_A"].weight  # alpha/rank = 2
    weight = teacher.model.get_submodule(path).base_layer.weight
    kept = copied.model.get_submodule(path).weight
    assert (kept.to(torch.bfloat16) == weight).float().mean() > 0.8  # in bfloat16 most of it would be gone
    torch.testing.assert_close(kept - weight.float(), added, rtol=0, atol=1e-7)
    assert added.abs().mean() > 1e-5


def test_a_copy_to_train_of_a_base_that_carries_adapters_is_plain():
    teacher = make_teacher()
    names, alone = list(teacher.state_dict()), probabilities(teacher)
    move(AdaptedDenoiser(teacher, SMALL))
    student = trainable_copy(teacher)
    assert list(student.state_dict()) == names
    assert torch.equal(probabilities(student), alone)
    assert all(p.requires_grad for p in student.parameters())


def test_a_twin_is_another_adapter_with_the_same_names():
    teacher = make_teacher()
    student = move(AdaptedDenoiser(teacher, SMALL)).to(torch.bfloat16)
    start = probabilities(student).detach()
    other = twin(student)
    assert other.base is teacher
    assert [(n, p.shape) for n, p in other.named_parameters()] == [(n, p.shape) for n, p in student.named_parameters()]
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in other.parameters())
    assert all(p.requires_grad for p in student.parameters())
    torch.testing.assert_close(probabilities(other), start, rtol=0, atol=0.01)
    move(student)
    assert (probabilities(other) - start).abs().max() < 0.01 < (probabilities(student) - start).abs().max()


def test_the_average_of_an_adapter_fills_its_twin():
    teacher = make_teacher()
    student = AdaptedDenoiser(teacher, SMALL)
    average = twin(student)
    ema = Ema(list(student.parameters()), 0.5)
    start = {n: p.detach().clone() for n, p in student.named_parameters()}
    move(student)
    now = {n: p.detach().clone() for n, p in student.named_parameters()}
    ema.update()
    with ema.swapped(), torch.no_grad():
        for name, parameter in student.named_parameters():
            dict(average.named_parameters())[name].copy_(parameter)
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter, start[name] + (now[name] - start[name]) * 0.9)  # decay is 1/10 at first
    assert all(torch.equal(p, now[n]) for n, p in student.named_parameters())
    assert average.base is teacher


def test_an_adapter_is_read_back_and_another_models_is_refused(tmp_path):
    teacher = make_teacher()
    student = move(AdaptedDenoiser(teacher, SMALL))
    student.save(tmp_path)
    read = merge_adapter(plain_copy(teacher), tmp_path)
    torch.testing.assert_close(probabilities(read), probabilities(student), rtol=1e-4, atol=1e-6)
    wider = frozen(create_denoiser("qwen3", SHAPE | {"hidden_size": 16}, teacher.spec))
    with pytest.raises(UserError, match="give the base it was trained on"):
        merge_adapter(wider, tmp_path)
    deeper = frozen(create_denoiser("qwen3", SHAPE | {"num_hidden_layers": 3}, teacher.spec))
    student = AdaptedDenoiser(teacher, FEW)
    student.save(tmp_path)
    with pytest.raises(UserError, match="missing adapter keys"):
        merge_adapter(deeper, tmp_path)


def test_a_pickled_adapter_is_not_read(tmp_path):
    AdaptedDenoiser(make_teacher(), FEW).save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save({}, tmp_path / "adapter_model.bin")
    assert merge_adapter(make_teacher(), tmp_path), "beside safetensors it is not looked at"
    weights.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        merge_adapter(make_teacher(), tmp_path)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "q_porj",
            r"'q_porj' is the end of no linear layer's name; did you mean 'q_proj'\?; this model has down_",
        ),
        ("proj", "'proj' is the end of no linear layer's name"),
        ("lm_head", "'lm_head' is the end of no linear layer's name"),
        ("embed_tokens", "this model has down_proj"),
    ],
)
def test_targets_that_are_no_linear_layer_are_refused(target, message):
    teacher = make_teacher()
    AdaptedDenoiser(teacher, SMALL)
    with pytest.raises(UserError, match=message):
        AdaptedDenoiser(teacher, AdapterConfig(targets=["q_proj", target]))


def test_an_adapted_discriminator_trains_adapter_and_head_and_no_block():
    teacher = make_teacher()
    critic = Discriminator(teacher, 1, FEW)
    critic(canvas()).sum().backward()
    trained = {name.split(".")[0] for name, p in critic.named_parameters() if p.requires_grad}
    assert trained == {"backbone", "head"}
    assert all(name.startswith(("backbone.adapter.", "head.")) for name, _ in critic.named_parameters())
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    "config",
    [
        IntegralKLConfig(rollout={"steps": [2, 4]}, ratio={"adapter": FEW}, regularisers={"teacher_weight": 0.1}),
        DidiInstructConfig(ratio={"adapter": FEW}),
    ],
)
@pytest.mark.parametrize("student_adapter", [None, SMALL])
def test_losses_are_those_of_merged_networks(config, student_adapter):
    """Full or adapted student with an adapted critic: the objective as if each network had weights of its own."""
    teacher = make_teacher()
    student = trainable_copy(teacher) if student_adapter is None else AdaptedDenoiser(teacher, student_adapter)
    adapted = config.build(Distillation(teacher, move(student, 0.03), MaskedProcess(), LENGTH, teacher))
    critic = move(adapted.networks["critic"], 0.03)
    bare = plain_copy(teacher)
    apart = config.build(Distillation(bare, merged(student), MaskedProcess(), LENGTH, bare))
    if isinstance(critic, Discriminator):
        apart.ratio.network.backbone = merged(critic.backbone)
        apart.ratio.network.head = critic.head
    else:
        apart.ratio.network = merged(critic)
    real = torch.randint(2, VOCABULARY, (4, LENGTH))
    rollouts = [o.rollout(batch_of(o, real, 4), RowStreams(0, (0,), range(4))) for o in (adapted, apart)]
    assert torch.equal(rollouts[0].sample, rollouts[1].sample)
    for phase in ("critic", "student"):
        one, other = (o.loss(phase, r).sum for o, r in zip((adapted, apart), rollouts, strict=True))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        one.backward()
        assert all(p.grad is not None for p in adapted.networks[phase].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_added_as_its_product_is_computed(dtype):
    """With the same bits with and without a gradient; in three launches without."""
    base = stock(12, 8, 11, sizes=shape(16, 2)).to(dtype)
    adapted = AdaptedDenoiser(base, AdapterConfig(rank=4, alpha=6.0)).to(dtype)
    for parameter in adapted.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    layer = next(iter(lora_layers(base.network).values()))
    low, high = (weight_of(part[adapted.name]).float() for part in (layer.lora_A, layer.lora_B))
    with ActiveAdapter(adapted.active, [adapted.name]):
        learned = layer(x)
        with torch.no_grad(), Watcher() as watcher:
            drawn = layer(x)
        peft = LoraLinear.forward(layer, x)
    with torch.no_grad():
        alone = layer(x)
    expected = alone.float() + 6.0 / 4 * x.float() @ low.T @ high.T
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert learned.requires_grad
    assert learned.dtype == dtype
    assert torch.equal(learned, drawn)
    assert watcher.counts.launches.total() == 3
    assert (expected - alone.float()).abs().max() > 0.05
    for seen in (learned, peft):
        assert torch.allclose(seen.float(), expected, atol=tolerance, rtol=tolerance)

"""What a process holds while a checkpoint is read: one copy in the precision asked for, or much less."""

import json
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.config import TeacherConfig, TrainConfig
from distill.runtime.world import returning_memory, start_world
from distill.training.placement import spread_of
from teachers.families import resolve
from tests.forks import Command

WIDTH, INNER, BLOCKS, VOCABULARY, EXPERTS = 384, 512, 20, 2048, 8
# reading, casting and stacking a block takes room that glibc keeps: with many small blocks it is little beside all
ATTENTION = {f"self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
NORMS = {f"{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
CONFIG = {
    "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 6, "num_key_value_heads": 6,
    "head_dim": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "mask_token_id": 1,
    "tie_word_embeddings": False, "eos_token_id": 0,
}  # fmt: skip


def dense():
    """Config and block of 25 M parameters."""
    mlp = {f"mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
    return {"model_type": "llama", "intermediate_size": INNER}, mlp | {"mlp.down_proj.weight": (WIDTH, INNER)}


def experts():
    """Config and block of 37 M parameters, most of them in experts, which are stored singly and computed stacked."""
    block = {"mlp.gate.weight": (EXPERTS, WIDTH), "self_attn.q_norm.weight": (64,), "self_attn.k_norm.weight": (64,)}
    for expert in range(EXPERTS):
        block |= {f"mlp.experts.{expert}.{part}_proj.weight": (128, WIDTH) for part in ("gate", "up")}
        block[f"mlp.experts.{expert}.down_proj.weight"] = (WIDTH, 128)
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 128, "num_experts": EXPERTS, "num_experts_per_tok": 2}
    return config, block


def write(folder, kind, dtype):
    """A checkpoint in three shards."""
    config, block = kind()
    names = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    names["model.norm.weight"] = (WIDTH,)
    for number in range(BLOCKS):
        names |= {f"model.layers.{number}.{n}": s for n, s in {**ATTENTION, **NORMS, **block}.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    shards = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(names)}
    for shard in sorted(set(shards.values())):
        held = {name: torch.full(names[name], 0.01, dtype=dtype) for name in names if shards[name] == shard}
        save_file(held, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return sum(torch.Size(shape).numel() for shape in names.values())


def anonymous():
    """Bytes of this process's memory that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory while entered, above what there was."""

    def __enter__(self):
        self.before, self.most, self.stop = anonymous(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.002):
            self.most = max(self.most, anonymous() - self.before)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def load(folder, precision, placement):
    """Read a checkpoint and say what it took, as JSON on stdout."""
    world = start_world()
    memory = {"cpu": "1MB"} if placement == "dispatched" else None
    config = TeacherConfig(path=folder, placement=placement, max_memory=memory)
    train = TrainConfig(updates=1, batch=2, precision=precision, student={"lr": 1.0})
    checkpoint = resolve(folder)
    spread = spread_of(config, train, world, Path(folder) / "run")
    checkpoint.outline()  # imports what reading it does
    with Peak() as peak, returning_memory() if spread is not None else nullcontext():
        denoiser = checkpoint.load(precision=getattr(torch, precision), spread=spread)
    whole = sum(p.numel() for p in denoiser.parameters())
    print(json.dumps({"peak": peak.most, "held": whole, "after": anonymous() - peak.before}))
    world.barrier()


def measured(folder, precision, placement, processes=1):
    command = Command([str(folder), precision, placement], processes, action=load)
    written, said = command.communicate()
    assert [process.exitcode for process in command.processes] == [0] * processes, said[-3000:]
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("kind", [dense, experts])
@pytest.mark.parametrize(("stored", "precision"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_process_holds_one_copy_in_the_precision_that_is_asked_for(tmp_path, kind, stored, precision):
    numbers = write(tmp_path / "model", kind, getattr(torch, stored))
    (found,) = measured(tmp_path / "model", precision, "replicated")
    copy = numbers * getattr(torch, precision).itemsize
    assert found["held"] == numbers
    assert 0.9 * copy < found["peak"] < 1.3 * copy


@pytest.mark.parametrize("kind", [dense, experts])
def test_a_dispatched_network_is_never_whole(tmp_path, kind):
    numbers = write(tmp_path / "model", kind, torch.bfloat16)
    (found,) = measured(tmp_path / "model", "float32", "dispatched")
    assert found["peak"] < 0.4 * numbers * 4


@pytest.mark.parametrize("kind", [dense, experts])
def test_each_of_two_processes_holds_its_half(tmp_path, kind):
    numbers = write(tmp_path / "model", kind, torch.bfloat16)
    found = measured(tmp_path / "model", "float32", "sharded", processes=2)
    assert len(found) == 2
    for process in found:
        assert process["peak"] < 0.75 * numbers * 4

"""What reading a released checkpoint costs: `python -m benchmarks.loading [FOLDER]`, a table on the terminal.

Checkpoints of bfloat16 weights, all of one value, are written into FOLDER, a temporary one by default: LLaDA-8B's
proportions with fewer blocks, and LLaDA2-mini's with fewer blocks too. Each is read in a process
of its own through its family, and LLaDA's also under stock names, of which nothing is renamed. Then the full sizes of
both releases are made as empty weights, and every key of their files is mapped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD = 1e9
"""Bytes of a weights file."""
Shapes = dict[str, tuple[int, ...]]

LLADA = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
    "n_layers": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
    "max_sequence_length": 4096, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "mask_token_id": 126336,
    "eos_token_id": 126081, "pad_token_id": 126081, "weight_tying": False, "include_bias": False,
    "include_qkv_bias": False, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms", "rope": True,
    "alibi": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
}  # fmt: skip
LLADA2 = {
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 2048, "intermediate_size": 5120,
    "moe_intermediate_size": 512, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "score_function": "sigmoid", "vocab_size": 157184, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06,
    "rope_theta": 600000, "rope_scaling": None, "partial_rotary_factor": 0.5, "use_qk_norm": True,
    "use_qkv_bias": False, "use_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
    "pad_token_id": 156892,
}  # fmt: skip
FEWER = {
    "LLaDA": LLADA | {"n_layers": 2},
    "LLaDA2": LLADA2 | {"num_hidden_layers": 2},
}
"""What is written: 2 GB and more."""


def llada_tensors(config: dict[str, Any], stock: bool = False) -> Shapes:
    """Name → shape of a LLaDA checkpoint's tensors, as released or as the stock class calls them."""
    width, inner, rows = config["d_model"], config["mlp_hidden_size"], config["vocab_size"]
    square, wide = (width, width), (inner, width)
    names = {"wte": "embed_tokens", "ln_f": "norm"} if stock else {"wte": "transformer.wte", "ln_f": "transformer.ln_f"}
    tensors: Shapes = {f"model.{names['wte']}.weight": (rows, width), f"model.{names['ln_f']}.weight": (width,)}
    tensors["lm_head.weight" if stock else "model.transformer.ff_out.weight"] = (rows, width)
    parts = {
        "attn_norm": ("input_layernorm", (width,)), "ff_norm": ("post_attention_layernorm", (width,)),
        "q_proj": ("self_attn.q_proj", square), "k_proj": ("self_attn.k_proj", square),
        "v_proj": ("self_attn.v_proj", square), "attn_out": ("self_attn.o_proj", square),
        "ff_proj": ("mlp.gate_proj", wide), "up_proj": ("mlp.up_proj", wide), "ff_out": ("mlp.down_proj", wide[::-1]),
    }  # fmt: skip
    for number in range(config["n_layers"]):
        place = f"model.layers.{number}." if stock else f"model.transformer.blocks.{number}."
        tensors |= {f"{place}{other if stock else own}.weight": shape for own, (other, shape) in parts.items()}
    return tensors


def llada2_tensors(config: dict[str, Any]) -> Shapes:
    """Name → shape of a LLaDA2 checkpoint's tensors."""
    width, head, rows = config["hidden_size"], config["head_dim"], config["vocab_size"]
    heads, fused = config["num_attention_heads"], config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    tensors: Shapes = {"model.word_embeddings.weight": (rows, width), "lm_head.weight": (rows, width)}
    tensors["model.norm.weight"] = (width,)

    def mlp(place: str, inner: int) -> Shapes:
        wide = {f"{place}.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        return wide | {f"{place}.down_proj.weight": (width, inner)}

    for number in range(config["num_hidden_layers"]):
        place = f"model.layers.{number}"
        tensors |= {f"{place}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{place}.attention.{part}_layernorm.weight": (head,) for part in ("query", "key")}
        tensors[f"{place}.attention.query_key_value.weight"] = (fused * head, width)
        tensors[f"{place}.attention.dense.weight"] = (width, heads * head)
        if number < config["first_k_dense_replace"]:
            tensors |= mlp(f"{place}.mlp", config["intermediate_size"])
            continue
        tensors[f"{place}.mlp.gate.weight"] = (config["num_experts"], width)
        tensors[f"{place}.mlp.gate.expert_bias"] = (config["num_experts"],)
        tensors |= mlp(f"{place}.mlp.shared_experts", config["moe_intermediate_size"] * config["num_shared_experts"])
        for expert in range(config["num_experts"]):
            tensors |= mlp(f"{place}.mlp.experts.{expert}", config["moe_intermediate_size"])
    return tensors


def stock_llama(config: dict[str, Any]) -> dict[str, Any]:
    """The stock config of LLaDA's network."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config["d_model"],
        "intermediate_size": config["mlp_hidden_size"], "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"], "num_key_value_heads": config["n_kv_heads"],
        "vocab_size": config["vocab_size"], "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "mask_token_id": config["mask_token_id"],
        "eos_token_id": config["eos_token_id"], "is_causal": False,
    }  # fmt: skip


def write(folder: Path, config: dict[str, Any], tensors: Shapes) -> float:
    """Write a sharded checkpoint; its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    shards: list[list[str]] = [[]]
    size = 0.0
    for name, shape in tensors.items():
        wanted = 2.0 * torch.Size(shape).numel()
        if shards[-1] and size + wanted > SHARD:
            shards.append([])
            size = 0.0
        shards[-1].append(name)
        size += wanted
    files = {
        name: f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i, names in enumerate(shards, 1) for name in names
    }
    for names in shards:
        held = {name: torch.full(tensors[name], 0.01, dtype=torch.bfloat16) for name in names}
        save_file(held, folder / files[names[0]], metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}), "utf-8")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def anonymous() -> int:
    """Bytes of this process's memory that are no file's."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def read(folder: str, precision: str) -> None:
    """Read a checkpoint here and now and print what it took, as JSON; to be called once in a process."""
    from teachers.families import resolve

    checkpoint = resolve(folder)
    checkpoint.outline()  # imports what reading it does
    before, most, stop = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.005):
            most = max(most, anonymous() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    start = time.perf_counter()
    denoiser = checkpoint.load(precision=getattr(torch, precision))
    seconds = time.perf_counter() - start
    stop.set()
    watching.join()
    copy = sum(p.nbytes for p in denoiser.parameters())
    print(json.dumps({"seconds": seconds, "peak": most, "copy": copy}))


def sketch(config: dict[str, Any], tensors: Shapes, folder: Path) -> dict[str, float]:
    """Seconds to make a full-sized network without weights and to map every key of its files, and what it took."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    from teachers.families import Checkpoint, recognise
    from teachers.families.stock import Stock

    family = recognise(config, "benchmark", folder)
    assert isinstance(family, Stock)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    before, start = anonymous(), time.perf_counter()
    network: Any = family.sketch(Checkpoint("benchmark", folder, config, family)).network
    made = time.perf_counter()
    rules = get_model_conversion_mapping(network, dict(family.key_names))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = network.state_dict()
    mapped = {rename_source_key(key, renamings, converters, network.base_model_prefix, wanted)[0] for key in tensors}
    assert mapped <= set(wanted), sorted(mapped - set(wanted))[:3]
    return {
        "parameters": float(sum(p.numel() for p in network.parameters())), "keys": float(len(tensors)),
        "make": made - start, "map": time.perf_counter() - made, "memory": float(anonymous() - before),
    }  # fmt: skip


def main() -> None:
    """The tables."""
    if sys.argv[1:2] == ["--read"]:
        read(*sys.argv[2:4])
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        place, small, wide = Path(folder), FEWER["LLaDA"], FEWER["LLaDA2"]
        checkpoints = {
            "LLaDA, 2 blocks": write(place / "llada", small, llada_tensors(small)),
            "the same under stock names": write(place / "stock", stock_llama(small), llada_tensors(small, stock=True)),
            "LLaDA2-mini, 2 blocks": write(place / "llada2", wide, llada2_tensors(wide)),
        }
        print("| checkpoint | file GB | precision | seconds | GB/s | peak anonymous / file | peak / copy |")
        print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
        for (name, size), part in zip(checkpoints.items(), ("llada", "stock", "llada2"), strict=True):
            for precision in ("bfloat16", "float32"):
                words = [sys.executable, "-m", "benchmarks.loading", "--read", str(place / part), precision]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"| {name} | {size / 1e9:.2f} | {precision} | {found['seconds']:.1f} | "
                    f"{size / 1e9 / found['seconds']:.2f} | {found['peak'] / size:.2f} | "
                    f"{found['peak'] / found['copy']:.2f} |",
                    flush=True,
                )
        print("\n| empty weights | parameters | keys | seconds to make | to map all keys | MB |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, config, tensors in (
            ("LLaDA-8B", LLADA, llada_tensors(LLADA)),
            ("LLaDA2-mini", LLADA2, llada2_tensors(LLADA2)),
        ):
            found = sketch(config, tensors, place)
            print(
                f"| {name} | {found['parameters']:,.0f} | {found['keys']:,.0f} | {found['make']:.2f} | "
                f"{found['map']:.2f} | {found['memory'] / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()

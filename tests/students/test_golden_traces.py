"""What each family's own released sampler wrote on its tiny checkpoint, written by ours: every canvas of every pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from students.fill import Filled, Pass, fill
from students.samplers import RELEASED, Ancestral, EntropyBound, Sampler, Threshold, TopK
from students.samplers.law import Scheduled
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.families import resolve
from tests.golden.places import COPIES

Trace = dict[str, Any]
TRACES = {
    f"{path.parent.name} {number}": (path.parent.name, trace)
    for path in sorted(COPIES.glob("*/trace.json"))
    for number, trace in enumerate(json.loads(path.read_text("utf-8"))["traces"])
}
APPROXIMATE_CACHES = {"llada 4": "prefix", "llada 5": "dual", "fast-dllm-v2 3": "dual"}
"""Where keys and values of an earlier canvas stand for those of the present one; the last is within a block."""
REPEATED = {"llada 4": 1}
"""Passes of the released sampler over a block that its first pass had finished: with a cache, it made one more."""
DREAM_ORDERS = {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}


def changed(name: str, **settings: Any) -> Sampler:
    rule = RELEASED[name]
    return type(rule)(**{**rule.model_dump(), **settings})


def blocks_of(trace: Trace, size: int) -> int:
    """Blocks of columns that hold something to write."""
    settings, prompt = trace["settings"], len(trace["prompt"])
    length = settings.get("gen_length", settings.get("max_new_tokens"))
    return -(-(prompt + length) // size) - prompt // size


# --- released samplers and their arguments, in our rules: (rule, steps, block size of the attention) ------------------


def llada(trace: Trace):
    s = trace["settings"]
    return changed("llada", block_length=s["block_length"]), s["steps"], None


def fast_dllm(trace: Trace):
    s = trace["settings"]
    caches = {"Fast-dLLM generate_with_prefix_cache": "prefix", "Fast-dLLM generate_with_dual_cache": "dual"}
    cache = caches.get(trace["sampler"])
    return changed("fast-dllm", block_length=s["block_length"], threshold=s["threshold"], cache=cache), s["steps"], None


def dream(trace: Trace):
    s = trace["settings"]
    if s["alg"] == "confidence_threshold":  # whose steps are no cap
        return changed("fast-dllm", block_length=None, threshold=s["threshold"]), s["max_new_tokens"], None
    if s["alg"] == "origin":
        return Ancestral(draw="greedy"), s["steps"], None
    greedy = {"draw": "greedy", "temperature": 1.0, "top_p": None}
    return changed("dream", order=DREAM_ORDERS[s["alg"]], **greedy), s["steps"], None


def rnd1(trace: Trace):
    s = trace["settings"]
    if "eb_gamma" in s:
        rule = EntropyBound(draw="greedy", gamma=s["eb_gamma"], order="largest", tempered=True)
        return rule, s["num_diffusion_steps"], None
    return changed("rnd1", temperature=s["temperature"]), s["num_diffusion_steps"], None


def sdar(trace: Trace):
    s, size = trace["settings"], trace["settings"]["block_length"]
    drawn = {"draw": "exact" if trace["draw"] == "as released" else "greedy", "top_k": s.get("top_k"), "stop": False}
    steps, strategy = s["denoising_steps"] * blocks_of(trace, size), s["remasking_strategy"]
    if strategy == "low_confidence_dynamic":
        return changed("sdar", threshold=s["confidence_threshold"], block_length=size, **drawn), steps, size
    order = "sequential" if strategy == "sequential" else "confidence"
    return TopK(order=order, tempered=True, timetable="sdar", block_length=size, **drawn), steps, size


def fast_dllm_v2(trace: Trace):
    s = trace["settings"]
    cache = "dual" if s.get("use_block_cache") else None
    rule = changed("fast-dllm-v2", threshold=s["threshold"], block_length=s["small_block_size"], cache=cache)
    return rule, 10 * s["max_new_tokens"], s["block_size"]


def llada2(trace: Trace):
    s, size = trace["settings"], trace["settings"]["block_length"]
    rule = changed("llada2", threshold=s["threshold"], block_length=size)
    return rule, s["steps"] * blocks_of(trace, size), size


def llada21(trace: Trace):
    s, size = trace["settings"], trace["settings"]["block_length"]
    names = {"threshold": "threshold", "editing_threshold": "editing_threshold", "post_steps": "max_post_steps"}
    rule = changed("llada2.1", block_length=size, **{own: s[name] for own, name in names.items()})
    return rule, (size + s["max_post_steps"]) * blocks_of(trace, size), size


def diffullama(trace: Trace):
    return Ancestral(draw="greedy"), trace["settings"]["diffusion_steps"], None


def dllm(trace: Trace):
    s = trace["settings"]
    return changed("a2d", block_length=s["block_size"]), s["steps"], None


def dllm_blocks(trace: Trace):
    s, size = trace["settings"], trace["settings"]["block_size"]
    return changed("a2d", block_length=size), s["steps_per_block"] * s["max_new_tokens"] // size, size


OURS: dict[str, Callable[[Trace], tuple[Sampler, int, int | None]]] = {
    "LLaDA generate": llada,
    "Fast-dLLM generate": fast_dllm,
    "Fast-dLLM generate_with_prefix_cache": fast_dllm,
    "Fast-dLLM generate_with_dual_cache": fast_dllm,
    "Dream diffusion_generate": dream,
    "Fast-dLLM diffusion_generate": dream,
    "RND1 generate": rnd1,
    "SDAR block_diffusion_generate": sdar,
    "Fast-dLLM v2 generate": fast_dllm_v2,
    "LLaDA2.0 generate": llada2,
    "LLaDA2.1 generate": llada21,
    "DiffuLLaMA generate_samples": diffullama,
    "dllm MDLMSampler": dllm,
    "dllm BD3LMSampler": dllm_blocks,
}


# --- the traces as canvases, and ours ---------------------------------------------------------------------------------


def rows(tokens: list) -> list[list[int]]:
    return tokens if isinstance(tokens[0], list) else [tokens]


def published(trace: Trace) -> list[Tensor]:
    """The canvases that the released sampler went through, as long as the longest, with masks behind the others."""
    canvases = [trace["start"], *trace["steps"]] if "steps" in trace else list(trace["reads"])
    if "returned" in trace:
        canvases.append([trace["prompt"][0], *trace["returned"]])
    elif "generated" in trace:
        canvases.append([*trace["prompt"], *trace["generated"]])
    elif "final" in trace:
        canvases.append(trace["final"])
    length = max(len(row) for canvas in canvases for row in rows(canvas))
    masks = [trace["mask_token_id"]] * length
    return [torch.tensor([row + masks[len(row) :] for row in rows(canvas)]) for canvas in canvases]


def different(canvases: list[Tensor]) -> list[Tensor]:
    """Without those that are as the one before: nothing was written, or a block was stored."""
    kept = canvases[:1]
    for canvas in canvases[1:]:
        if not torch.equal(canvas, kept[-1]):
            kept.append(canvas)
    return kept


def passes_that_write(canvases: list[Tensor], mask_id: int) -> Tensor:
    """The number of the pass, from 0, after which a position is no longer masked."""
    return torch.stack([canvas == mask_id for canvas in canvases]).sum(0).sub(1).clamp(min=0)


@cache
def denoiser_of(name: str, block_size: int | None) -> Denoiser:
    options = {} if block_size is None else {"block_size": block_size}
    folder = str(COPIES / name / "checkpoint")
    family = {"family": "diffullama"} if name == "diffullama" else {}
    return resolve(folder, **family).load(**options).requires_grad_(False)


def written(name: str, trace: Trace) -> tuple[Filled, list[Tensor]]:
    """Ours, and the canvases it went through."""
    canvases, mask_id = published(trace), trace["mask_token_id"]
    rule, steps, block_size = OURS[trace["sampler"]](trace)
    if isinstance(rule, Ancestral):  # at random, but where the released sampler's random numbers had it
        rule = Scheduled(**rule.model_dump(exclude={"name"}), transition=passes_that_write(canvases, mask_id))
    denoiser = denoiser_of(name, block_size)
    spec, settings = denoiser.spec, trace["settings"]
    eos_id = settings.get("eos_id", settings.get("stop_token", spec.eos_id))
    denoiser.spec = replace(spec, mask_id=mask_id, eos_id=eos_id)
    passes: list[Pass] = []
    try:
        filled = fill(denoiser, start_of(trace, canvases[0]), rule, steps, torch.Generator(), record=passes.append)
    finally:
        denoiser.spec = spec
    ours = [canvases[0].clone()]
    for one in passes:
        ours.append(ours[-1].clone())
        ours[-1][one.asked.rows] = one.after()
    return filled, ours


def start_of(trace: Trace, tokens: Tensor) -> Canvas:
    real = None
    if "attention_mask" in trace:
        real = torch.ones_like(tokens, dtype=torch.bool)
        mask = torch.tensor(trace["attention_mask"]).bool()
        real[:, : mask.shape[1]] = mask
    elif trace["sampler"] == "dllm BD3LMSampler" and "pad_token_id" in trace:
        real = tokens != trace["pad_token_id"]
    return Canvas.of(tokens, trace["mask_token_id"], real)


def passes_of(trace: Trace) -> int:
    """That the released sampler made and we make: not those that only store what is written, or repeat the last one."""
    if trace["sampler"] == "Fast-dLLM v2 generate":  # each but the first of which gives a token
        whole = len(trace["prompt"]) % trace["settings"]["block_size"] == 0
        return len(trace["passes"]) - (trace["passes"][0] == "store" and not whole)
    if isinstance(trace.get("passes"), list):
        return trace["passes"].count("denoise")
    if trace["sampler"].startswith("LLaDA2"):
        return len(trace["reads"])
    return len(different(published(trace))) - 1


@pytest.mark.parametrize("case", TRACES)
def test_every_canvas_of_the_released_sampler_is_ours(case):
    name, trace = TRACES[case]
    filled, ours = written(name, trace)
    theirs = different(published(trace))
    if "eos_id" in trace["settings"] and trace["settings"]["eos_id"] in trace["generated"]:  # cut, where ours goes on
        end = len(trace["prompt"]) + len(trace["generated"])
        assert torch.equal(filled.tokens[:, :end], theirs.pop()[:, :end])
        assert (filled.tokens[:, max(trace["window_ends"]) :] == trace["settings"]["eos_id"]).all()
        ours.pop()
    for number, (canvas, expected) in enumerate(zip(different(ours), theirs, strict=True)):
        assert torch.equal(canvas, expected), f"after pass {number}"
    assert filled.nfe.tolist() == [passes_of(trace)] * len(filled.nfe)
    whole = passes_of(trace) * filled.tokens.numel()
    cached = case in APPROXIMATE_CACHES or denoiser_of(name, OURS[trace["sampler"]](trace)[2]).spec.attention == "block"
    assert filled.query_tokens < whole if cached and passes_of(trace) > 1 else filled.query_tokens == whole


@pytest.mark.parametrize("case", APPROXIMATE_CACHES)
def test_an_approximate_cache_writes_another_text(case):
    """Without it, the same rule goes another way: nobody takes one for exact."""
    name, trace = TRACES[case]
    exact = {
        "sampler": trace["sampler"].split("_with_")[0],
        "settings": {**trace["settings"], "use_block_cache": False},
    }
    filled, ours = written(name, {**trace, **exact})
    theirs = different(published(trace))
    assert len(theirs) != len(different(ours)) or not all(map(torch.equal, different(ours), theirs))
    assert filled.query_tokens > written(name, trace)[0].query_tokens


@pytest.mark.parametrize("case", APPROXIMATE_CACHES)
def test_every_pass_of_an_approximate_cache_is_made_but_those_that_read_what_is_written(case):
    _, trace = TRACES[case]
    if isinstance(trace["passes"], int):
        canvases = published(trace)[: trace["passes"] + 1]
        assert passes_of(trace) == trace["passes"] - REPEATED.get(case, 0) == len(different(canvases)) - 1


def test_there_is_a_trace_of_every_family_with_a_sampler_of_its_own():
    assert len(TRACES) == 55
    assert {name for name, _ in TRACES.values()} == set(RELEASED) - {"fast-dllm", "llada2.1"}
    assert {trace["sampler"] for _, trace in TRACES.values()} == set(OURS)
    assert {rule.name for rule in RELEASED.values()} == {"ancestral", "edit", "threshold", "top_k"}
    assert isinstance(RELEASED["sdar"], Threshold)

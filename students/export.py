"""A student as a folder that loads wherever its teacher did: weights, configs, tokenizer and a model card."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from students.samplers import Ancestral, Sampler
from students.samplers.dilated import Dilated
from teachers.denoiser import Compression, Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.files import publish
from teachers.process import Schedule
from teachers.quiet import quiet_transformers
from teachers.vocabulary import read_tokenizer

# nats a position between the export and the student; the bundled teacher's measure 1e-4 or less and 5e-3 [own]
LARGEST_KL: dict[Compression, float] = {"int8": 0.01, "int4": 0.1}
LARGEST_DIFFERENCE = 1e-4  # of a float32 export's logits: the same weights in another memory layout [own]


def export_student(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    steps: int,
    compress: Compression | None,
    model_card: str,
    canvas_length: int | None = None,
    schedule: Schedule = "log-linear",
    sampler: Sampler | None = None,
) -> Path:
    """Write a denoiser for other people's software, whole or not at all, and check that it reads back as it was.

    Args:
        folder: does not exist, or is empty.
        steps: forward passes the student is meant for; ``max_denoising_steps`` in generation_config.json.
        compress: None keeps float32.
        model_card: Markdown on where the student comes from and what was measured, put into README.md.
        canvas_length: tokens it was trained to write at once; by default the spec's.
        schedule: of the masked process it was trained with; ``noise_schedule`` in generation_config.json.
        sampler: what it is meant for, by default ancestral; ``sampler`` in generation_config.json.

    Raises:
        UserError: it has no mask; what was written does not load as its family does, or gives other logits. Nothing is
            left behind.
    """
    denoiser.spec.check_mask()
    canvas_length = canvas_length or denoiser.spec.length
    sampler = sampler or Ancestral()

    def write(partial: Path) -> None:
        denoiser.save(partial, compress)
        tokenizer.save_pretrained(partial)
        GenerationConfig(
            max_denoising_steps=steps,
            canvas_length=canvas_length,
            noise_schedule=schedule,
            sampler=sampler.model_dump(),
            mask_token_id=denoiser.spec.mask_id,
            eos_token_id=denoiser.spec.eos_id,
            pad_token_id=denoiser.spec.pad_id,
            use_cache=False,
        ).save_pretrained(partial)
        divergence = check_export(denoiser, tokenizer, partial, compress)
        card = _card(denoiser, folder.name, steps, canvas_length, schedule, sampler, compress, divergence, model_card)
        (partial / "README.md").write_text(card, encoding="utf-8")

    return publish(folder, write)


def check_export(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    compress: Compression | None,
) -> float:
    """Read an export as others will, and compare it with what was exported.

    Returns:
        KL(student ‖ export) in nats a position, the mean over random half-masked canvases; 0 for an exact copy.

    Raises:
        UserError: it does not load, or differs by more than `LARGEST_DIFFERENCE`, compressed by more than `LARGEST_KL`.
    """
    canvas = _half_masked(denoiser.spec).to(denoiser.device)
    checkpoint = resolve(str(folder))
    try:
        with quiet_transformers():  # it reports weights that do not fit in dozens of lines
            expected, found = checkpoint.family.written_logits(denoiser, checkpoint, canvas)
            words = read_tokenizer(folder)
    except Exception as error:  # whatever the reason, the folder is of no use to anybody
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if "report" in reason:  # the one that is kept from being printed
            reason = "its class reads weights of another layout than was written"
        raise UserError(
            f"the export does not load as {checkpoint.family.title} ({reason}); this architecture can not be exported"
            + (", or try without --compress" if compress else "")
        ) from error
    if words.get_vocab() != tokenizer.get_vocab() or words.mask_token_id != tokenizer.mask_token_id:
        raise UserError(
            f"the exported tokenizer has {len(words)} entries and mask token {words.mask_token_id} where the student's "
            f"has {len(tokenizer)} and {tokenizer.mask_token_id}; give a tokenizer that save_pretrained keeps"
        )
    if compress is None:
        difference = float((expected - found).abs().max())
        if not difference <= LARGEST_DIFFERENCE:  # NaN is a difference too
            raise UserError(
                f"the exported logits differ from the student's by {difference:.1e}, more than {LARGEST_DIFFERENCE}; "
                "this architecture does not survive being saved and can not be exported"
            )
    content = torch.arange(expected.shape[-1], device=canvas.device) != denoiser.spec.mask_id
    p, q = (logits[..., content].log_softmax(-1) for logits in (expected, found))
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    if compress is not None and not divergence <= LARGEST_KL[compress]:
        remedy = "export with --compress int8, or without" if compress == "int4" else "export without --compress"
        raise UserError(
            f"compression {compress!r} moves the student by {divergence:.4f} nats a position, more than "
            f"{LARGEST_KL[compress]}; {remedy}"
        )
    return max(0.0, divergence)


def _half_masked(spec: DenoiserSpec) -> Tensor:
    """(4, ≤64) random tokens, every second one masked; the same on every call."""
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(spec.vocabulary, (4, min(64, spec.max_length)), generator=generator)
    canvas[:, ::2] = spec.mask_id
    return canvas


def _card(
    denoiser: Denoiser,
    name: str,
    steps: int,
    canvas_length: int,
    schedule: Schedule,
    sampler: Sampler,
    compress: Compression | None,
    divergence: float,
    measured: str,
) -> str:
    spec, weights, stock = denoiser.spec, "float32", "stock class" in denoiser.capabilities
    if compress:
        scales = {"int8": "one scale an output channel", "int4": "one scale a group of inputs"}[compress]
        weights = (
            f"{compress} with {scales} (compressed-tensors, pack-quantized); embeddings and head bfloat16. "
            f"KL to the float32 student on random half-masked canvases: {divergence:.1e} nats a position"
        )
    use = "In the format of the teacher it was distilled from: what loads that one loads this folder."
    if stock:
        needs = "torch 'transformers>=5.17'" + (" compressed-tensors" if compress else "")
        use = f"With stock transformers (`pip install {needs}`):\n\n```python\n{snippet(spec, schedule, sampler)}```"
    return f"""\
---
{"library_name: transformers" if stock else "library_name: fewstep"}
pipeline_tag: text-generation
tags:
- masked-diffusion
- few-step
---

# {name}

A masked-diffusion language model that writes {canvas_length} tokens in at most {steps} forward passes.
Attention: {spec.attention}{f", blocks of {spec.block_size}" if spec.block_size else ""}. Weights: {weights}.

## Use

{use}

With fewstep, {sampler.label} sampler:

```sh
fewstep generate {name} --steps {steps}
```

## Measured

{measured.strip()}
"""


def snippet(spec: DenoiserSpec, schedule: Schedule, sampler: Sampler) -> str:
    """Python that samples from an exported folder, its working directory, without fewstep: exact draws.

    Dilated where ``sampler`` is, else ancestral.
    """
    setup, call = "", "model(canvas, use_cache=False)"
    if spec.attention == "block":
        call = "model(canvas, attention_mask=sees, use_cache=False)"
        setup = f"""\
block = torch.arange(canvas.shape[1]) // {spec.block_size}
sees = (block[:, None] >= block[None, :])[None, None]  # each block sees itself and those before it
"""
    maths = "import math\n\n" if schedule == "cosine" else ""
    if isinstance(sampler, Dilated):  # see `Dilated.transitions`
        passed = "1 - (1 - passed).asin() * 2 / math.pi" if schedule == "cosine" else "passed"
        setup += f"""\
# each pass takes positions far apart: the row's in the order of their reversed bits, turned at random
todo = (canvas[0] == mask).nonzero().squeeze(1)
bits = (canvas.shape[1] - 1).bit_length()
turned = (todo + torch.randint(2**bits, ())) % 2**bits
rank = sum(((turned >> bit) & 1) << (bits - 1 - bit) for bit in range(bits)).argsort().argsort()
passed = (rank + 0.5).double() / len(todo)
last = torch.zeros(canvas.shape)  # passes that are left when a position has its turn
last[0, todo] = (settings.max_denoising_steps * (1 - ({passed}))).ceil().float()
"""
        turn = "last == left"
    else:
        # P(revealed now | still masked), from time left/steps to (left − 1)/steps: MaskedProcess.reveal_probability
        chance = "1 / left"
        if schedule == "cosine":
            chance = "1 - math.sin(quarter * (left - 1)) / math.sin(quarter * left)"
            setup += "quarter = math.pi / 2 / settings.max_denoising_steps\n"
        turn = f"torch.rand(canvas.shape) < {chance}"
    # a model that predicts the next position is read one position earlier
    shift = "        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)\n" if spec.shift else ""
    return f"""\
{maths}import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
mask, settings = model.config.mask_token_id, model.generation_config
canvas = torch.full((1, settings.canvas_length), mask)  # put a prompt's tokens where they belong
{setup}with torch.no_grad():
    for left in range(settings.max_denoising_steps, 0, -1):
        logits = {call}.logits.double()
{shift}        logits[..., mask] = -torch.inf
        drawn = torch.distributions.Categorical(logits=logits).sample()
        reveal = (canvas == mask) & ({turn})
        canvas = torch.where(reveal, drawn, canvas)
print(tokenizer.decode(canvas[0]))
"""

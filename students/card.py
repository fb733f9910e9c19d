"""The README.md of an export: what it is, where it runs, how it is loaded, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from students.samplers import SERVED, Sampler
from students.samplers.dilated import Dilated
from teachers.denoiser import Compression, DenoiserSpec, Layout
from teachers.families import Family
from teachers.families.language.as_sdar import MASK_ID
from teachers.process import Schedule

SCALES: dict[Compression, str] = {"int8": "one scale an output channel", "int4": "one scale a group of inputs"}


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: of the folder.
        steps, canvas_length, schedule, sampler: what the student is meant for.
        layout: as it was asked for; ``family`` is that of the folder written.
        precision: of the weights, e.g. "bfloat16".
        divergence: KL(student ‖ export), nats a position.
        measured: Markdown.
    """

    name: str
    spec: DenoiserSpec
    steps: int
    canvas_length: int
    schedule: Schedule
    sampler: Sampler
    layout: Layout
    family: Family
    compress: Compression | None
    precision: str
    divergence: float
    measured: str

    @property
    def is_stock(self) -> bool:
        """Whether stock transformers loads the folder as it is."""
        return "stock class" in self.family.capabilities

    def text(self) -> str:
        """README.md."""
        blocks = f", blocks of {self.spec.block_size}" if self.spec.block_size else ""
        return f"""\
---
{"library_name: transformers" if self.is_stock else "library_name: fewstep"}
pipeline_tag: text-generation
tags:
- masked-diffusion
- few-step
---

# {self.name}

A masked-diffusion language model that writes {self._written()}.
Attention: {self.spec.attention}{blocks}. Weights: {self._weights()}.

## Use

{self._use()}

{self._served()}

With fewstep, {self.sampler.label} sampler:

```sh
fewstep generate {self.name} --steps {self.steps}
```

or, in Python, `fewstep.load_student("{self.name}").generate()`.

## Measured

{self.measured.strip()}
"""

    def _written(self) -> str:
        tokens = f"{self.canvas_length} tokens"
        if self.sampler.budget == "text":  # each block takes one at least
            steps = max(self.steps, self.sampler.steps_between(self.canvas_length)[0])
            return f"{tokens} in at most {steps} forward passes"
        most = self.sampler.most_transitions(self.canvas_length, self.steps)
        return (
            f"blocks of {self.sampler.block_length} tokens in at most {self.steps} forward passes each, {tokens} in at "
            f"most {most}"
        )

    def _weights(self) -> str:
        weights = self.precision
        if self.compress is not None:
            weights = (
                f"{self.compress} with {SCALES[self.compress]} (compressed-tensors, pack-quantized); embeddings and "
                "head bfloat16"
            )
        if weights == "float32":
            return weights
        where = "on random half-masked canvases"
        return f"{weights}. KL to the float32 student {where}: {self.divergence:.1e} nats a position"

    def _use(self) -> str:
        if not self.is_stock:
            use = f"In the format of {self.family.title}: what loads a release of that kind loads this folder."
            return " ".join([use, *self.family.left_out])
        needs = "torch 'transformers>=5.17'" + (" compressed-tensors" if self.compress else "")
        code = snippet(self.spec, self.schedule, self.sampler)
        return f"With stock transformers (`pip install {needs}`):\n\n```python\n{code}```"

    def _served(self) -> str:
        if self.layout == "sdar" and self.spec.mask_id != MASK_ID:
            return (
                f"No inference engine serves it: each takes {MASK_ID} for the mask, and this student's is "
                f"{self.spec.mask_id}, which its tokenizer or its vocabulary kept from moving there."
            )
        if self.family.served:
            engines = " and ".join(self.family.served)
            blocks = f" Tell it to take blocks of {self.spec.block_size}." if self.spec.block_size else ""
            names = " or ".join(f"`sampler={name}`" for name in SERVED)
            return (
                f"Served in this format by {engines}.{blocks} An engine samples in its own way, the most probable "
                f"tokens by a threshold: that is {names} here, and `fewstep evaluate` measures a student so as well. "
                "Where an engine asks for the Python files that config.json names under auto_map, copy those of a "
                "release beside it."
            )
        if self.spec.attention == "full":
            return "No inference engine serves masked-diffusion models with full attention in this form."
        return (
            "No inference engine serves blocks in this form; of a Qwen3 network without shift, `fewstep export "
            "--layout sdar` writes what SGLang and LMDeploy serve."
        )


def snippet(spec: DenoiserSpec, schedule: Schedule, sampler: Sampler) -> str:
    """Python that samples from an exported folder, its working directory, without fewstep: exact draws.

    Dilated where ``sampler`` is, else ancestral; ancestral within each block where blocks have steps of their own.
    """
    setup, call = "", "model(canvas, use_cache=False)"
    if spec.attention == "block":
        call = "model(canvas, attention_mask=sees, use_cache=False)"
        setup = f"""\
block = torch.arange(canvas.shape[1]) // {spec.block_size}
sees = (block[:, None] >= block[None, :])[None, None]  # each block sees itself and those before it
"""
    maths = "import math\n\n" if schedule == "cosine" else ""
    loop = "for left in range(settings.max_denoising_steps, 0, -1)"
    if sampler.budget == "block":
        lines, loop, turn = _in_blocks(spec, schedule, sampler)
        setup += lines
    elif isinstance(sampler, Dilated):  # see `Dilated.transitions`
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
words = torch.zeros(model.config.vocab_size, dtype=torch.bool)  # what may be drawn: all that is text
words[list(tokenizer.get_vocab().values())] = True
words[mask] = False
canvas = torch.full((1, settings.canvas_length), mask)  # put a prompt's tokens where they belong
{setup}with torch.no_grad():
    {loop}:
        logits = {call}.logits.double()
{shift}        logits[..., ~words] = -torch.inf
        drawn = torch.distributions.Categorical(logits=logits).sample()
        reveal = (canvas == mask) & ({turn})
        canvas = torch.where(reveal, drawn, canvas)
print(tokenizer.decode(canvas[0]))
"""


def _in_blocks(spec: DenoiserSpec, schedule: Schedule, sampler: Sampler) -> tuple[str, str, str]:
    """Of a snippet that writes block after block: what comes before the loop, the loop, and when a position is written.

    Blocks are counted as `students.samplers.blocks.places` does.
    """
    begin = "0" if spec.attention == "block" else "(canvas[0] == mask).int().argmax()"
    setup = f"""\
# one block after the other, each in passes of its own
place = (torch.arange(canvas.shape[1]) - {begin}) // {sampler.block_length}
blocks, steps = place[canvas[0] == mask].unique().tolist(), settings.max_denoising_steps
passes = [(block, left) for block in blocks for left in range(steps, 0, -1)]
"""
    chance = "1 / left"
    if schedule == "cosine":
        chance = "1 - math.sin(math.pi / 2 / steps * (left - 1)) / math.sin(math.pi / 2 / steps * left)"
    return setup, "for block, left in passes", f"(place == block) & (torch.rand(canvas.shape) < {chance})"

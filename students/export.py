"""A student as a folder that loads wherever its teacher did: weights, configs, tokenizer and a model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from students.card import Card
from students.samplers import Ancestral, Sampler
from teachers.companions import end_tokens, is_tokenizer, write_generation
from teachers.denoiser import Compression, Denoiser, DenoiserSpec, Layout
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.stock.dtypes import TORCH
from teachers.files import publish
from teachers.headers import read_headers
from teachers.process import Schedule
from teachers.quiet import quiet_transformers
from teachers.source import read_object
from teachers.vocabulary import gaps_of, read_tokenizer

LARGEST_KL = 0.1  # nats a position that compression may cost: a tenth of the perplexity; bundled:teacher, 5e-3 [own]
LARGEST_DIFFERENCE = 1e-4  # of an export's logits from those of the rounded weights, in another memory layout [own]


def export_student(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    steps: int,
    compress: Compression | None,
    model_card: str,
    canvas_length: int | None = None,
    schedule: Schedule = "log-linear",
    sampler: Sampler | None = None,
    layout: Layout = "own",
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a denoiser for other people's software, whole or not at all, and check that it reads back as it was.

    Args:
        tokenizer: None where there is none to be had, as beside some releases.
        folder: does not exist, or is empty.
        steps: forward passes the student is meant for, of a canvas, or of each block where its sampler counts them so;
            ``max_denoising_steps`` in generation_config.json.
        compress: None keeps the precision of the release, or float32.
        model_card: Markdown on where the student comes from and what was measured, put into README.md.
        canvas_length: tokens it was trained to write at once; by default the spec's.
        schedule: of the masked process it was trained with; ``noise_schedule`` in generation_config.json.
        sampler: what it is meant for, by default ancestral; ``sampler`` in generation_config.json.
        layout: see `teachers.denoiser.Layout`.
        beside: other files of the folder, name → text.

    Raises:
        UserError: it can not be written so, or what was written does not load as its family does, or gives other
            logits. Nothing is left behind.
    """
    canvas_length = canvas_length or denoiser.spec.length
    sampler = (sampler or Ancestral()).fitted(denoiser)
    meant_for = {
        "max_denoising_steps": steps,
        "canvas_length": canvas_length,
        "noise_schedule": schedule,
        "sampler": sampler.model_dump(),
    }

    def write(partial: Path) -> None:
        with denoiser.laid_out(layout, tokenizer) as (student, words):
            student.save(partial, compress, released=True)
            _write_tokenizer(words, student, partial)
            write_generation(partial, _generation(student.spec, end_tokens(denoiser.companions)), meant_for)
            divergence = check_export(student, words, partial, compress)
            family = resolve(str(partial)).family
            card = Card(
                folder.name, student.spec, steps, canvas_length, schedule, sampler, layout, family, compress,
                precision_of(partial), divergence, model_card,
            )  # fmt: skip
        for name, content in {**beside, "README.md": card.text()}.items():
            (partial / name).write_text(content, encoding="utf-8")

    return publish(folder, write)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase | None, student: Denoiser, folder: Path) -> None:
    """Leave the release's own files in the folder where they are of the same tokenizer, or write it in their place."""
    own = [name for name in student.companions if is_tokenizer(name)]
    if tokenizer is None or (own and _is_same(folder, tokenizer)):
        return
    for name in own:
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)


def _is_same(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        words = read_tokenizer(folder)
    except Exception:  # transformers raises whatever it likes
        return False
    return _are_same(words, tokenizer)


def _are_same(words: PreTrainedTokenizerBase, others: PreTrainedTokenizerBase) -> bool:
    return words.get_vocab() == others.get_vocab() and words.mask_token_id == others.mask_token_id


def _generation(spec: DenoiserSpec, ends: list[int]) -> dict[str, int | bool | list[int]]:
    """What generation_config.json says where a release does not.

    Args:
        ends: several end tokens, of which the spec's is one; an engine that knew only that one would write on.
    """
    entries = {"mask_token_id": spec.mask_id, "eos_token_id": spec.eos_id, "pad_token_id": spec.pad_id}
    present = {key: entry for key, entry in entries.items() if entry is not None and entry < spec.vocabulary}
    several = {"eos_token_id": ends} if spec.eos_id in ends else {}
    return {**present, **several, "use_cache": False}


def precision_of(folder: Path) -> str:
    """The types of the whole weights in a model's folder, most used first, as torch calls them."""
    numbers: Counter[str] = Counter()
    for tensor in read_headers(folder, read_object(folder / "config.json")).tensors.values():
        numbers[tensor.dtype] += tensor.numbers
    return " and ".join(
        str(TORCH[dtype]).removeprefix("torch.") for dtype, _ in numbers.most_common() if dtype in TORCH
    )


def check_export(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    compress: Compression | None,
) -> float:
    """Read an export as others will, and compare it with what was exported.

    Returns:
        KL(student ‖ export) in nats a position, the mean over random half-masked canvases; 0 for an exact copy.

    Raises:
        UserError: it does not load, is not what was written by `LARGEST_DIFFERENCE`, or compressed by more than
            `LARGEST_KL` not the student.
    """
    canvas = _half_masked(denoiser.spec).to(denoiser.device)
    checkpoint = resolve(str(folder))
    family = checkpoint.family
    expected = family.network_logits(denoiser, canvas)
    with denoiser.as_read(compress):
        rounded = family.network_logits(denoiser, canvas)
    try:
        with quiet_transformers():  # it reports weights that do not fit in dozens of lines
            found = family.written_logits(checkpoint, tokenizer, canvas)
            words = None if tokenizer is None else read_tokenizer(folder)
    except Exception as error:  # whatever the reason, the folder is of no use to anybody
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if "report" in reason:  # the one that is kept from being printed
            reason = "its class reads weights of another layout than was written"
        raise UserError(
            f"the export does not load as {family.title} ({reason}); this architecture can not be exported"
            + (", or try without --compress" if compress else "")
        ) from error
    if tokenizer is not None and words is not None and not _are_same(words, tokenizer):
        raise UserError(
            f"the exported tokenizer has {len(words)} entries and mask token {words.mask_token_id} where the student's "
            f"has {len(tokenizer)} and {tokenizer.mask_token_id}; give a tokenizer that save_pretrained keeps"
        )
    text = _text_ids(denoiser.spec, tokenizer).to(canvas.device)
    expected, rounded, found = (logits[..., text].log_softmax(-1) for logits in (expected, rounded, found))
    difference = float((rounded - found).abs().max())
    if not difference <= LARGEST_DIFFERENCE:  # NaN is a difference too
        raise UserError(
            f"the exported logits differ from the student's by {difference:.1e}, more than {LARGEST_DIFFERENCE}; "
            "this architecture does not survive being saved and can not be exported"
        )
    return _divergence(expected, found, compress)


def _text_ids(spec: DenoiserSpec, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """(N,) int64: the ids that can be drawn, also where a denoiser was made without its tokenizer."""
    if tokenizer is not None:
        spec = replace(spec, gaps=gaps_of(tokenizer, spec.vocabulary, spec.mask_id))
    return spec.tokens("cpu")


def _divergence(p: Tensor, q: Tensor, compress: Compression | None) -> float:
    """KL(p ‖ q) in nats a position, of log-probabilities; refused where compression makes it large."""
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    if compress is not None and not divergence <= LARGEST_KL:
        remedy = "export with --compress int8, or without" if compress == "int4" else "export without --compress"
        raise UserError(
            f"compression {compress!r} moves the student by {divergence:.4f} nats a position, more than {LARGEST_KL}; "
            f"{remedy}"
        )
    return max(0.0, divergence)


def _half_masked(spec: DenoiserSpec) -> Tensor:
    """(4, ≤64) random tokens, every second one masked; the same on every call."""
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(spec.vocabulary, (4, min(64, spec.max_length)), generator=generator)
    if spec.mask_id < spec.vocabulary:  # a uniform process has no mask
        canvas[:, ::2] = spec.mask_id
    return canvas

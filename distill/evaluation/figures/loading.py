"""The gauges that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, EvaluateConfig
from distill.data.batches import load_data
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.figures.gauges import Gauges
from distill.evaluation.figures.overlap import TrainingText
from distill.evaluation.judge import AnyJudge, Judge, load_judge
from distill.evaluation.reference import HeldOut, heldout_text
from distill.runtime.world import World
from teachers.errors import UserError
from teachers.families import resolve


def load_gauges(
    config: EvaluateConfig,
    judge: AnyJudge,
    text: HeldOut,
    training: DataConfig | None,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    world: World,
) -> Gauges:
    """What ``config`` asks for.

    Args:
        text: real text, of which the others are compared with, or where there are none, all.
        training: of a run; None where it is not known.
        ends: (E,) the tokens that end a text.

    Raises:
        UserError: the featuriser or the training data can not be read.
    """
    if config.training_data is not None:
        training = heldout_text(config.training_data, length, tokenizer)
    return Gauges(
        ends=ends,
        real=(text.others or text).texts(ends),
        apart=text.others is not None,
        featuriser=_featuriser(config, judge, tokenizer, length, world),
        training=None if training is None else _training_text(training, length, tokenizer),
        seed=config.seed,
        batch=config.batch,
        world=world,
    )


def _featuriser(
    config: EvaluateConfig, judge: AnyJudge, tokenizer: PreTrainedTokenizerBase, length: int, world: World
) -> Judge | None:
    if config.featuriser == "judge":
        return judge if isinstance(judge, Judge) else None
    if config.featuriser is None:
        return None
    own = load_tokenizer(resolve(config.featuriser).folder).get_vocab()
    featuriser = load_judge(config.featuriser, tokenizer, own != tokenizer.get_vocab(), world.device)
    if not isinstance(featuriser, Judge):
        raise UserError(
            f"featuriser {config.featuriser!r} is an exact source, which has no states; set evaluate.featuriser to an "
            "autoregressive model, or to null for none"
        )
    if not featuriser.retokenized and length > featuriser.max_length:
        raise UserError(
            f"samples have {length} tokens but featuriser {featuriser.name!r} reads at most {featuriser.max_length}; "
            "set a smaller evaluate.length, or evaluate.featuriser to a model with a longer context"
        )
    return featuriser


def _training_text(training: DataConfig, length: int, tokenizer: PreTrainedTokenizerBase) -> TrainingText:
    """What was trained on: all but the held-out part, where that is not in another file."""
    text = training.model_copy(update={"length": length})
    data = load_data(text, tokenizer)
    if text.heldout is None:
        data = data.split(text.heldout_fraction)[0]
    return TrainingText.of(data.tokens, length)

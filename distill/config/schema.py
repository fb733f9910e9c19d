"""Whole configs, and their sections of training and evaluation. What needs no weight to be checked is checked here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

from pydantic import Field, model_validator

from distill.config.data import DataConfig
from distill.config.deepspeed import check_deepspeed, zero_section
from distill.config.models import NewModelConfig, StudentConfig, TeacherConfig, TokenizerConfig
from distill.config.protocols import ProtocolName, with_protocol
from distill.config.samplers import AnySampler, measured_with
from distill.config.task import TaskConfig
from distill.config.values import Count, DataName, DeepSpeedSection, EndOfText, ModelName, Precision, Temperatures
from objectives import DISTILLERS
from objectives.blocks import BlocksConfig
from objectives.elbo import EditConfig
from objectives.masking import MasksConfig
from objectives.objective import ObjectiveConfig, Surroundings
from students.samplers import Ancestral
from teachers.checkpointing import Checkpointing
from teachers.compilation import Compilation
from teachers.process import Schedule
from teachers.section import Section


class RatesConfig(Section):
    """How many times ``lr`` a kind of layer learns at: attention, feed-forward, or neither (embeddings, norms, head).

    A converted autoregressive model keeps what it knows in its feed-forward layers and has to learn to look elsewhere,
    so RND1 gives attention a higher rate than the rest.
    """

    attention: float = Field(default=1.0, gt=0)
    mlp: float = Field(default=1.0, gt=0)
    rest: float = Field(default=1.0, gt=0)


class OptimizerConfig(Section):
    """AdamW with linear warm-up, a constant part and a decay to ``final`` × lr over the last ``decay`` of the run."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=0, ge=0)
    decay: float = Field(default=0.0, ge=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)
    rates: RatesConfig = RatesConfig()


class TrainConfig(Section):
    """The loop. ``batch`` rows make an update, over all processes; ``micro_batch`` of them pass a network at once.

    ``gradient_checkpointing`` recomputes activations in the backward pass instead of keeping them; "products" keeps
    what matrix products and attention gave, and recomputes what is cheap. ``compile`` computes passes that need no
    gradient by compiled blocks; "reduce-overhead" also replays them from CUDA graphs, on a GPU. ``flex_attention``
    computes attention in blocks, and in packed documents, by torch's compiled flex attention, on a GPU. A step whose
    loss or gradient is not finite is skipped; ``max_skipped`` such updates in a row end the run [own]. ``precision``
    "auto" is bfloat16 where this machine multiplies matrices clearly faster in it, else float32.
    """

    updates: Count
    batch: Count
    micro_batch: Count | None = None
    precision: Precision = "float32"
    gradient_checkpointing: Checkpointing = False
    compile: Compilation = False
    flex_attention: bool = False
    max_skipped: Count = 5
    seed: int = Field(default=0, ge=0, lt=2**63)
    ema: float = Field(default=0.999, ge=0, lt=1)
    student: OptimizerConfig
    critic: OptimizerConfig | None = None
    log_every: Count = 10
    checkpoint_every: Count = 500
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    keep: Count = 2
    wandb: str | None = None


if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:  # a union of what is in a table is beyond a type checker
    AnyObjective = Annotated[Union[tuple(DISTILLERS)], Field(discriminator="name")]  # noqa: UP007


class EvaluateConfig(Section):
    """Quality against step count: what `fewstep evaluate` measures, and what the loop watches while training.

    ``batch`` rows are sampled at once, from noise of their own; several processes share the batches, so each needs one.
    ``precision`` and ``compile`` are as in `TrainConfig`. ``length``, of the rows that `fewstep evaluate` measures and
    of an export's canvas, is that of training by default. With ``task``, `fewstep evaluate` asks its questions and
    judges no text.

    Rows are measured at all ``temperatures`` [own], and always at the sampler's own; null for that one alone. The
    teacher's ``teacher_steps`` take long. They are measured at just ``teacher_temperatures``, of which two are enough
    that lie on both sides of the entropy of real text; null for those of the other rows. They have at most
    ``teacher_samples`` samples; null for as many as other rows. Entropies of few texts are lower, so such a row is held
    against as many real texts.

    ``end_of_text`` says which of a text's end-of-text tokens the judge scores: "all" [own], so that perplexity is of
    all that was written, or the "first" alone, as published code does, which hides how many follow. ``featuriser`` is
    the network in whose states texts are compared with real ones: the "judge" [own], where it is one, or another; null
    for none. ``training_data`` is the text that memorised parts are looked for in, by default the run's own.

    With ``protocol``, rows are also sampled and judged as a paper's code does, and ``retokenize``, ``length`` and
    ``samples`` are its own unless they are set (distill/config/protocols.py).
    """

    judge: ModelName = "bundled:judge"
    length: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataName | None = None
    retokenize: bool = False
    end_of_text: EndOfText = "all"
    compile: Compilation = False
    protocol: ProtocolName | None = None
    featuriser: Literal["judge"] | ModelName | None = "judge"
    training_data: DataName | None = None
    sampler: AnySampler = Ancestral()
    precision: Precision = "float32"
    steps: list[Count] = Field(default=[1, 2, 4, 8, 16, 32, 64], min_length=1)
    teacher_steps: Count = 1024
    temperatures: Temperatures | None = Field(default=[0.9, 1.0, 1.1])
    teacher_temperatures: Temperatures | None = None
    teacher_samples: int | None = Field(default=None, ge=2, lt=2**31)
    samples: int = Field(default=1024, ge=2, lt=2**31)
    batch: Count = 128
    bootstrap: Count = 1000
    every: Count | None = None
    watch_steps: Count = 8
    watch_samples: int = Field(default=128, ge=2, lt=2**31)
    entropy_floor: float = Field(default=0.97, gt=0, lt=1)
    collapse: float = Field(default=0.9, gt=0, lt=1)
    task: TaskConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: Any) -> Any:
        return with_protocol(values) if isinstance(values, dict) else values


class DistillConfig(Section):
    """A whole distillation.

    Without ``data``, rows are ``length`` tokens long, and an objective that needs real samples gets ``teacher_samples``
    rows that the teacher wrote in ``teacher_sample_steps`` steps before training starts. One that needs the teacher's
    unmasking order gets as many rows with it, the teacher's own or, with ``data``, those of the data.

    ``sampler`` is what the student is trained for: its rollouts, the watch, evaluation, export and `fewstep generate`
    fill canvases in this way. ``evaluate.sampler`` is another one to measure with.

    A student whose attention is in blocks, as its teacher's is or as ``blocks.size`` says, is trained in these: a row
    of the objective is then a block behind clean text, and all samplers get its ``block_length`` and ``budget: block``,
    so that steps are passes of a block.
    """

    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    blocks: BlocksConfig = BlocksConfig()
    objective: AnyObjective
    sampler: AnySampler = Ancestral()
    data: DataConfig | None = None
    length: int | None = Field(default=None, ge=2)
    teacher_samples: Count = 2048
    teacher_sample_steps: Count = 256
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    deepspeed: DeepSpeedSection = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _one_sampler(cls, values: Any) -> Any:
        """A student is measured with what it is trained for, unless told otherwise."""
        if not isinstance(values, dict) or values.get("sampler") is None:
            return values
        evaluate = values.get("evaluate") or {}
        if isinstance(evaluate, EvaluateConfig):
            evaluate = {name: getattr(evaluate, name) for name in evaluate.model_fields_set}
        if isinstance(evaluate, dict):
            evaluate = {**evaluate, "sampler": measured_with(evaluate.get("sampler"), values["sampler"])}
        return {**values, "evaluate": evaluate}

    @model_validator(mode="after")
    def _cross_checks(self) -> DistillConfig:
        if self.data is None and self.length is None:
            raise ValueError("set data, or length to train on the teacher's own samples")
        if self.data is not None and self.length not in (None, self.data.length):
            raise ValueError(f"length {self.length} and data.length {self.data.length} differ; set only data.length")
        optimizers = {"student"} if self.train.critic is None else {"student", "critic"}
        self.objective.check(
            Surroundings(self.sequence_length, self.sampler, self.evaluate.sampler, frozenset(optimizers))
        )
        self._check_blocks()
        _check_batch(self.train, self.objective.group)
        adapted = self.student.adapter is not None or self.objective.adapters
        if adapted and self.teacher.placement != "replicated":
            raise ValueError(
                f"teacher.placement is {self.teacher.placement!r}, but adapters sit on a whole teacher; set it to "
                "replicated, or leave the adapters out"
            )
        check_deepspeed(self.deepspeed, self.train.precision)
        self._check_compile()
        if self.train.flex_attention and self.teacher.placement == "dispatched":
            raise ValueError(
                "train.flex_attention is true, but teacher.placement 'dispatched' spreads layers over devices, and its "
                "masks are on one; leave out either"
            )
        return self

    def _check_compile(self) -> None:
        """Blocks whose weights are elsewhere until they compute can not be compiled."""
        for key, value, elsewhere in (
            ("teacher.placement", self.teacher.placement, self.teacher.placement != "replicated"),
            ("deepspeed.zero_optimization.stage", 3, zero_section(self.deepspeed).get("stage") == 3),
        ):
            if self.train.compile and elsewhere:
                raise ValueError(
                    f"train.compile is {self.train.compile!r}, but with {key} {value!r} a block's weights are brought "
                    "to where it computes, which can not be compiled; leave out either"
                )

    def _check_blocks(self) -> None:
        """What of the samplers' blocks can be told without a model."""
        for key, sampler, length in (
            ("sampler", self.sampler, self.sequence_length),
            ("evaluate.sampler", self.evaluate.sampler, self.evaluate.length or self.sequence_length),
        ):
            size = sampler.block_length
            if sampler.budget == "block" and isinstance(size, int) and size > length:
                raise ValueError(
                    f"{key}.block_length is {size}, longer than the {length} tokens of a row; set it "
                    "to fewer, or to null to write a row as a whole"
                )

    @property
    def sequence_length(self) -> int:
        """L."""
        length = self.data.length if self.data is not None else self.length
        assert length is not None  # checked above
        return length


class PretrainConfig(Section):
    """Training a masked-diffusion teacher ("elbo") or an autoregressive judge ("autoregressive"), from scratch or from
    an autoregressive model.

    ``masks`` says what a teacher learns from; with ``edit`` the last part of its updates also learns to undo edits.
    """

    objective: Literal["elbo", "autoregressive"] = "elbo"
    process: Schedule = "log-linear"
    masks: MasksConfig = MasksConfig()
    edit: EditConfig | None = None
    model: NewModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    train: TrainConfig
    deepspeed: DeepSpeedSection = Field(default={})

    @model_validator(mode="after")
    def _cross_checks(self) -> PretrainConfig:
        _check_batch(self.train, self.group)
        self._check_format()
        self._check_masks()
        self._check_blocks()
        self._check_edit()
        if self.train.compile:
            raise ValueError(
                f"train.compile is {self.train.compile!r}, but it is for passes without a gradient, and pretraining "
                "makes none; leave it out"
            )
        if self.train.flex_attention and self.model.attention != "block" and not self.masks.documents:
            raise ValueError(
                "train.flex_attention is true, but it is for attention in blocks or packed documents; set "
                "model.attention to block or masks.documents to true, or leave it out"
            )
        check_deepspeed(self.deepspeed, self.train.precision)
        return self

    def _check_format(self) -> None:
        if self.data.format == "prompt_only":
            raise ValueError(
                "data.format is 'prompt_only', but a model learns from what is written; give prompts with completions "
                "(prompt_completion or messages), or distil a teacher on the prompts alone"
            )
        if self.masks.documents and self.data.prompted:
            raise ValueError(
                f"masks.documents keeps the documents of a packed row apart, but a row of data.format "
                f"{self.data.format!r} is never packed; leave it out"
            )

    def _check_masks(self) -> None:
        if self.objective != "elbo" and self.masks != MasksConfig():
            raise ValueError(f"masks is set, but objective {self.objective!r} masks nothing; leave it out")
        if self.masks.documents and not self.data.pack:
            raise ValueError(
                "masks.documents keeps the documents of a packed row apart, but data.pack is false: a row is of one; "
                "leave either out"
            )
        if self.masks.anneal is not None and self.model.attention == "block":
            raise ValueError(
                f"masks.anneal {self.masks.anneal} opens a causal mask to full attention, but model.attention is "
                "'block'; set it to full, or let blocks grow by masks.block_sizes"
            )

    def _check_blocks(self) -> None:
        size, stages = self.model.block_size, self.masks.block_sizes
        if stages and stages[-1][1] != size:
            raise ValueError(
                f"masks.block_sizes end with {stages[-1][1]} tokens a block and model.block_size is {size}, the one "
                "that the model is saved with; set model.attention to block and both to the same"
            )
        for tokens in [*(stage[1] for stage in stages), *([] if size is None else [size])]:
            if self.objective == "elbo" and self.data.length % tokens:
                raise ValueError(
                    f"data.length {self.data.length} is not a multiple of a block of {tokens} tokens; change "
                    "data.length, or model.block_size and masks.block_sizes"
                )

    def _check_edit(self) -> None:
        if self.edit is None:
            return
        if self.objective != "elbo":
            raise ValueError(f"edit is set, but objective {self.objective!r} corrupts nothing; leave it out")
        if self.masks != MasksConfig() or self.model.attention == "block":
            raise ValueError(
                "edit moves tokens along whole rows of full attention, and neither masks nor block attention go with "
                "it; leave out edit, or the others"
            )
        if self.edit.most(self.data.length) == 0:
            raise ValueError(
                f"edit.rate {self.edit.rate} of data.length {self.data.length} is less than one edit; set it to "
                f"{2 / self.data.length:.2g} or more, or leave edit out"
            )
        if self.edit.first(self.train.updates) == self.train.updates:
            raise ValueError(
                f"edit.share {self.edit.share} of {self.train.updates} train.updates is none; set a larger share, or "
                "leave edit out"
            )

    @property
    def group(self) -> int:
        """Rows that must stay in one micro-batch: the ELBO's times are antithetic in pairs."""
        return 2 if self.objective == "elbo" else 1


def _check_batch(train: TrainConfig, group: int) -> None:
    micro = train.micro_batch or train.batch
    if train.batch % micro:
        raise ValueError(f"train.batch {train.batch} is not a multiple of train.micro_batch {micro}; change either")
    if micro % group:
        raise ValueError(f"train.micro_batch {micro} is not a multiple of {group}, the rows this objective groups")


AnyConfig = TypeVar("AnyConfig", DistillConfig, PretrainConfig)

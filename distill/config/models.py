"""The sections of models and their tokenizers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.values import Count, FamilyName, ModelName, PassedOn
from students.adapters import AdapterConfig
from teachers.process import Schedule
from teachers.section import Section
from teachers.source import check_trust, parse_source


class ModelConfig(Section):
    """Where a model comes from, and what its checkpoint does not say of itself (see `DenoiserSpec`).

    A hub name is pinned to a commit, by ``revision`` or as ``org/name@<40 hex digits>``. ``trust_remote_code`` is the
    model's name again, for models that come with code of their own; ``family`` is for those that do not say theirs.
    """

    path: str
    process: Schedule = "log-linear"
    tokenizer: ModelName | None = None
    revision: str | None = None
    trust_remote_code: str | None = None
    family: FamilyName | None = None
    mask_id: int | None = Field(default=None, ge=0)
    shift: bool | None = None
    attention: Literal["full", "block"] | None = None
    block_size: Count | None = None
    time_conditioned: bool | None = None

    @field_validator("trust_remote_code", mode="before")
    @classmethod
    def _not_a_plain_yes(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(
                f"{value} says nothing of whose code; write the model's own name, org/name, or leave it out"
            )
        return value

    @model_validator(mode="after")
    def _pinned(self) -> ModelConfig:
        check_trust(parse_source(self.path, self.revision), self.trust_remote_code)
        return self


class TeacherConfig(ModelConfig):
    """The teacher, and where it is kept: a whole copy on each process ("replicated"), its weights spread over the
    processes ("sharded", ZeRO 3), or its layers spread over the devices that one process sees ("dispatched").

    ``max_memory`` limits what "dispatched" puts on each device, as accelerate takes it: {0: 20GB, cpu: 60GB}.
    """

    placement: Literal["replicated", "sharded", "dispatched"] = "replicated"
    max_memory: dict[int | str, str] | None = None

    @model_validator(mode="after")
    def _memory(self) -> TeacherConfig:
        if self.max_memory and self.placement != "dispatched":
            raise ValueError(f"max_memory has no meaning for placement {self.placement!r}; set placement to dispatched")
        return self


class StudentConfig(Section):
    """What the student starts from, "teacher" or a model with the teacher's shapes; and what of it trains.

    With ``adapter`` the student is a LoRA adapter on the teacher itself; without, all its weights train.
    """

    init: ModelName = "teacher"
    adapter: AdapterConfig | None = None

    @model_validator(mode="after")
    def _adapter(self) -> StudentConfig:
        if self.adapter is not None and self.init != "teacher":
            raise ValueError(
                f"init is {self.init!r}, but an adapter sits on the teacher itself; leave out student.init to train "
                "the adapter, or student.adapter to train all weights"
            )
        return self


class NewModelConfig(Section):
    """A model to pretrain: a stock transformers architecture from scratch, or ``init`` from an autoregressive one.

    With ``shift`` what predicts a token is read where the one before it is, as in an autoregressive model.
    """

    type: str = "qwen3"
    shape: PassedOn = Field(default={})
    init: ModelName | None = None
    attention: Literal["full", "block"] = "full"
    block_size: Count | None = None
    shift: bool = False

    @model_validator(mode="after")
    def _block(self) -> NewModelConfig:
        if (self.attention == "block") != (self.block_size is not None):
            raise ValueError("attention 'block' and block_size go together; set both or neither")
        return self


class TokenizerConfig(Section):
    """An existing tokenizer (``path``, or that of ``model.init``), or a byte-level BPE trained on the corpus.

    ``mask`` is the text or the id of a special token that it has, to be the mask from now on; without, it is the
    tokenizer's own mask token, or one that is added.
    """

    path: ModelName | None = None
    mask: str | int | None = None
    vocabulary: int = Field(default=4096, ge=259)
    plain_punctuation: bool = False

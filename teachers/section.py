"""The base of every typed config section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: unknown keys are errors, defaults are checked, numbers are finite, instances are frozen."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=(), frozen=True
    )

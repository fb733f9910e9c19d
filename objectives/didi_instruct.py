"""DiDi"""
from __future__ import annotations

from typing import Literal

from objectives.integral_kl import IntegralKLConfig


class DidiInstructConfig(IntegralKLConfig):
    name: Literal["didi_instruct"] = "didi_instruct"

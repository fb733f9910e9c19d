"""Everything that `fewstep distill` can minimise."""

from objectives.certainty import CertaintyConfig
from objectives.consistency import ConsistencyConfig
from objectives.constrained_order import ConstrainedOrderConfig
from objectives.didi_instruct import DidiInstructConfig
from objectives.dimo import DimoConfig
from objectives.idlm import IdlmConfig
from objectives.integral_kl import IntegralKLConfig
from objectives.redi import RediConfig
from objectives.representation_mmd import RepresentationMmdConfig
from objectives.sdtt import SdttConfig
from objectives.step_reduction import StepReductionConfig
from objectives.t3d import T3DConfig
from objectives.trajectory import TrajectoryConfig

DISTILLERS = (
    IntegralKLConfig,
    DidiInstructConfig,
    DimoConfig,
    IdlmConfig,
    RepresentationMmdConfig,
    SdttConfig,
    ConsistencyConfig,
    RediConfig,
    CertaintyConfig,
    TrajectoryConfig,
    T3DConfig,
    ConstrainedOrderConfig,
    StepReductionConfig,
)
"""The config of everything that `fewstep distill` can minimise; its ``name`` is what ``objective.name`` may be."""

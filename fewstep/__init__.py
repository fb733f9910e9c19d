"""Few-step students of diffusion language models, for notebooks and programs.

A student in ten lines; the bundled teacher is small, and so is its English:

>>> import fewstep
>>> teacher = fewstep.load_teacher("bundled:teacher")
>>> student = fewstep.distil(teacher, fewstep.IntegralKL(), updates=100, batch=16, length=64)  # doctest: +SKIP
>>> student.generate(steps=8, seed=0).texts[0]  # doctest: +SKIP
'owing theg theswis Hipperions, heersed them, fold the as exlices'
>>> print(fewstep.evaluate(student, teacher, steps=[4, 8], samples=256).table())  # doctest: +SKIP
>>> student.export("student")  # doctest: +SKIP
>>> student = fewstep.load_student("student")  # doctest: +SKIP

Importing the package is instant: torch and all else are imported by the first name that needs them. Nothing here
prints, reads YAML, handles signals or starts processes.
"""

from typing import TYPE_CHECKING

from teachers.lazy import lazy

if TYPE_CHECKING:  # for editors and type checkers: the names below, imported
    from distill.config import DataConfig as Data
    from distill.config import OptimizerConfig as Optimizer
    from distill.evaluation.results import Evaluation as Evaluation
    from distill.evaluation.tasks.results import TaskEvaluation as TaskEvaluation
    from distill.evaluation.verification import Verification as Verification
    from distill.generation import Generated as Generated
    from distill.runtime.cost import Cost as Cost
    from distill.runtime.exits import RunError as RunError
    from fewstep.evaluation import evaluate as evaluate
    from fewstep.evaluation import report as report
    from fewstep.evaluation import verify as verify
    from fewstep.models import Model as Model
    from fewstep.models import Student as Student
    from fewstep.models import Teacher as Teacher
    from fewstep.models import describe as describe
    from fewstep.models import export as export
    from fewstep.models import load_student as load_student
    from fewstep.models import load_teacher as load_teacher
    from fewstep.training import Distiller as Distiller
    from fewstep.training import distil as distil
    from objectives.blocks import BlocksConfig as Blocks
    from objectives.certainty import CertaintyConfig as Certainty
    from objectives.consistency import ConsistencyConfig as Consistency
    from objectives.constrained_order import ConstrainedOrderConfig as ConstrainedOrder
    from objectives.didi_instruct import DidiInstructConfig as DidiInstruct
    from objectives.dimo import DimoConfig as Dimo
    from objectives.idlm import IdlmConfig as Idlm
    from objectives.integral_kl import IntegralKLConfig as IntegralKL
    from objectives.redi import RediConfig as Redi
    from objectives.representation_mmd import RepresentationMmdConfig as RepresentationMmd
    from objectives.sdtt import SdttConfig as Sdtt
    from objectives.step_reduction import StepReductionConfig as StepReduction
    from objectives.t3d import T3DConfig as T3D
    from objectives.trajectory import TrajectoryConfig as Trajectory
    from students.adapters import AdapterConfig as Adapter
    from students.samplers.ancestral import Ancestral as Ancestral
    from students.samplers.daedal import Daedal as Daedal
    from students.samplers.dilated import Dilated as Dilated
    from students.samplers.edit import Edit as Edit
    from students.samplers.entropy_bound import EntropyBound as EntropyBound
    from students.samplers.factor import Factor as Factor
    from students.samplers.joint import Joint as Joint
    from students.samplers.planner import Planner as Planner
    from students.samplers.random_start import RandomStart as RandomStart
    from students.samplers.remdm import Remdm as Remdm
    from students.samplers.rgas import Rgas as Rgas
    from students.samplers.threshold import Threshold as Threshold
    from students.samplers.top_k import TopK as TopK
    from teachers.description import families as families
    from teachers.errors import UserError as UserError

__all__ = [
    "T3D",
    "Adapter",
    "Ancestral",
    "Blocks",
    "Certainty",
    "Consistency",
    "ConstrainedOrder",
    "Cost",
    "Daedal",
    "Data",
    "DidiInstruct",
    "Dilated",
    "Dimo",
    "Distiller",
    "Edit",
    "EntropyBound",
    "Evaluation",
    "Factor",
    "Generated",
    "Idlm",
    "IntegralKL",
    "Joint",
    "Model",
    "Optimizer",
    "Planner",
    "RandomStart",
    "Redi",
    "Remdm",
    "RepresentationMmd",
    "Rgas",
    "RunError",
    "Sdtt",
    "StepReduction",
    "Student",
    "TaskEvaluation",
    "Teacher",
    "Threshold",
    "TopK",
    "Trajectory",
    "UserError",
    "Verification",
    "describe",
    "distil",
    "evaluate",
    "export",
    "families",
    "load_student",
    "load_teacher",
    "report",
    "verify",
]

_PLACES = {
    # models, what is done with them, and what comes of it
    "load_teacher": "fewstep.models",
    "load_student": "fewstep.models",
    "families": "teachers.description",
    "describe": "fewstep.models",
    "export": "fewstep.models",
    "Model": "fewstep.models",
    "Teacher": "fewstep.models",
    "Student": "fewstep.models",
    "distil": "fewstep.training",
    "Distiller": "fewstep.training",
    "evaluate": "fewstep.evaluation",
    "report": "fewstep.evaluation",
    "verify": "fewstep.evaluation",
    "Cost": "distill.runtime.cost",
    "Verification": "distill.evaluation.verification",
    "Evaluation": "distill.evaluation.results",
    "TaskEvaluation": "distill.evaluation.tasks.results",
    "Generated": "distill.generation",
    # objectives
    "Certainty": "objectives.certainty:CertaintyConfig",
    "Consistency": "objectives.consistency:ConsistencyConfig",
    "ConstrainedOrder": "objectives.constrained_order:ConstrainedOrderConfig",
    "DidiInstruct": "objectives.didi_instruct:DidiInstructConfig",
    "Dimo": "objectives.dimo:DimoConfig",
    "Idlm": "objectives.idlm:IdlmConfig",
    "IntegralKL": "objectives.integral_kl:IntegralKLConfig",
    "Redi": "objectives.redi:RediConfig",
    "RepresentationMmd": "objectives.representation_mmd:RepresentationMmdConfig",
    "Sdtt": "objectives.sdtt:SdttConfig",
    "StepReduction": "objectives.step_reduction:StepReductionConfig",
    "T3D": "objectives.t3d:T3DConfig",
    "Trajectory": "objectives.trajectory:TrajectoryConfig",
    # samplers
    "Ancestral": "students.samplers.ancestral",
    "Daedal": "students.samplers.daedal",
    "Dilated": "students.samplers.dilated",
    "Edit": "students.samplers.edit",
    "EntropyBound": "students.samplers.entropy_bound",
    "Factor": "students.samplers.factor",
    "Joint": "students.samplers.joint",
    "Planner": "students.samplers.planner",
    "RandomStart": "students.samplers.random_start",
    "Remdm": "students.samplers.remdm",
    "Rgas": "students.samplers.rgas",
    "Threshold": "students.samplers.threshold",
    "TopK": "students.samplers.top_k",
    # settings of a training, and what goes wrong
    "Blocks": "objectives.blocks:BlocksConfig",
    "Adapter": "students.adapters:AdapterConfig",
    "Data": "distill.config:DataConfig",
    "Optimizer": "distill.config:OptimizerConfig",
    "RunError": "distill.runtime.exits",
    "UserError": "teachers.errors",
}
__getattr__, __dir__ = lazy(__name__, _PLACES)

"""Students and teachers in lm-evaluation-harness: importing this makes its model type ``fewstep`` known.

Version 0.4.13 finds other packages' types in no other way than that they were imported. So

    python -m fewstep.harness --model fewstep --model_args pretrained=DIR,steps=8 --tasks …

is ``lm_eval`` with the type. In Python, import this before `lm_eval.simple_evaluate`.
"""

from importlib.util import find_spec

MODEL = "fewstep"
"""The type's name."""


def register() -> None:
    """Make the type known; what it needs is imported when it is used."""
    import lm_eval.models  # noqa: F401  the registry fills itself only while it is empty
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target="fewstep.harness.model:FewstepLM")


if find_spec("lm_eval") is not None:
    register()

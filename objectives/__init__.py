"""What is minimised: one paper, one file; pure functions of tensors, then a little wiring."""

from teachers.lazy import lazy

__getattr__, __dir__ = lazy(__name__, {"DISTILLERS": "objectives.registry"})

"""Training objectives, by name."""

from lm.objectives import base, causal

OBJECTIVES = {'causal': causal.make}


def make(config) -> base.Objective:
  """The objective that `objective.name` of a resolved config names."""
  return OBJECTIVES[config.objective.name](config)

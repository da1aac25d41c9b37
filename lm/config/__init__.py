"""From a config as given to one that a run can trust."""

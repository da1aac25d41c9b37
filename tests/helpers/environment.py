"""Where the project is, and how the processes of the tests compile."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Compiling takes most of the suite's time, and nearly half of that without
# optimization.
QUICKLY_COMPILED = '--xla_backend_optimization_level=0'

"""Formats values of a run for a page: numbers, sizes and times."""

import json
import math

from lm.report import charts

DASH = '–'


def display(value):
  """Returns strings unchanged, and other values as JSON."""
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)


def text(name, value):
  """Formats a figure by its name; None is a dash."""
  if value is None:
    return DASH
  if not is_number(value):
    return display(value)
  if name.endswith('bits_per_byte') and 1e-3 <= abs(value) < 1e3:
    return f'{value:.3f}'
  return charts.number_text(value)


def is_number(value):
  """Whether a value is an int or a float, and not a bool."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def to_float(value):
  """Converts to a float; an int too large for one becomes infinity."""
  try:
    return float(value)
  except OverflowError:
    return math.inf


def finite(value):
  """Converts to a float; None if it is not a finite number."""
  if not is_number(value) or not math.isfinite(to_float(value)):
    return None
  return float(value)


def compact(count):
  """12,345 → 12.3 k; 3.2e6 → 3.2 M."""
  for unit, suffix in ((10**9, 'G'), (10**6, 'M'), (10**3, 'k')):
    if unit <= count < 10**15:
      return f'{count / unit:.3g} {suffix}'
  return charts.number_text(count)


def duration(seconds):
  """4.2 s, 4 min 12 s, 3 h 20 min."""
  if not 0 <= seconds < 1e9:
    return charts.number_text(seconds)
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest} s'
  return f'{minutes // 60} h {minutes % 60} min'

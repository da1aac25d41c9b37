"""`report.html`: the contents of a run folder on one readable page.

The page is built from the run folder alone, is self-contained and makes no
requests.
"""

import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import markupsafe

from lm import errors
from lm.evaluation import by_source
from lm.generation import diversity
from lm.report import charts as charts_lib, curves, meanings, template, values
from lm.runtime import files
from lm.training import metrics

# Figures that are always listed; absent ones are shown as a dash.
_ALWAYS = (
  'bits_per_byte',
  'scorer',
  'suffix_bits_per_byte',
  'suffix_scorer',
  'perplexity',
  'bytes',
  'special_mass',
  'xz_bits_per_byte',
  'xz_given_training_bits_per_byte',
  'unigram_bits_per_byte',
)
_BASELINES = {
  'xz -9': 'xz_bits_per_byte',
  'xz -9 given the training text': 'xz_given_training_bits_per_byte',
  'unigram model': 'unigram_bits_per_byte',
}
_SAMPLE_CHARACTERS = 12_000


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Writes WORKDIR/report.html atomically and returns its path.

  Raises:
    errors.UserError: WORKDIR is not a folder, or a JSON file in it is broken.
    OSError: the page cannot be written; the old one then stays unchanged.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'report.html'
  files.write(path, render(workdir))
  return path


def render(workdir: pathlib.Path) -> str:
  """Builds the page, which reports absent files and figures without an error.

  Raises:
    errors.UserError: WORKDIR is not a folder, or a JSON file in it is broken.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise errors.UserError(
      f'workdir={str(workdir)!r} is not a folder; '
      'give the folder of a run, created by run.py --mode=train'
    )
  config = _read_object(workdir / 'config.json')
  provenance = _read_object(workdir / 'provenance.json')
  lines = metrics.read(workdir)
  samples, samples_cut = _read_samples(workdir / 'samples.txt')
  finished = bool(lines) and lines[-1].get('split') == 'final'
  final = _final_figures(lines)
  charts = curves.draw(lines)
  return template.render(
    'page.html.jinja',
    chart_style=markupsafe.Markup(charts_lib.STYLE),
    name=workdir.resolve().name or 'run',
    sentence=_sentence(config, provenance, lines),
    warnings=_warnings(lines, finished),
    tiles=_tiles(final, provenance),
    bars=markupsafe.Markup(_bars(final)),
    comparison=_comparison(final),
    by_source=_by_source(final),
    curves=[markupsafe.Markup(curve) for curve in charts],
    curves_note=curves.note(lines),
    samples=samples,
    samples_cut=samples_cut,
    samples_count=values.text('samples_count', final.get('samples_count')),
    samples_beside=_samples_beside(final),
    figures=_figure_rows(final),
    config=_flatten(config),
    provenance=_flatten(provenance),
    next_steps=_next_steps(workdir, provenance, finished),
  )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; returns {} if the file is absent."""
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise errors.UserError(
      f'{path}: not JSON ({error}); restore or delete the file'
    ) from error
  if not isinstance(value, dict):
    raise errors.UserError(
      f'{path}: must hold a JSON object, not a {type(value).__name__}; '
      'restore or delete the file'
    )
  return value


def _read_samples(path: pathlib.Path) -> tuple[str, bool]:
  """Returns the end of the text, and whether it was cut."""
  if not path.exists():
    return '', False
  text = path.read_bytes().decode('utf-8', errors='replace').strip('\r\n')
  return text[-_SAMPLE_CHARACTERS:], len(text) > _SAMPLE_CHARACTERS


def _final_figures(lines):
  """Merges the last test line with the last final line, which has priority."""
  merged = {}
  for split in ('test', 'final'):
    chosen = [line for line in lines if line.get('split') == split]
    merged.update(chosen[-1] if chosen else {})
  merged.pop('split', None)
  return merged


def _sentence(config, provenance, lines):
  """Describes the run in one sentence, from what is known."""
  model = _section(config, 'model')
  data = _section(config, 'data')
  objective = _section(config, 'objective').get('name')
  kind = [model.get('family'), model.get('architecture')]
  described = ' '.join(str(one) for one in kind if one) or 'a model'
  if model.get('num_layers'):
    described += f', {model["num_layers"]} layers'
    if model.get('width'):
      described += f' of width {model["width"]}'
  mixed = data.get('sources')
  source = data.get('path') or data.get('source')
  if mixed:
    source = ', '.join(str(name) for name, _ in mixed)
  steps = max(
    (line['step'] for line in lines if values.is_number(line.get('step'))),
    default=None,
  )
  start = f'Trained with the {objective} objective' if objective else 'Trained'
  parts = [f'{start}: {described}']
  if source:
    parts.append(f'on {values.display(source)}')
  if steps is not None:
    unit = 'step' if steps == 1 else 'steps'
    parts.append(f'for {charts_lib.number_text(steps)} {unit}')
  if provenance.get('devices'):
    parts.append(f'on {values.display(provenance["devices"])}')
  return ', '.join(parts) + '.'


def _warnings(lines, finished):
  found = []
  if not lines:
    found.append('Unfinished: metrics.jsonl has no lines yet.')
  elif not finished:
    step = lines[-1].get('step')
    where = (
      f' The last line is that of step {charts_lib.number_text(step)}.'
      if values.is_number(step)
      else ''
    )
    found.append(
      'Unfinished: the run has not written its final figures.' + where
    )
  return found


def _tiles(final, provenance):
  suffix = f'scorer: {final.get("suffix_scorer") or values.DASH}'
  error = values.finite(final.get('suffix_standard_error'))
  if error is not None:
    suffix += f', standard error {error:.3f}'
  tiles = [
    (
      'bits_per_byte',
      'Bits per byte on test',
      f'scorer: {final.get("scorer") or values.DASH}',
    ),
    ('suffix_bits_per_byte', 'Suffix bits per byte', suffix),
  ]
  if final.get('pseudo_bits_per_byte') is not None:
    tiles.append(
      ('pseudo_bits_per_byte', 'Pseudo bits per byte', 'not a likelihood')
    )
  if final.get('perplexity') is not None:
    tiles.append(('perplexity', 'Perplexity', 'per token'))
  rows = [
    {'label': label, 'value': values.text(name, final.get(name)), 'note': note}
    for name, label, note in tiles
  ]
  parameters = provenance.get('parameters')
  rows.append(
    {
      'label': 'Parameters',
      'value': values.compact(parameters)
      if values.is_number(parameters)
      else values.DASH,
      'note': 'trained',
    }
  )
  seconds = final.get('seconds')
  rows.append(
    {
      'label': 'Time',
      'value': values.duration(seconds)
      if values.is_number(seconds)
      else values.DASH,
      'note': 'total',
    }
  )
  return rows


def _bars(final):
  bars = [
    charts_lib.Bar(label, values.finite(final.get(name)))
    for label, name in _BASELINES.items()
  ]
  ours = values.finite(final.get('bits_per_byte'))
  # Figures of another text, or by another scorer, are not comparable.
  if ours is not None or _no_exact_scorer(final) is None:
    bars.append(charts_lib.Bar('this model', ours, True))
  return charts_lib.bar_chart(
    bars,
    title='Test text: lower is better',
    unit='bits per byte',
  )


def _no_exact_scorer(final):
  """The scorer of a run that cannot score whole documents, or None."""
  name = final.get('suffix_scorer')
  return None if name in (None, 'exact') else values.display(name)


def _comparison(final):
  """Compares the model with the best baseline, in words."""
  ours = values.finite(final.get('bits_per_byte'))
  scorer = _no_exact_scorer(final)
  if ours is None and scorer == 'none':
    return 'The objective has no scorer for text: no bits per byte.'
  if ours is None and scorer:
    return (
      f'The scorer of the objective, {scorer}, cannot score whole documents. '
      'Its suffix figure is measured on other text and is not comparable with '
      'these.'
    )
  if ours is None:
    return 'Bits per byte of this model: not measured.'
  measured = {
    label: values.finite(final.get(name)) for label, name in _BASELINES.items()
  }
  measured = {label: value for label, value in measured.items() if value}
  if not measured:
    return 'No baselines were measured.'
  best = min(measured, key=measured.get)
  change = ours / measured[best] - 1
  if not math.isfinite(change):
    return ''
  side = 'fewer' if change < 0 else 'more'
  return (
    f'This model needs {abs(change):.1%} {side} bits than '
    f'the best baseline, {best}.'
  )


def _by_source(final):
  """Builds the tables of each source of a mixture, and of all sources."""
  tables = []
  if not isinstance(final.get(by_source.NAME), dict):
    return tables
  for table in by_source.tables(final):
    errors_known = any(row.error is not None for row in table.rows)
    headings = [table.figure.removeprefix('suffix_').replace('_', ' ')]
    headings += ['standard error'] * errors_known
    rows = []
    for row in table.rows:
      cells = [values.text('bits_per_byte', row.value)]
      if errors_known:
        cells.append(values.text('bits_per_byte', row.error))
      amounts = (row.tokens, row.size, row.count)
      cells += [values.text('', amount) for amount in amounts]
      rows.append({'name': row.name, 'cells': cells})
    tables.append(
      {
        'text': table.text,
        'headings': [*headings, 'tokens', 'bytes', table.counted],
        'rows': rows,
      }
    )
  return tables


def _samples_beside(final):
  """Builds the table of figures of the samples and of the held-out text."""
  rows = []
  for name, (label, meaning) in diversity.NAMES.items():
    keys = [f'{text}_{name}' for text in ('samples', 'held_out')]
    if any(final.get(k) is not None for k in keys):
      cells = [diversity.cell(name, values.finite(final.get(k))) for k in keys]
      rows.append({'label': label, 'cells': cells, 'meaning': meaning})
  return rows


def _figure_rows(final):
  names = [
    *_ALWAYS,
    *(name for name in meanings.FIGURES if name not in _ALWAYS),
  ]
  known = [name for name in names if name in _ALWAYS or name in final]
  # Figures of each source have tables of their own.
  listed = (*meanings.FIGURES, by_source.NAME)
  others = [name for name in final if name not in listed]
  rows = []
  for name in [*known, *others]:
    unit, meaning = meanings.FIGURES.get(name, ('', ''))
    if name.startswith('loss/'):
      unit, meaning = 'nats', f'Part of the training loss: {name[5:]}.'
    value = final.get(name)
    text = values.text(name, value)
    rows.append(
      {
        'name': name,
        'value': text,
        'exact': '' if value is None else values.display(value),
        'unit': unit if values.is_number(value) else '',
        'meaning': meaning,
      }
    )
  return rows


def _next_steps(workdir, provenance, finished):
  run = f'python run.py --workdir={shlex.quote(str(workdir))}'
  steps = [
    {
      'why': 'Evaluate it again:',
      'command': f'{run} --mode=evaluate',
    },
  ]
  prompt = provenance.get('prompt')
  if prompt:
    quoted = shlex.quote(values.display(prompt))
    steps.insert(
      0,
      {
        'why': 'Generate text from a prompt of your own:',
        'command': f'{run} --mode=generate --prompt={quoted}',
      },
    )
  command = provenance.get('command')
  if command and not finished:
    steps.insert(
      0,
      {
        'why': 'Finish the run from its last checkpoint:',
        'command': values.display(command),
      },
    )
  return steps


def _flatten(tree: Mapping[str, Any], prefix: str = ''):
  """Returns dotted names and texts: {'a': {'b': 1}} → [('a.b', '1')]."""
  rows = []
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      rows += _flatten(value, f'{prefix}{key}.')
    else:
      rows.append((f'{prefix}{key}', values.display(value)))
  return rows


def _section(config, name):
  section = config.get(name)
  return section if isinstance(section, dict) else {}

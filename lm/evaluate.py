"""Evaluates a run on held-out text, and compares it with the baselines."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from lm import load_run
from lm.config import check, compatible
from lm.data import store
from lm.evaluation import (
  baselines as baselines_lib,
  by_source,
  passages,
  scorer as scorer_lib,
  scoring_methods,
)
from lm.runtime import console
from lm.training import loaded

# The other fields of the section only have an effect during training.
_READS = (
  *('evaluate.batch_size', 'evaluate.windows', 'evaluate.bound_samples'),
)


def run(workdir: pathlib.Path, overrides: Mapping[str, Any]):
  """Prints the figures of a run folder; the last line is JSON.

  Raises:
    UserError: the folder holds no run, or an override has no effect.
  """
  check.overrides(overrides, _READS, '--mode=evaluate')
  run = load_run.load(workdir, overrides)
  compatible.check_scoring(run.config, run.objective)
  folder = workdir / 'held_out'
  figures = score(run, folder)
  known = baselines_lib.read(folder / 'baselines.json')
  print(f'{workdir}, step {run.step}')
  print(table(figures, known))
  print(json.dumps({'step': run.step, 'split': 'test', **figures, **known}))


def score(run: loaded.LoadedModel, folder: pathlib.Path) -> dict[str, Any]:
  """Returns the held-out figures of a run, by their names in metrics.jsonl.

  The scorer of the objective gives bits per byte of the stored windows, and of
  the whole test documents if it can score them. `by_source` holds the figures
  of each source of a mixture. Undefined figures are absent. Shows progress.

  Args:
    run: model to evaluate.
    folder: the `held_out` folder of a run or of prepared data.
  """
  name = run.objective.scorer
  test = store.Split(folder / 'test')
  sources = by_source.names(run.config)
  windows = passages.spread(
    list(
      passages.suffixes(
        folder / 'windows.jsonl', run.tokenizer, test if sources else None
      )
    ),
    run.config.evaluate.windows,
  )
  lengths = [(len(w.context), len(w.scored)) for w in windows]
  scorer = pseudo = None
  total = 0
  if name != scoring_methods.NONE:
    scorer = make_scorer(run, scoring_methods.METHODS[name])
    total += scorer.count(lengths)
    if scorer.method.documents:
      total += scorer.count((0, int(n)) for n in test.lengths)
  if scoring_methods.has_pseudo(run.objective):
    pseudo = make_scorer(run, scoring_methods.PSEUDO)
    total += pseudo.count(lengths)
  figures: dict[str, Any] = {}
  scores: dict[str, passages.Score] = {}
  with console.Progress('scoring query', start=0, total=total) as progress:
    if scorer and scorer.method.documents:
      found = _score_documents(run, scorer, test, progress.advance)
      scores['bits_per_byte'] = found
      figures |= _document_figures(found)
      figures['scorer'] = name
    figures['suffix_scorer'] = name
    # The test split may be shorter than a window.
    if windows and scorer:
      found = _score_windows(run, scorer, windows, progress.advance)
      scores['suffix_bits_per_byte'] = found
      figures |= {**_window_figures(found, scorer.method), **figures}
    if windows and pseudo:
      found = _score_windows(run, pseudo, windows, progress.advance)
      scores['pseudo_bits_per_byte'] = found
      figures['pseudo_bits_per_byte'] = found.bits_per_byte()
  if sources and scores:
    figures[by_source.NAME] = by_source.figures(
      sources, scores, sampled=bool(scorer and scorer.method.sampled)
    )
  return figures


def make_scorer(
  run: loaded.LoadedModel, method: scoring_methods.Method
) -> scorer_lib.Scorer:
  """Builds the scorer of a method for a run."""
  return scorer_lib.make(method, run.objective, run.model, run.mesh, run.config)


def _score_documents(
  run: loaded.LoadedModel,
  scorer: scorer_lib.Scorer,
  test: store.Split,
  advance: Callable[[int], None],
) -> passages.Score:
  return scorer(
    run.params,
    passages.documents(test),
    # In pairs, SEP is read and costs bits, too.
    run.tokenizer.allowed_ids(
      end=True, separator=test.input_lengths is not None
    ),
    advance=advance,
  )


def _document_figures(whole: passages.Score) -> dict[str, Any]:
  return {
    'bits_per_byte': whole.bits_per_byte(),
    'perplexity': whole.perplexity(),
    'special_mass': whole.special_mass / whole.tokens,
    'bytes': whole.size,
  }


def _score_windows(
  run: loaded.LoadedModel,
  scorer: scorer_lib.Scorer,
  windows: list[passages.Passage],
  advance: Callable[[int], None],
) -> passages.Score:
  return scorer(
    run.params,
    windows,
    run.tokenizer.allowed_ids(end=False),
    advance=advance,
  )


def _window_figures(
  found: passages.Score, method: scoring_methods.Method
) -> dict[str, Any]:
  figures = {
    'suffix_bits_per_byte': found.bits_per_byte(),
    'suffix_windows': found.passages,
    'suffix_bytes': found.size,
    'special_mass': found.special_mass / found.tokens,
  }
  if method.sampled:
    figures['suffix_standard_error'] = found.standard_error()
  return figures


_NAMES = {
  'bits_per_byte': 'this model',
  'unigram_bits_per_byte': 'unigram model of its pieces',
  'xz_given_training_bits_per_byte': 'xz -9 given the training text',
  'xz_bits_per_byte': 'xz -9',
}


def table(figures: Mapping[str, Any], baselines: Mapping[str, float]) -> str:
  """Formats the held-out figures and the baselines for a terminal.

  Each list holds only comparable figures: of the same text, with one meaning.
  """
  values = {**figures, **baselines}
  lines = []
  known = sorted(
    (values[key], name) for key, name in _NAMES.items() if key in values
  )
  if known:
    size = f'{figures["bytes"]:,} bytes of ' if 'bytes' in figures else ''
    lines.append(f'bits per byte on {size}test documents')
    lines += [f'  {value:6.3f}  {name}' for value, name in known]
  lines += _suffix_lines(figures)
  if 'perplexity' in figures:
    lines.append(f'perplexity {figures["perplexity"]:.1f} per token')
  lines += by_source.lines(figures)
  return '\n'.join(lines)


def _suffix_lines(figures: Mapping[str, Any]) -> list[str]:
  name, lines = figures['suffix_scorer'], []
  if name == scoring_methods.NONE:
    lines.append('no bits per byte: the objective has no scorer for text')
  if 'suffix_bits_per_byte' in figures:
    lines += [
      f'bits per byte on second halves of {figures["suffix_windows"]} windows '
      f'of 1,024 bytes, scorer {name}',
      f'  {figures["suffix_bits_per_byte"]:6.3f}  this model, '
      f'{scoring_methods.METHODS[name].meaning}',
    ]
  if 'suffix_standard_error' in figures:
    lines[-1] += f', standard error {figures["suffix_standard_error"]:.3f}'
  if 'pseudo_bits_per_byte' in figures:
    lines.append(
      'pseudo bits per byte on the same halves, '
      f'{scoring_methods.PSEUDO.meaning}: {figures["pseudo_bits_per_byte"]:.3f}'
    )
  return lines


def headline(figures: Mapping[str, Any]) -> str:
  """Summarizes the result of a finished run in a few words."""
  if 'bits_per_byte' in figures:
    return f'{figures["bits_per_byte"]:.3f} bits per byte on the test documents'
  if 'suffix_bits_per_byte' in figures:
    return (
      f'{figures["suffix_bits_per_byte"]:.3f} bits per byte on the second '
      f'halves of test windows (scorer {figures["suffix_scorer"]})'
    )
  return 'no bits per byte'

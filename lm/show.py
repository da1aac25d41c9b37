"""Shows the examples that objectives build from real text.

Prints them to the terminal and writes WORKDIR/show.html. No model is built: an
objective is a function of text, and its examples and rows come from the input
pipeline itself.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from lm import errors, field, objectives, types
from lm.config import check, resolve as config_lib
from lm.data import (
  mixture,
  packing,
  prepare,
  seeding,
  store,
  tokenizer as tokenizer_lib,
)
from lm.report import show_page, show_terminal, token_text, views

# Number of rows that are counted; one of them is shown.
_ROWS = 32
# Maximum number of positions shown per side of a row.
_MAX_POSITIONS = 1024


@dataclasses.dataclass(frozen=True)
class _Data:
  """Tokenized documents, and the function that packs them.

  what: description of the documents.
  split: the documents.
  tokenizer: their tokenizer.
  weights: weights of their sources.
  rows: (resolved config, objective) -> packed rows.
  """

  what: str
  split: store.Split
  tokenizer: tokenizer_lib.Tokenizer
  weights: Sequence[float]
  rows: Callable[[Any, types.Objective], packing.Rows]


@dataclasses.dataclass(frozen=True)
class _Variant:
  """An objective with an architecture, and the config resolved for both."""

  config: ml_collections.FrozenConfigDict
  objective: types.Objective

  @property
  def name(self) -> str:
    return self.config.objective.name

  @property
  def architecture(self) -> str:
    return self.config.model.architecture

  @property
  def title(self) -> str:
    return f'{self.name}, {self.architecture}'

  def view(
    self,
    row: Mapping[str, np.ndarray],
    tokenizer: tokenizer_lib.Tokenizer,
    note: str,
  ) -> views.View:
    """Builds the view of a row returned by `packing.pack`."""
    return views.View(
      objective=self.name,
      architecture=self.architecture,
      attention=self.objective.attention,
      scorer=self.objective.scorer,
      stacks=views.stacks(row, tokenizer, self.architecture),
      note=note,
    )


@dataclasses.dataclass(frozen=True)
class _VariantViews:
  """What is shown of a variant.

  texts: for each text, a view of each of its examples.
  row: view of a packed row.
  summary: counts over rows.
  """

  texts: list[list[views.View]]
  row: views.View
  summary: views.Summary


def of_config(
  config, workdir: pathlib.Path, *, given: Collection[str] | None = None
):
  """Shows training documents of a config; prepares the data if needed.

  Args:
    config: config of an experiment, with overrides, not yet resolved.
    workdir: folder for show.html.
    given: see `resolve.resolve`.

  Raises:
    UserError: there is a mistake in the config or the data.
  """
  resolved = config_lib.resolve(config, given=given)
  _check_folder(workdir)
  prepared = prepare.prepare(resolved.data, report=print)
  data = _Data(
    what=f'training documents of {prepared.directory}',
    split=prepared.train(),
    tokenizer=prepared.tokenizer(),
    weights=[weight for _, weight in resolved.data.sources] or [1.0],
    rows=lambda config, objective: packing.training_rows(
      config, data.split, objective
    ),
  )
  _show(config, data, workdir)


def of_run(workdir: pathlib.Path, overrides: Mapping[str, Any]):
  """Shows held-out documents of a run; reads nothing outside its folder.

  Args:
    workdir: run folder.
    overrides: 'show.field' -> value, overrides the folder's config.

  Raises:
    UserError: the folder holds no run, or there is a mistake in the overrides.
  """
  config = ml_collections.ConfigDict(config_lib.load(workdir))
  tokenizer = tokenizer_lib.load(workdir / 'tokenizer')
  config.data.tokenizer = str(workdir / 'tokenizer')
  for name, value in overrides.items():
    field.put(config, name, value)
  folder = workdir / 'held_out' / 'validation'
  data = _Data(
    what=f'validation documents of {workdir}',
    split=store.Split(folder),
    tokenizer=tokenizer,
    weights=[1.0],
    # The same packing as in `validation.Validation`.
    rows=lambda config, objective: packing.Rows(
      data.split,
      objective,
      seed=0,
      cross_document_attention=config.data.cross_document_attention,
    ),
  )
  _show(config, data, workdir)


def _check_folder(workdir: pathlib.Path):
  """Raises UserError, before minutes of preparation, if workdir is invalid."""
  place = workdir.absolute()
  found = next(p for p in (place, *place.parents) if p.exists())
  if not found.is_dir():
    raise errors.UserError(
      f'--workdir={workdir} cannot be created: {found} is a file; give another'
    )


def _show(config, data: _Data, workdir: pathlib.Path):
  # Fields of other objectives may be set; the config itself was checked.
  cfg = config_lib.resolve(config, given=()).show
  variants, failures = _variants(config, data.tokenizer)
  if not variants:
    raise failures[0][1]
  records = list(_records(data, variants, cfg))
  made = []
  for variant in variants:
    try:
      made.append(_views(variant, data, records, cfg.seed))
    except errors.UserError as error:
      failures.append((variant.title, error))
  if not made:
    raise failures[0][1]
  texts = [token_text.original(r.ids_L, data.tokenizer) for r in records]
  shown = views.Shown(
    source=(
      f'{data.what}; {data.tokenizer.kind} tokenizer, vocabulary of '
      f'{data.tokenizer.vocab_size:,}; rows of {config.data.sequence_length:,} '
      'positions'
    ),
    texts=[
      views.Text(
        original=text,
        tokens=len(records[i].ids_L),
        views=[view for one in made for view in one.texts[i]],
      )
      for i, text in enumerate(texts)
    ],
    rows=[one.row for one in made] if cfg.packed else [],
    summaries=[one.summary for one in made],
    notes=[f'{title}: not shown, {error}' for title, error in failures],
  )
  # Written first, since a closed pipe may end the output to the terminal.
  path = show_page.write(workdir, shown)
  show_terminal.write(shown)
  print(f'page: {path}')


def _variants(
  config, tokenizer
) -> tuple[list[_Variant], list[tuple[str, errors.UserError]]]:
  """Returns the variants to show, and (title, error) of those that fail."""
  variants, failures = [], []
  for name in check.shown_objectives(config):
    for architecture in _architectures(name, config):
      one = ml_collections.ConfigDict(config.to_dict())
      one.objective.name = name
      one.model.architecture = architecture
      if architecture != config.model.architecture:
        one.model.num_encoder_layers = None
      try:
        resolved = config_lib.resolve(one, given=())
        objective = objectives.make(resolved, tokenizer)
        variants.append(_Variant(resolved, objective))
      except errors.UserError as error:
        failures.append((f'{name}, {architecture}', error))
  return variants, failures


def _architectures(name: str, config) -> list[str]:
  """Architectures to show: the config's and, if requested, the default one.

  The config's architecture is skipped if the objective cannot train it.
  """
  allowed, given = (
    objectives.OBJECTIVES[name].architectures,
    config.model.architecture,
  )
  if not config.show.objectives and given:
    return [given]
  return [a for a in allowed if a in (allowed[0], given)]


def _records(
  data: _Data, variants: Sequence[_Variant], cfg
) -> Iterator[types.Record]:
  """Yields distinct random chunks of documents, or whole pairs."""
  split = data.split
  made = [variant.objective for variant in variants]
  if pairs := any(one.pairs for one in made):
    # Pairs are never cut. One this short fits even if one side has all tokens.
    sides = [one.capacity for one in made]
    longest = [min(s.tokens, s.encoder_tokens or s.tokens) for s in sides]
    length = min(cfg.tokens, *longest)
    (documents,) = np.nonzero(split.lengths <= length)
    starts = np.zeros(len(documents), np.int64)
    spans = mixture.Ranges(documents, starts, split.lengths[documents])
  else:
    length = min(cfg.tokens, *(one.raw_length for one in made))
    spans = mixture.ranges(
      split.lengths, split.sources, data.weights, seed=cfg.seed, epoch=0
    )
  ends = np.cumsum(-(-(spans.stop - spans.start) // length))
  total = int(ends[-1]) if len(ends) else 0
  if cfg.examples > total:
    raise errors.UserError(
      f'show.examples={cfg.examples} is more than the {data.what} have: '
      f'{total} {"pair" if pairs else "text"}(s) of at most {length} tokens; '
      f'lower show.examples, {"raise" if pairs else "lower"} show.tokens, or '
      'give more text'
    )
  rng = seeding.generator(cfg.seed, 0, seeding.ORDER)
  chosen = rng.choice(total, cfg.examples, replace=False)
  for place, number in enumerate(chosen.tolist()):
    ids_L, word_L, _ = split.read(*_chunk(spans, ends, length, number))
    yield types.Record(ids_L=ids_L, word_L=word_L - word_L[0], place=place)


def _chunk(
  ranges: mixture.Ranges, ends: np.ndarray, length: int, number: int
) -> tuple[int, int, int]:
  """Document, start and stop of chunk `number`; ranges[i] ends at ends[i]."""
  range_ = int(np.searchsorted(ends, number, side='right'))
  start, stop = int(ranges.start[range_]), int(ranges.stop[range_])
  nth = number - (int(ends[range_ - 1]) if range_ else 0)
  # The last chunk of a document is as long as the others.
  first = max(start, min(start + nth * length, stop - length))
  return int(ranges.document[range_]), first, min(first + length, stop)


def _views(
  variant: _Variant, data: _Data, records: Sequence[types.Record], seed: int
) -> _VariantViews:
  rows = data.rows(variant.config, variant.objective)
  counted = [rows[r] for r in range(rows.rows_in_first_epoch(_ROWS))]
  # Only a mixture has more than one component.
  mixed = any('component' in row and row['component'].any() for row in counted)
  return _VariantViews(
    texts=[
      list(_examples(variant, data.tokenizer, record, seed, mixed=mixed))
      for record in records
    ],
    row=_row(variant, data.tokenizer, counted),
    summary=_summary(variant, counted),
  )


def _examples(
  variant: _Variant,
  tokenizer: tokenizer_lib.Tokenizer,
  record: types.Record,
  seed: int,
  *,
  mixed: bool,
) -> Iterator[views.View]:
  """Yields views of the examples of a chunk; most objectives build one."""
  rng = seeding.generator(seed, 0, seeding.CHUNK, record.place)
  examples = variant.objective.corrupt(record, rng)
  for part, example in enumerate(examples, 1):
    encoder_tokens_M = example.encoder_tokens_M
    size = types.Size(
      tokens=len(example.tokens_L),
      encoder_tokens=0 if encoder_tokens_M is None else len(encoder_tokens_M),
    )
    notes = []
    if len(examples) > 1:
      notes.append(f'example {part} of {len(examples)}')
    if mixed:
      component = 0 if example.component_L is None else example.component_L[0]
      notes.append(f'component {component} of the mixture')
    yield variant.view(
      packing.pack([example], size, variant.objective.arrays),
      tokenizer,
      ', '.join(notes),
    )


def _summary(
  variant: _Variant, counted: Sequence[Mapping[str, np.ndarray]]
) -> views.Summary:
  totals = dict.fromkeys(('positions', 'read', 'predicted', 'weight'), 0)
  for row in counted:
    sides = [row[n] for n in ('segment', 'encoder_segment') if n in row]
    for name, value in views.count(sides, row['weights']).items():
      totals[name] += value
  return views.Summary(
    objective=variant.name,
    architecture=variant.architecture,
    attention=variant.objective.attention,
    scorer=variant.objective.scorer,
    rows=len(counted),
    **totals,
  )


def _row(
  variant: _Variant,
  tokenizer: tokenizer_lib.Tokenizer,
  counted: Sequence[Mapping[str, np.ndarray]],
) -> views.View:
  """View of the first row with several examples, or of the first row."""
  counts = [int(row['segment'].max()) for row in counted]
  chosen = next((r for r, count in enumerate(counts) if count > 1), 0)
  note = f'row {chosen} of the first epoch, counted from 0'
  capacity = variant.objective.capacity
  if max(capacity.tokens, capacity.encoder_tokens) > _MAX_POSITIONS:
    note += f', at most {_MAX_POSITIONS:,} positions of a side'
  row = {
    name: values[:_MAX_POSITIONS] for name, values in counted[chosen].items()
  }
  return variant.view(row, tokenizer, note)

"""Each source of a mixture: figures of its own, which add up to the run's."""

import json
import math

import jax
import numpy as np
import pytest
from helpers.scorers import make_objective
from helpers.texts import chinese, sentences

from lm import errors, evaluate, evaluate_text, load_run, models, types
from lm.config import resolve as config_lib
from lm.data import prepare, store, tokenizer as tokenizer_lib, windows
from lm.evaluation import by_source, passages as passages_lib, scoring_methods
from lm.runtime import sharding
from lm.training import loaded

NAMES = ('english', '中文', 'without test text')
ALL = 'all sources'
# Shorter than a window, of several, and of several rows; names are there twice.
TEXTS = (
  ('Few words.', sentences(0, 6), sentences(1, 3)),
  (chinese(0, 5), '一句话。', chinese(1, 4)),
)
# Figure -> names of the amounts of text, and what is counted.
AMOUNTS = {
  'bits_per_byte': ('', 'documents'),
  'suffix_bits_per_byte': ('suffix_', 'windows'),
  'pseudo_bits_per_byte': ('suffix_', 'windows'),
}


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch):
  monkeypatch.setattr(windows, 'WINDOW_BYTES', 96)
  monkeypatch.setattr(windows, '_REACH', 8)


@pytest.fixture
def tokenizer():
  return tokenizer_lib.train('bytes', 528, [])


@pytest.fixture
def write(tmp_path, tokenizer):
  """write(texts of each source) -> a `held_out` folder, as it is prepared."""

  def write(texts):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    writer, documents, sources = store.Writer(folder / 'test'), [], []
    for number, of_source in enumerate(texts):
      for name, text in enumerate(of_source):
        ids = np.append(tokenizer.encode(text), tokenizer_lib.EOS)
        starts = np.arange(len(ids))
        writer.add(store.encode([np.stack([ids, starts, starts])]))
        documents.append({'name': str(name), 'text': text})
        sources.append(number)
    writer.close(np.array(sources))
    lines = [json.dumps(window) + '\n' for window in windows.cut(documents)]
    (folder / 'windows.jsonl').write_text(''.join(lines))
    return folder

  return write


@pytest.fixture
def make_run(config, tokenizer):
  """A run of an untrained model with the objective of a scorer."""

  def make(name, sources):
    config.data.sources = tuple((source, 1.0) for source in sources)
    # One of the scorers that are tried reads `bound_samples`.
    resolved = config_lib.resolve(config, given=())
    objective = make_objective(
      'bound' if name == 'none' else name,
      types.Size(tokens=resolved.data.sequence_length),
      scorer=name,
    )
    mesh = sharding.make_mesh(resolved, jax.devices()[:1])
    model = models.make(resolved, objective, mesh)
    return loaded.LoadedModel(
      config=resolved,
      tokenizer=tokenizer,
      objective=objective,
      model=model,
      mesh=mesh,
      params=jax.jit(model.init)(jax.random.PRNGKey(0)),
      step=3,
    )

  config.model.num_layers = 1
  config.evaluate.bound_samples = 4
  config.evaluate.batch_size = 8
  return make


def amounts(texts):
  """What is to be found of a source, from its texts alone; a token is a byte.

  Windows are cut near their middles, so that their scored bytes are not known.
  """
  sizes = [len(text.encode()) for text in texts]
  return {
    'documents': len(texts),
    'bytes': sum(sizes),
    'tokens': sum(sizes) + len(sizes),
    'suffix_windows': sum(size // 96 for size in sizes),
  }


@pytest.mark.parametrize('name', [*scoring_methods.METHODS, 'none'])
def test_parts_add_up_and_are_those_of_each_source_alone(write, make_run, name):
  folder = write(TEXTS)
  figures = evaluate.score(make_run(name, NAMES), folder)
  parts = figures.pop(by_source.NAME)
  assert tuple(parts) == NAMES
  *full, empty = parts.values()
  assert set(empty.values()) == {0}
  found = [figure for figure in AMOUNTS if figure in figures]
  assert found
  for figure in found:
    prefix, unit = AMOUNTS[figure]
    size = sum(part[f'{prefix}bytes'] for part in full)
    assert size == figures.get(f'{prefix}bytes', size)
    bits = sum(part[figure] * part[f'{prefix}bytes'] for part in full)
    assert bits / size == pytest.approx(figures[figure], rel=1e-12)
    assert abs(full[0][figure] - full[1][figure]) > 1e-3
    for part, texts in zip(full, TEXTS, strict=True):
      assert {f'{prefix}{x}' for x in ('bytes', 'tokens', unit)} <= part.keys()
      for key, expected in amounts(texts).items():
        assert part.get(key, expected) == expected, key
  error = 'suffix_standard_error'
  assert (error in full[0]) == (name == 'bound')
  if name == 'bound':
    square = sum((part[error] * part['suffix_bytes']) ** 2 for part in full)
    assert math.sqrt(square) / size == pytest.approx(figures[error], rel=1e-12)
  for number, part in enumerate(full):
    alone = evaluate.score(make_run(name, ()), write([TEXTS[number]]))
    assert by_source.NAME not in alone
    for figure in part.keys() & alone.keys():
      # Samples of a bound depend on the number of the passage.
      if number == 0 or not (name == 'bound' and 'pseudo' not in figure):
        assert part[figure] == pytest.approx(alone[figure], rel=1e-5), figure
  # Beside them all is as it would be of one source, to the bit.
  plain = evaluate.score(make_run(name, ()), folder)
  assert list(plain.items()) == list(figures.items())


@pytest.mark.parametrize('sources', [(), NAMES[:1]])
def test_one_source_has_no_table(write, make_run, sources):
  run, folder = make_run('exact', sources), write(TEXTS[:1])
  figures = evaluate.score(run, folder)
  assert by_source.NAME not in figures
  assert by_source.lines(figures) == []
  assert 'source' not in evaluate.table(figures, {})


def test_pairs_and_short_texts_have_no_windows(write, make_run):
  folder = write([TEXTS[0][:1], TEXTS[1][1:2]])
  assert not (folder / 'windows.jsonl').read_text()
  figures = evaluate.score(make_run('exact', NAMES[:2]), folder)
  assert {key for part in figures['by_source'].values() for key in part} == {
    *('bits_per_byte', 'tokens', 'bytes', 'documents')
  }
  figures = evaluate.score(make_run('conditional', NAMES[:2]), folder)
  assert figures == {'suffix_scorer': 'conditional'}


def test_places_of_the_docstring(monkeypatch):
  monkeypatch.setattr(windows, 'WINDOW_BYTES', 1024)
  sizes = [2100, 900, 1024]
  assert windows.places(sizes, 2) == [(0, 0), (0, 1024)]
  assert windows.places(sizes, 3) == [(0, 0), (0, 1024), (2, 0)]


def test_windows_know_their_documents_without_their_names():
  """Many of the same name, in characters of three bytes; some have none."""
  texts = [chinese(seed, 1 + seed % 9) for seed in range(150)]
  cut = windows.cut({'name': 'a', 'text': text} for text in texts)
  sizes = [len(text.encode()) for text in texts]
  assert len(cut) == windows.WINDOW_COUNT < sum(size // 96 for size in sizes)
  found = windows.documents_of(cut, sizes)
  assert len(set(found)) > 40
  for window, document in zip(cut, found, strict=True):
    whole = (window['context'] + window['scored']).encode()
    start = window['start']
    assert texts[document].encode()[start : start + len(whole)] == whole
  for fewer in (cut[1:], cut[:-1], []):
    assert windows.documents_of(fewer, sizes) is None
  assert windows.documents_of(cut, sizes[::-1]) is None


def test_windows_of_other_documents_are_refused(write, make_run):
  folder = write(TEXTS)
  lines = (folder / 'windows.jsonl').read_text().splitlines(keepends=True)
  (folder / 'windows.jsonl').write_text(''.join(lines[1:]))
  with pytest.raises(errors.UserError, match='of other documents') as caught:
    evaluate.score(make_run('exact', NAMES), folder)
  assert '\n' not in str(caught.value)
  # With one source, none of them is asked for its document.
  evaluate.score(make_run('exact', ()), folder)


FIGURES = {
  'suffix_scorer': 'bound',
  'suffix_bits_per_byte': 2.25,
  'suffix_windows': 16,
  'suffix_standard_error': 0.0124,
  'by_source': {
    'a\x1b': {
      'suffix_bits_per_byte': 2.0,
      'suffix_standard_error': 0.01,
      'suffix_tokens': 3000,
      'suffix_bytes': 6000,
      'suffix_windows': 12,
    },
    '中文': {
      'suffix_bits_per_byte': 3.0,
      'suffix_standard_error': 0.03,
      'suffix_tokens': 1000,
      'suffix_bytes': 2000,
      'suffix_windows': 4,
    },
    'c': {'suffix_tokens': 0, 'suffix_bytes': 0, 'suffix_windows': 0},
  },
}


def test_a_table_in_the_terminal():
  title, *rows = by_source.lines(FIGURES)
  assert title == (
    'bits per byte by source: second halves of test windows, scorer bound'
  )
  expected = (
    (
      '   2.000',
      '0.010',
      '       3,000',
      '        6,000',
      '      12',
      'a\ufffd',
    ),
    ('   3.000', '0.030', '       1,000', '        2,000', '       4', '中文'),
    ('       -', '    -', '           0', '            0', '       0', 'c'),
    ('   2.250', '0.012', '       4,000', '        8,000', '      16', ALL),
  )
  assert rows == [
    f'{value}, standard error {error}{tokens} tokens{size} bytes{count} windows'
    f'  {name}'
    for value, error, tokens, size, count, name in expected
  ]
  assert evaluate.table(FIGURES, {}).split('\n')[-5:] == [title, *rows]


def test_figures_of_prepared_text(
  make_run, config, corpus, tmp_path, monkeypatch, capsys
):
  """English and Chinese files, prepared, scored, and printed."""
  folder = tmp_path / '新闻'
  folder.mkdir()
  for number in range(12):
    text = chinese(number, 10)
    (folder / f'{number:02d}.txt').write_text(text, encoding='utf-8')
  config.data.path = None
  config.data.directory = str(tmp_path / 'prepared')
  run = make_run('exact', [str(corpus), str(folder)])
  workdir = prepare.prepare(run.config.data).directory
  # As of a run whose folder has the same held-out text.
  monkeypatch.setattr(load_run, 'load', lambda *arguments: run)
  monkeypatch.setattr(config_lib, 'load', lambda workdir: {})
  evaluate.run(workdir, {})
  *shown, last = capsys.readouterr().out.splitlines()
  figures = json.loads(last)
  assert shown[-8:] == by_source.lines(figures)

  number = np.load(workdir / 'held_out' / 'test' / 'sources.npy')
  texts = (workdir / 'held_out' / 'test.jsonl').read_text('utf-8').splitlines()
  texts = [json.loads(line)['text'] for line in texts]
  assert [text.isascii() for text in texts] == (number == 0).tolist()
  # The texts of a source, as any text that the run is given.
  for ascii_, part in zip(
    (True, False), figures['by_source'].values(), strict=True
  ):
    lines = [json.dumps({'text': x}) for x in texts if x.isascii() == ascii_]
    path = tmp_path / 'texts.jsonl'
    path.write_text('\n'.join(lines))
    evaluate_text.run(workdir, {'data.path': str(path)})
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    for key in ('bits_per_byte', 'tokens', 'bytes', 'documents'):
      assert alone[key] == pytest.approx(part[key], rel=1e-5)


def test_a_score_keeps_to_the_source_of_its_passages(make_run, tokenizer):
  """Two passages of one text: their sources alone tell them apart."""
  run = make_run('exact', NAMES)
  scorer = evaluate.make_scorer(run, scoring_methods.METHODS['exact'])
  ids = tokenizer.encode('The same text')
  passages = [
    passages_lib.Passage(ids[:n], ids[n:], len(ids) - n, source=source)
    for n, source in ((0, 7), (4, 2), (0, 7))
  ]
  allowed = tokenizer.allowed_ids(end=False)
  found = scorer(run.params, passages, allowed)
  assert {k: (x.passages, x.size) for k, x in found.by_source.items()} == {
    7: (2, 26),
    2: (1, 9),
  }
  assert found.bits == pytest.approx(
    sum(x.bits for x in found.by_source.values())
  )

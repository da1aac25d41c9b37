"""The figures of a run: which are there, of what text, and how told."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.scorers import make_objective

from lm import evaluate, models, types
from lm.config import resolve as config_lib
from lm.data import store, tokenizer as tokenizer_lib
from lm.evaluation import scoring_methods
from lm.runtime import sharding
from lm.training import loaded

WINDOWS = [
  {'context': 'Given words', 'scored': ' are followed by some.'},
  {'context': '中文', 'scored': '，三个字'},
  {'context': 'é', 'scored': ' x'},
]
BYTES = sum(len(window['scored'].encode()) for window in WINDOWS)
DOCUMENTS = ('A whole document, scored to its end.', '第二')


@pytest.fixture
def folder(tmp_path):
  writer = store.Writer(tmp_path / 'test')
  tokenizer = tokenizer_lib.train('bytes', 528, [])
  for text in DOCUMENTS:
    ids = tokenizer.encode(text)
    starts = np.arange(len(ids) + 1)
    document_3xL = np.stack([np.append(ids, tokenizer_lib.EOS), starts, starts])
    writer.add(store.encode([document_3xL]))
  writer.close(np.zeros(2))
  lines = ''.join(json.dumps(window) + '\n' for window in WINDOWS)
  (tmp_path / 'windows.jsonl').write_text(lines)
  return tmp_path


@pytest.fixture
def make_run(config):
  """A run of an untrained model with the objective of a scorer."""

  def make(name, kind='bytes'):
    # Its own objective has another scorer.
    resolved = config_lib.resolve(config, given=())
    scorer = 'bound' if name == 'none' else name
    capacity = types.Size(tokens=resolved.data.sequence_length)
    objective = make_objective(scorer, capacity, scorer=name)
    mesh = sharding.make_mesh(resolved, jax.devices()[:1])
    model = models.make(resolved, objective, mesh)
    texts = [window['context'] for window in WINDOWS] * 9
    return loaded.LoadedModel(
      config=resolved,
      tokenizer=tokenizer_lib.train(kind, 528, texts),
      objective=objective,
      model=model,
      mesh=mesh,
      params=jax.jit(model.init)(jax.random.PRNGKey(0)),
      step=3,
    )

  config.evaluate.bound_samples = 4
  return make


COMMON = {
  *('suffix_bits_per_byte', 'suffix_scorer', 'suffix_windows', 'suffix_bytes'),
  'special_mass',
}
# Scorer -> figures besides the common ones.
OWN = {
  'exact': {'bits_per_byte', 'scorer', 'perplexity', 'bytes'},
  'conditional': set(),
  'blocks': set(),
  'left_to_right': {'pseudo_bits_per_byte'},
  'bound': {'pseudo_bits_per_byte', 'suffix_standard_error'},
}


@pytest.mark.parametrize('name', OWN)
def test_each_scorer_has_its_figures_and_no_other(folder, make_run, name):
  figures = evaluate.score(make_run(name), folder)
  assert figures.keys() == COMMON | OWN[name]
  assert figures['suffix_scorer'] == name
  assert (figures['suffix_windows'], figures['suffix_bytes']) == (3, BYTES)
  numbers = [x for x in figures.values() if not isinstance(x, str)]
  assert np.isfinite(numbers).all()
  # There are 528 ids, one a byte: an untrained model is near log2 of 256.
  assert 7 < figures['suffix_bits_per_byte'] < 11
  if name == 'exact':
    assert figures['bytes'] == sum(len(text.encode()) for text in DOCUMENTS)
  text = evaluate.table(figures, {'xz_bits_per_byte': 2.0})
  assert f'scorer {name}' in text
  assert scoring_methods.METHODS[name].meaning in text
  for figure in ('bits_per_byte', 'suffix_bits_per_byte'):
    if figure in figures:
      assert f'{figures[figure]:6.3f}  this model' in text
  assert ('perplexity' in text) == (name == 'exact')
  assert ('standard error' in text) == (name == 'bound')
  if 'pseudo_bits_per_byte' in figures:
    [line] = [x for x in text.split('\n') if 'pseudo' in x]
    assert 'not a likelihood' in line
    assert line.endswith(f'{figures["pseudo_bits_per_byte"]:.3f}')
  shown = figures.get('bits_per_byte', figures['suffix_bits_per_byte'])
  assert f'{shown:.3f} bits per byte' in evaluate.headline(figures)


def test_without_a_scorer_there_is_no_figure_of_a_likelihood(folder, make_run):
  figures = evaluate.score(make_run('none'), folder)
  assert figures.keys() == {'suffix_scorer', 'pseudo_bits_per_byte'}
  text = evaluate.table(figures, {})
  assert text.startswith('no bits per byte')
  assert evaluate.headline(figures) == 'no bits per byte'


def test_bytes_do_not_depend_on_the_tokenizer(folder, make_run):
  run = make_run('conditional')
  words = dataclasses.replace(
    run, tokenizer=make_run('conditional', 'word').tokenizer
  )
  sizes = [len(r.tokenizer.encode(WINDOWS[0]['context'])) for r in (run, words)]
  assert sizes[0] > sizes[1]
  for r in (run, words):
    assert evaluate.score(r, folder)['suffix_bytes'] == BYTES


def test_fewer_windows_are_some_of_them(folder, make_run, config):
  config.evaluate.windows = 2
  figures = evaluate.score(make_run('conditional'), folder)
  sizes = [len(window['scored'].encode()) for window in WINDOWS]
  assert (figures['suffix_windows'], figures['suffix_bytes']) == (
    *(2, sizes[0] + sizes[1]),
  )
  config.evaluate.windows = 9
  assert evaluate.score(make_run('blocks'), folder)['suffix_windows'] == 3


def test_a_test_split_without_windows_has_no_figure_of_them(folder, make_run):
  (folder / 'windows.jsonl').write_text('')
  figures = evaluate.score(make_run('exact'), folder)
  assert figures.keys() == OWN['exact'] | {'suffix_scorer', 'special_mass'}
  assert 'second halves' not in evaluate.table(figures, {})
  figures = evaluate.score(make_run('bound'), folder)
  assert figures == {'suffix_scorer': 'bound'}
  assert evaluate.headline(figures) == 'no bits per byte'

"""Texts in two languages, rows of them, and their losses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lm import models, types
from lm.data import packing, store, tokenizer
from lm.data.text import words
from lm.objectives import cross_entropy

TEXTS = (
  'It was the best of times, it was the worst of times; internationalisation '
  'began.\n\nThere were, as yet, no arrangements. ',
  '我们今天在北京的大学学习，天气非常好。\n他们已经开始工作了：第2次。',
)


def record(ids, word=None, place=0):
  ids = np.array(ids, np.int32)
  word = np.arange(len(ids)) if word is None else word
  return types.Record(ids, np.array(word, np.int32), place)


def documents(repeats=8):
  """Both texts in bytes, as (ids, words) of their tokens; each ends in EOS."""
  for text in TEXTS:
    data = (text * repeats).encode()
    ids = np.frombuffer(data, np.uint8).astype(np.int32) + tokenizer.FIRST_BYTE
    word = words.word_index(text * repeats, np.arange(len(data)))
    yield np.append(ids, tokenizer.EOS), np.append(word, word[-1] + 1)


def chunks(count, seed=0, most=100):
  """Records of 1 to `most` tokens of both languages, some with EOS."""
  rng = np.random.default_rng(seed)
  found = itertools.cycle(list(documents()))
  for ids, word in itertools.islice(found, count):
    n = int(rng.integers(1, most + 1))
    start = int(rng.integers(len(ids) - n + 1))
    if rng.random() < 0.3:
      start = len(ids) - n
    part = slice(start, start + n)
    yield record(ids[part], word[part] - word[start], int(rng.integers(2**20)))


def split(folder):
  """Documents of both languages, from a few tokens to many."""
  writer = store.Writer(folder / 'train')
  for chunk in chunks(300, seed=1, most=90):
    starts = np.arange(len(chunk.ids_L))
    writer.add(store.encode([np.stack([chunk.ids_L, chunk.word_L, starts])]))
  writer.close(np.zeros(300, np.int64))
  return store.Split(folder / 'train')


def check_rows(objective, folder):
  """Rows hold every token of an epoch, and no more than there is room for."""
  texts = split(folder)
  rows = packing.Rows(texts, objective, seed=0)
  read, predicted = 0, 0
  for number in range(rows.rows_in_first_epoch(10**6)):
    row = rows[number]
    assert len(row['tokens']) == objective.capacity.tokens
    (places,) = np.nonzero(row['weights'])
    assert np.all(row['targets'][places] >= tokenizer.NUM_SPECIAL)
    if objective.capacity.predictions:
      assert row['predict'][: len(places)].tolist() == places.tolist()
    starts = row['position'] == 0
    assert np.all(row['tokens'][starts & (row['segment'] > 0)] == tokenizer.BOS)
    read += np.sum((row['segment'] > 0) & ~starts)
    predicted += len(places)
  assert read == np.sum(texts.lengths)
  return predicted, read


def initialized(config, objective):
  """A model and its parameters at the start."""
  model = models.make(config, objective)
  return model, jax.jit(model.init)(jax.random.PRNGKey(0))


def term(objective, model, params, batch):
  """The one term of an objective's loss, (name, sum, weight)."""

  @jax.jit
  def run(params, batch):
    return objective.loss(model, params, batch, None, False)

  ((name, (total, weight)),) = run(params, batch).items()
  return name, float(total), float(weight)


def token_losses(model, params, batch):
  """The loss of each position, in nats, [B, L]."""

  def run(params, batch):
    logits = model.logits(params, model.hidden(params, batch))
    return cross_entropy.cross_entropy(logits, batch.targets_BxL)

  return jax.jit(run)(params, jax.tree.map(jnp.asarray, batch))

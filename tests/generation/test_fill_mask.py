"""Masks: candidates at their own places, unmasking step by step."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generators import make_run, with_settings
from helpers.texts import sentences

from lm import errors, generate, types
from lm.data import tokenizer as tokenizer_lib
from lm.generation import fill_mask, prompts, unmasking
from lm.models import readout

MASKED = [
  '[MASK]bcdef',
  'abc[MASK]ef',
  'abcde[MASK]',
  'a[MASK]c[MASK][MASK]f',
  '[MASK]我[MASK][MASK]',
]


@pytest.fixture
def run(config):
  return make_run(
    config, attention='bidirectional', generates=('masks', 'unmasking')
  )


def full_pass(run, ids):
  """Log-probabilities [L, V] of text at each place of the ids, unpadded."""
  tokens_1xL = np.array([[tokenizer_lib.BOS, *ids]], np.int32)
  zeros = np.zeros_like(tokens_1xL)
  row = types.Batch(
    tokens_BxL=tokens_1xL,
    targets_BxL=zeros,
    weights_BxL=zeros.astype(np.float32),
    order_BxL=zeros,
    segment_BxL=zeros + 1,
    position_BxL=np.arange(tokens_1xL.shape[1], dtype=np.int32)[None],
  )
  logits = jax.jit(
    lambda params, row: run.model.logits(params, run.model.hidden(params, row))
  )(run.params, row)[0]
  allowed = run.tokenizer.allowed_ids(end=False)
  logits = jnp.where(allowed, logits, -jnp.inf)
  return np.asarray(jax.nn.log_softmax(logits))[1:]


def test_candidates_are_the_softmax_at_the_mask_wherever_it_stands(run):
  masks = fill_mask.MaskFiller(with_settings(run, candidates=5))
  together = masks(MASKED)
  # But for the last digits of probabilities.
  alone = [masks([prompt])[0] for prompt in MASKED]
  assert [one.ids for one in together] == [one.ids for one in alone]
  for prompt, filled in zip(MASKED, together, strict=True):
    ids = prompts.encode(prompt, run.tokenizer)
    (places,) = np.nonzero(ids == tokenizer_lib.MASK)
    assert len(filled.candidates) == len(places) == prompt.count('[MASK]')
    log_p = full_pass(run, ids)
    for place, found in zip(places, filled.candidates, strict=True):
      best = np.argsort(-log_p[place])[:5]
      assert [piece for piece, _ in found] == [
        run.tokenizer.pieces[i] for i in best
      ]
      np.testing.assert_allclose(
        [p for _, p in found], np.exp(log_p[place][best]), rtol=1e-4
      )
    data = prompt.encode()
    for (best, _), *_ in filled.candidates:
      data = data.replace(b'[MASK]', best, 1)
    assert filled.text == data.decode(errors='ignore')
    assert len(data) - len(filled.text.encode()) == filled.dropped_bytes


def test_no_candidate_is_shown_where_none_is_asked_for(run):
  [none] = fill_mask.MaskFiller(with_settings(run, candidates=0))(['a[MASK]'])
  [some] = fill_mask.MaskFiller(with_settings(run, candidates=2))(['a[MASK]'])
  assert none.text == some.text == none.shown()
  assert len(some.candidates[0]) == 2
  [mask] = some.candidates
  assert some.shown().startswith(f'{some.text}\n[MASK] 1  ')
  assert some.shown().endswith(f' {mask[1][1]:.3f}')
  # Not more than there are.
  [every] = fill_mask.MaskFiller(with_settings(run, candidates=999))(
    ['a[MASK]']
  )
  assert sum(p for _, p in every.candidates[0]) == pytest.approx(1, abs=1e-5)


def test_pieces_that_are_no_character_are_spelt_by_their_bytes():
  found = ((b' a', 0.5), (b'\xe4\xb8', 0.25), ('中'.encode(), 0.125))
  filled = fill_mask.Filled('x a', (1,), 0, (found,))
  expected = 'x a\n[MASK] 1  " a" 0.500  <0xE4><0xB8> 0.250  "中" 0.125'
  assert filled.shown() == expected
  assert filled.note() == '1 tokens in place of masks'


def test_one_blank_before_a_mask_is_the_answers():
  """Where the blank is of the word's piece; nothing is lost where it is not."""
  spaced = tokenizer_lib.train('unigram', 700, [sentences(1, 300)])
  assert b' the' in spaced.pieces
  mask = tokenizer_lib.MASK
  for text, parts in (
    ('of [MASK].', ['of', mask, '.']),
    ('of[MASK].', ['of', mask, '.']),
    ('of  [MASK] [MASK] the', ['of ', mask, mask, ' the']),
    ('[MASK]', [mask]),
    ('我们[MASK]。', ['我们', mask, '。']),
    ('a <extra_id_0> b', ['a', tokenizer_lib.SENTINELS[0], ' b']),
  ):
    expected = []
    for part in parts:
      expected += [part] if part in (mask, 7) else spaced.encode(part).tolist()
    assert prompts.encode(text, spaced).tolist() == expected, text
  apart = tokenizer_lib.train('bytes', 526, [])
  found = prompts.encode('of [MASK].', apart)
  assert apart.decode(found) == 'of .'
  assert prompts.splice(found, [b'X'], apart) == ('of X.', 0)
  # What blanks are for: a piece with one fills the gap.
  found = prompts.encode('of [MASK].', spaced)
  assert prompts.splice(found, [b' the'], spaced) == ('of the.', 0)


@pytest.mark.parametrize(
  ('prompt', 'words'),
  [
    ('no mask', r'no \[MASK\]; put one'),
    ('a' * 31 + '[MASK]', '33 tokens .* context of 32'),
  ],
)
def test_a_prompt_that_masks_cannot_fill_is_one_line(run, prompt, words):
  with pytest.raises(errors.UserError, match=words):
    fill_mask.MaskFiller(run)([prompt])


def test_counts_of_the_docstring():
  assert unmasking.counts(7, 3).tolist() == [3, 2, 2]
  assert unmasking.counts(3, 5).tolist() == [1, 1, 1]
  assert unmasking.counts(4, None).tolist() == [1] * 4


@pytest.mark.parametrize(
  ('order', 'steps'), [('confidence', 3), ('random', None)]
)
def test_each_step_fills_its_number_and_changes_nothing_else(
  run, order, steps, monkeypatch
):
  run = with_settings(run, temperature=1.0, order=order, steps=steps)
  unmasker = fill_mask.Unmasker(run)
  seen = []
  step = unmasker._step

  def watched(params, batch, masked, count, *args, **kwargs):
    tokens, left = step(params, batch, masked, count, *args, **kwargs)
    seen.append((np.asarray(batch.tokens_BxL), count, np.asarray(tokens)))
    return tokens, left

  monkeypatch.setattr(unmasker, '_step', watched)
  group = ['abc', 'a[MASK]b[MASK][MASK][MASK]c[MASK]', '']
  completions = unmasker(group)
  assert len(seen) == (steps or 8)
  for before, count, after in seen:
    filled = before == tokenizer_lib.MASK
    filled &= after != tokenizer_lib.MASK
    assert filled.sum(axis=1).tolist() == count.tolist()
    assert (before[~filled] == after[~filled]).all()
  totals = sum(count for _, count, _ in seen)
  assert totals.tolist()[:3] == [8, 5, 8]
  assert [one.tokens for one in completions] == [8, 5, 8]
  for one in completions:
    assert min(one.ids) >= tokenizer_lib.NUM_SPECIAL
  if steps is None:
    assert max(count.max() for _, count, _ in seen) == 1
  else:
    assert seen[0][1].tolist()[:3] == [3, 2, 3]


def test_greedy_unmasking_is_the_surest_of_the_full_pass_at_each_step(run):
  unmasker = fill_mask.Unmasker(
    with_settings(run, temperature=0.0, max_tokens=3)
  )
  for prompt in ('abc', 'x[MASK]yz[MASK][MASK]'):
    ids = prompts.encode(prompt, run.tokenizer)
    if '[MASK]' not in prompt:
      ids = np.append(ids, [tokenizer_lib.MASK] * 3)
    (places,) = np.nonzero(ids == tokenizer_lib.MASK)
    while (ids == tokenizer_lib.MASK).any():
      log_p = full_pass(run, ids)
      sure = np.where(ids == tokenizer_lib.MASK, log_p.max(axis=-1), -np.inf)
      ids[np.argmax(sure)] = np.argmax(log_p[np.argmax(sure)])
    [found] = unmasker([prompt])
    assert list(found.ids) == ids[places].tolist()


def test_a_text_is_the_same_alone_in_a_batch_and_by_the_seed(run):
  run = with_settings(run, temperature=1.0, steps=4, order='random')
  run = with_settings(run, candidates=0)
  group = ['abc', 'a[MASK]b[MASK]', '中文', '']
  unmasker = fill_mask.Unmasker(run)
  together = unmasker(group)
  assert together[:2] == [unmasker([prompt])[0] for prompt in group[:2]]
  other = fill_mask.Unmasker(with_settings(run, seed=1))(group)
  assert [one.ids for one in other] != [one.ids for one in together]
  several = fill_mask.Unmasker(with_settings(run, samples_per_prompt=2))(
    ['abc']
  )
  assert several[0] == together[0]
  assert several[0] != several[1]


def test_unmasking_compiles_once_for_prompts_of_any_length(run):
  unmasker = fill_mask.Unmasker(with_settings(run, steps=3))
  for prompt in ('', 'abc', 'a' * 25):
    unmasker([prompt])
  assert unmasker._step._cache_size() == 1


def test_one_greedy_step_fills_each_mask_as_if_alone(run):
  run = with_settings(run, temperature=0.0, steps=1, candidates=1)
  assert run.config.generate.order is None
  found = fill_mask.Unmasker(run)(MASKED)
  assert [x.ids for x in found] == [
    x.ids for x in fill_mask.MaskFiller(run)(MASKED)
  ]


def test_text_goes_on_to_max_tokens_or_to_the_end_of_the_context(run):
  unmasker = fill_mask.Unmasker(with_settings(run, steps=2))
  assert unmasker.beginning('abc') == 'abc'
  assert unmasker.beginning('[MASK]') == ''
  found = unmasker(['a', 'a' * 28, 'a' * 30])
  assert [(one.tokens, one.stop) for one in found] == [
    *((8, 'max_tokens'), (3, 'context'), (1, 'context'))
  ]
  with pytest.raises(errors.UserError, match=r'33 tokens \(BOS and a mask'):
    unmasker(['a' * 31])


def test_text_that_goes_on_from_a_source_is_its_target(config):
  """Behind SEP, as pairs are read as text."""
  config.data.target_column = 'target'
  run = make_run(config, attention='bidirectional', generates=('unmasking',))
  unmasker, tokenizer = fill_mask.Unmasker(run), run.tokenizer
  assert unmasker.encode('ab').ids_L.tolist() == [
    *(
      *tokenizer.encode('ab').tolist(),
      tokenizer_lib.SEP,
      *[tokenizer_lib.MASK] * 8,
    )
  ]
  assert unmasker.beginning('ab') == ''
  assert unmasker.encode('a' * 29).masks == 1
  assert tokenizer_lib.SEP not in unmasker.encode('a[MASK]').ids_L


def test_reading_out_few_places_at_a_time_changes_nothing(run, monkeypatch):
  run = with_settings(run, candidates=3, temperature=0.0)
  group = MASKED[2:]
  # All 4 places that are read out; then 3, which do not divide them.
  found = []
  for places in (4, 3):
    most = places * run.config.generate.batch_size * run.config.data.vocab_size
    monkeypatch.setattr(readout, '_LOGITS', most)
    found.append(
      (fill_mask.MaskFiller(run)(group), fill_mask.Unmasker(run)(group))
    )
  flat = map(itertools.chain.from_iterable, found)
  for whole, chunked in zip(*flat, strict=True):
    assert whole.ids == chunked.ids
    for some, same in zip(whole.candidates, chunked.candidates, strict=True):
      assert [piece for piece, _ in some] == [piece for piece, _ in same]
      np.testing.assert_allclose(
        [p for _, p in some], [p for _, p in same], rtol=1e-5
      )


def test_the_penalty_counts_what_was_filled(run):
  fined = with_settings(run, temperature=0.0, repetition_penalty=1e9)
  free = with_settings(run, temperature=0.0)
  for settings, repeats in ((fined, False), (free, True)):
    found = fill_mask.Unmasker(settings)(['ab', 'abc', 'x'])
    assert repeats == any(len(set(one.ids)) < 8 for one in found)


def test_masks_and_text_are_printed_in_the_order_of_the_prompts(
  run, monkeypatch, capsys
):
  objective = dataclasses.replace(run.objective, generates=('unmasking',))
  run = dataclasses.replace(
    with_settings(run, candidates=2), objective=objective
  )
  monkeypatch.setattr(generate.load_run, 'load', lambda *_: run)
  group = ['abc', 'a[MASK]', '中[MASK]国']
  generate.run(None, {}, group, one_by_one=False)
  out, err = capsys.readouterr()
  plain, *masked = fill_mask.Unmasker(run)(group)
  expected = [f'abc{plain.text}\n', *(f'{one.shown()}\n' for one in masked)]
  assert out == ''.join(expected)
  assert '\n[MASK] 1  ' in masked[1].shown()
  [once] = fill_mask.MaskFiller(run)(group[2:])
  for one, other in zip(
    masked[1].candidates[0], once.candidates[0], strict=True
  ):
    assert one == (other[0], pytest.approx(other[1], rel=1e-5))
  assert err.splitlines() == [
    f'[{number}: {one.note()}]'
    for number, one in enumerate([plain, *masked], 1)
  ]

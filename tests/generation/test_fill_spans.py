"""Spans: parsed, put back into the text, and missing ones reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generators import make_run, with_settings
from helpers.texts import sentences

from lm import errors, generate, objectives, types
from lm.data import tokenizer as tokenizer_lib
from lm.generation import fill_spans, left_to_right, prompts
from lm.objectives import layout

S0, S1, S2 = tokenizer_lib.SENTINELS[:3]
EOS = tokenizer_lib.EOS
PROMPT = 'Thank <extra_id_0> me <extra_id_1> week.'


@pytest.fixture
def run(config):
  return make_run(
    config, attention='prefix', generates=('spans',), filling=layout.decoder
  )


def scripted(run, ids):
  """The run with a model that says `ids`, whatever it reads."""
  V = run.config.data.vocab_size
  script_TxV = 1 + 9 * jax.nn.one_hot(jnp.array([*ids, EOS, EOS]), V)
  # No beam ends before.
  script_TxV = script_TxV.at[: len(ids), EOS].set(-9)

  def start(params, batch, length):
    B, L = batch.tokens_BxL.shape
    count_B = jnp.sum(batch.segment_BxL != 0, axis=1)
    cache = {'length': count_B, 'said': jnp.zeros(B, jnp.int32)}
    return jnp.zeros((B, L, 1), jnp.int32), cache

  def extend(params, cache, tokens_Bx1):
    said = cache['said'] + 1
    return said[:, None, None], {'length': cache['length'] + 1, 'said': said}

  model = types.Model(
    init=None,
    hidden=None,
    logits=lambda params, hidden: script_TxV[hidden[..., 0]],
    token_log_probs=None,
    start=start,
    extend=extend,
  )
  return dataclasses.replace(run, model=model)


def byte_ids(text):
  return [270 + byte for byte in text.encode()]


def test_parse_of_the_docstring():
  assert fill_spans.parse([310, S0, 311, 312, S1, 313]) == (
    [310],
    [(S0, (311, 312)), (S1, (313,))],
  )
  assert fill_spans.parse([]) == ([], [])


@pytest.mark.parametrize('beams', [1, 2])
def test_spans_are_put_where_their_sentinels_stand(run, beams):
  said = [S0, *byte_ids('you'), S1, *byte_ids('这'), S2]
  run = with_settings(run, temperature=0.0, max_tokens=20, beams=beams)
  spans = fill_spans.SpanFiller(scripted(run, said))
  [found] = spans([PROMPT])
  assert found.text == 'Thank you me 这 week.'
  assert found.pairs == (('<extra_id_0>', 'you'), ('<extra_id_1>', '这'))
  assert found.shown() == f'{found.text}\n<extra_id_0>you\n<extra_id_1>这'
  assert found.note() == '9 tokens, end of the spans'
  assert found.stop == 'end'


@pytest.mark.parametrize(
  ('said', 'text', 'note'),
  [
    # It ends early.
    ([S0, *byte_ids('I')], 'Thank I me <extra_id_1> week.', '2 tokens, end of'),
    (
      [],
      PROMPT.replace(' me', ' me'),
      'nothing for <extra_id_0>, <extra_id_1>',
    ),
    # The first is missing, or comes last, or twice; one has no text.
    ([S1, *byte_ids('my')], 'Thank <extra_id_0> me my week.', '<extra_id_0>'),
    (
      [S1, *byte_ids('my'), S0, *byte_ids('I'), S1, *byte_ids('no')],
      'Thank I me my week.',
      '8 tokens, end of the spans',
    ),
    ([S0, S1, *byte_ids('a')], 'Thank  me a week.', '3 tokens, end of the'),
    # Before any sentinel, and a character cut in two.
    (
      [*byte_ids('ab'), S0, *byte_ids('中')[:2], S1],
      'Thank  me  week.',
      '2 before the first sentinel dropped; 2 byte(s)',
    ),
  ],
)
def test_what_is_missing_is_reported_and_its_sentinel_stays(
  run, said, text, note
):
  run = with_settings(run, temperature=0.0, max_tokens=20)
  [found] = fill_spans.SpanFiller(scripted(run, said))([PROMPT])
  assert found.text == text
  assert note in found.note()


def test_a_prompt_is_read_in_the_layout_with_a_mixtures_mode_in_front(run):
  tokenizer = run.tokenizer
  inputs = prompts.encode('a<extra_id_0>b', tokenizer).tolist()
  assert inputs == [270 + 97, S0, 270 + 98]
  example = fill_spans.SpanFiller(run).encode('a<extra_id_0>b').example
  assert example.tokens_L.tolist() == [tokenizer_lib.BOS, *inputs]
  assert example.order_L.tolist() == [0] * 4
  config = run.config.to_dict()
  config['objective']['name'] = 'mixture'
  other = (1.0, 'S', 'prefix', ())
  masked = (1.0, 'R', 'span', (('corrupted', 'mask'),))
  for components, mode in (
    (None, [tokenizer_lib.MODE_R]),
    (
      (other, masked, (0.5, 'X', 'span', (('mean', 8.0),))),
      [tokenizer_lib.MODE_X],
    ),
    (((0.5, '', 'span', ()), other), []),
  ):
    config['objective']['mixture']['components'] = components
    frozen = type(run.config)(config)
    mixed = dataclasses.replace(
      run, config=frozen, objective=objectives.make(frozen)
    )
    example = fill_spans.SpanFiller(mixed).encode('a<extra_id_0>b').example
    assert example.tokens_L.tolist() == [tokenizer_lib.BOS, *mode, *inputs]


def test_sentinels_can_be_drawn_and_are_not_penalized(run):
  """A real model: a special id is drawn here and nowhere else."""
  hot = {'temperature': 3.0, 'top_p': 1.0}
  spans = fill_spans.SpanFiller(with_settings(run, **hot, samples_per_prompt=4))
  found = spans(['a<extra_id_0>'])
  drawn = {i for one in found for i in one.ids if i < tokenizer_lib.NUM_SPECIAL}
  assert drawn
  assert drawn <= set(tokenizer_lib.SENTINELS)
  fined = with_settings(run, temperature=0.0, repetition_penalty=1e9)
  said = [S0, *byte_ids('xy'), S1, *byte_ids('z')]
  [found] = fill_spans.SpanFiller(scripted(fined, said))([PROMPT])
  assert found.text == 'Thank xy me z week.'


@pytest.mark.parametrize(
  ('prompt', 'words'),
  [
    ('nothing', 'has no sentinel; number'),
    ('a <extra_id_1>', 'has <extra_id_1>; number .* from <extra_id_0>'),
    ('<extra_id_1> <extra_id_0>', 'has <extra_id_1>, <extra_id_0>; number'),
    ('<extra_id_0> <extra_id_0>', 'has <extra_id_0>, <extra_id_0>; number'),
    ('<extra_id_256>', 'the last of the 256 sentinels is <extra_id_255>'),
    ('<extra_id_0>' + 'a' * 31, '33 tokens .* context of 32'),
  ],
)
def test_wrong_sentinels_are_one_line(run, prompt, words):
  with pytest.raises(errors.UserError, match=words):
    fill_spans.SpanFiller(run).encode(prompt)


def test_a_mixture_continues_or_fills_by_the_prompt(run, monkeypatch, capsys):
  run = scripted(run, [S0, *byte_ids('I')])
  objective = dataclasses.replace(
    run.objective, generates=('continuation', 'spans')
  )
  run = with_settings(
    dataclasses.replace(run, objective=objective), temperature=0.0
  )
  monkeypatch.setattr(generate.load_run, 'load', lambda *_: run)
  group = ['ab', 'a <extra_id_0>', 'cd']
  generate.run(None, {}, group, one_by_one=False)
  out, err = capsys.readouterr()
  # As text goes on no sentinel can come: the model has no other wish.
  _, plain, _ = left_to_right.continuation_generator(run)(['ab'] * 3)
  assert out.split('\n')[:1] == [f'ab{plain.text}'.split('\n')[0]]
  assert '\na I\n<extra_id_0>I\ncd' in out
  assert [line[:3] for line in err.splitlines()] == ['[1:', '[2:', '[3:']


def test_a_sentinel_that_stays_has_its_blank_before_it():
  """A space that is removed if the pieces of words begin with spaces."""
  tokenizer = tokenizer_lib.train('unigram', 700, [sentences(1, 300)])
  text = 'Thank <extra_id_0> me  <extra_id_1><extra_id_2> week.'
  ids = prompts.encode(text, tokenizer)
  prompt = fill_spans.Prompt(ids, prompts.marks(text, tokenizer), None)
  assert list(prompt.marks) == [
    *(' <extra_id_0>', ' <extra_id_1>', '<extra_id_2>')
  ]
  for said, expected in (
    ([], text),
    ([S1, *tokenizer.encode(' the')], text.replace(' <extra_id_1>', ' the')),
  ):
    one = left_to_right.Continuation('', tuple(map(int, said)), 0, 'end')
    assert fill_spans.splice(prompt, one, tokenizer).text == expected


def test_splice_keeps_the_ids_and_why_it_stopped():
  tokenizer = tokenizer_lib.train('bytes', 526, [])
  ids = np.array([*byte_ids('a'), S0])
  prompt = fill_spans.Prompt(ids, ['<extra_id_0>'], None)
  cut = left_to_right.Continuation('', (S0, *byte_ids('b')), 0, 'max_tokens')
  found = fill_spans.splice(prompt, cut, tokenizer)
  assert (found.text, found.ids, found.stop) == ('ab', cut.ids, 'max_tokens')
  assert found.note() == '2 tokens, generate.max_tokens reached'

"""Sampling and decoding: seeds, batches, stops, whole characters."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import causal_row
from helpers.generators import PROMPTS, make_run, with_settings

from lm import errors, generate, objectives, types
from lm.config import check
from lm.data import packing, tokenizer
from lm.generation import left_to_right, strategies
from lm.objectives import layout


@pytest.fixture
def run(config):
  return make_run(config)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_prompt_continues_the_same_alone_and_in_any_batch(run, temperature):
  run = with_settings(run, temperature=temperature)
  generator = left_to_right.continuation_generator(run)
  encoded = [generator.encode(prompt) for prompt in PROMPTS]
  together = generator.batch(encoded)
  alone = [generator.batch([ids])[0] for ids in encoded]
  assert together == alone
  small = left_to_right.continuation_generator(with_settings(run, batch_size=2))
  assert small(PROMPTS) == together


@pytest.mark.parametrize(
  ('name', 'column', 'behind'),
  [
    ('causal', None, []),
    ('causal', 'target', [tokenizer.SEP]),
    ('supervised', 'target', [tokenizer.SEP]),
  ],
)
def test_a_prompt_of_a_model_of_pairs_is_a_source(config, name, column, behind):
  config.objective.name, config.data.target_column = name, column
  config.model.architecture = 'decoder'
  run = make_run(config)
  run = dataclasses.replace(run, objective=objectives.make(run.config))
  (strategy,) = run.objective.generates
  example = strategies.STRATEGIES[strategy].make(run).encode('ab')
  expected = [tokenizer.BOS, *run.tokenizer.encode('ab').tolist(), *behind]
  assert example.tokens_L.tolist() == expected


def test_greedy_decoding_is_the_argmax_of_the_full_pass(run):
  run = with_settings(run, temperature=0.0, max_tokens=6)
  generator = left_to_right.continuation_generator(run)
  ids = generator.encode('Hello').tokens_L.tolist()
  expected = []

  @jax.jit
  def full_pass(row):
    return run.model.logits(run.params, run.model.hidden(run.params, row))[0]

  for _ in range(6):
    # As long for all prompts: what follows is not seen.
    row = causal_row(np.array([*ids[1:], *[0] * (13 - len(ids))], np.int32))
    logits = full_pass(row)[len(ids) - 1]
    allowed = run.tokenizer.allowed_ids(end=True)
    best = int(jnp.argmax(jnp.where(allowed, logits, -jnp.inf)))
    if best == tokenizer.EOS:
      break
    expected.append(best)
    ids.append(best)
  found = generator(['Hello'])[0]
  assert found.text == run.tokenizer.decode(expected)
  assert found.tokens == len(expected)


@pytest.mark.parametrize('inputs', ['bidirectional', 'causal'])
def test_a_prefix_is_read_as_trained_and_continued_by_the_argmax(
  config, inputs
):
  """Against the full pass of prompt and continuation in the trained format."""
  config.objective.name = 'prefix'
  config.objective.inputs = inputs
  run = with_settings(make_run(config), temperature=0.0, max_tokens=6)
  allowed = run.tokenizer.allowed_ids(end=True)
  completions = left_to_right.continuation_generator(run)(PROMPTS)
  for prompt, found in zip(PROMPTS, completions, strict=True):
    end = [tokenizer.EOS] if found.stop == 'end' else []
    scored = np.array([*found.ids, *end], np.int32)
    example = run.objective.continuation(run.tokenizer.encode(prompt), scored)
    row = packing.stack([packing.pack([example], run.objective.capacity)])
    logits = run.model.logits(run.params, run.model.hidden(run.params, row))[0]
    logits = jnp.where(allowed, logits, -jnp.inf)
    (places,) = np.nonzero(row.weights_BxL[0])
    assert jnp.argmax(logits[places], axis=-1).tolist() == scored.tolist()
  # Else the test could not tell how the prompt was read.
  order = left_to_right.continuation_generator(run).encode('abc').order_L
  assert order.tolist() == ([0] * 4 if inputs[0] == 'b' else [0, 1, 2, 3])


@pytest.mark.parametrize(
  'name', ['causal_decoder', 'decoder', 'encoder_decoder']
)
def test_the_last_position_of_a_prompt_predicts_what_follows(name):
  unknown = np.array([tokenizer.PAD])
  example = getattr(layout, name)(np.array([300, 301]), unknown)
  assert example.weights_L.tolist()[-1] == 1
  assert example.weights_L.sum() == 1
  last = tokenizer.BOS if name == 'encoder_decoder' else 301
  assert example.tokens_L[-1] == last


def test_the_encoders_share_bounds_a_prompt_of_two_sides(run):
  """And the decoder has all its positions for what is generated."""
  objective = dataclasses.replace(
    run.objective,
    capacity=types.Size(tokens=10, encoder_tokens=20),
    continuation=layout.encoder_decoder,
  )
  run = with_settings(
    dataclasses.replace(run, objective=objective), max_tokens=99
  )
  generator = left_to_right.continuation_generator(run)
  example = generator.encode('a' * 19)
  assert example.encoder_tokens_M.tolist()[:2] == [tokenizer.BOS, 270 + 97]
  assert generator.limit(example) == 10
  with pytest.raises(errors.UserError, match=r'21 tokens .* share of 20'):
    generator.encode('a' * 20)


def test_a_source_is_closed_by_sep_and_only_its_target_is_text(config, run):
  assert left_to_right.continuation_generator(run).beginning('ab') == 'ab'
  config.objective.name, config.data.target_column = 'supervised', 'target'
  config.model.architecture = 'decoder'
  run = make_run(config)
  generator = left_to_right.target_generator(
    with_settings(run, temperature=0.0)
  )
  example = generator.encode('ab')
  assert example.tokens_L.tolist() == [
    *(tokenizer.BOS, 270 + 97, 270 + 98, tokenizer.SEP)
  ]
  assert generator.beginning('ab') == ''
  beams = left_to_right.target_generator(
    with_settings(run, temperature=0.0, beams=2)
  )
  [one] = beams(['ab'])
  assert one.tokens <= 8
  assert one != generator(['ab'])[0]


ALL = ('continuation', 'masks', 'spans', 'unmasking', 'target')


@pytest.mark.parametrize(
  ('prompt', 'allowed'),
  [
    ('text', {'continuation', 'unmasking', 'target'}),
    ('A [MASK].', {'masks', 'unmasking'}),
    ('中国的首都是[MASK]。', {'masks', 'unmasking'}),
    ('A <extra_id_0>.', {'spans'}),
  ],
)
def test_a_prompt_that_an_objective_cannot_do_is_one_line(run, prompt, allowed):
  for strategy in ALL:
    objective = dataclasses.replace(run.objective, generates=(strategy,))
    completers = strategies.Completers(
      dataclasses.replace(run, objective=objective)
    )
    if strategy in allowed:
      assert completers.strategy(prompt) == strategy
      continue
    with pytest.raises(errors.UserError) as caught:
      completers.strategy(prompt)
    message = str(caught.value)
    assert "objective.name='causal'" in message
    assert strategies.STRATEGIES[strategy].action in message
    assert f"--prompt='{strategies.STRATEGIES[strategy].example}'" in message
    assert '\n' not in message


@pytest.mark.parametrize(
  'names', [*((name,) for name in ALL), ('masks', 'spans')]
)
def test_the_example_of_an_objective_is_a_prompt_that_it_accepts(run, names):
  objective = dataclasses.replace(run.objective, generates=names)
  completers = strategies.Completers(
    dataclasses.replace(run, objective=objective)
  )
  assert completers.strategy(strategies.example(objective)) == names[0]


def test_an_objective_that_generates_nothing_says_so(run):
  objective = dataclasses.replace(run.objective, generates=())
  assert strategies.example(objective) is None
  run = dataclasses.replace(run, objective=objective)
  with pytest.raises(errors.UserError, match='generates nothing'):
    strategies.Completers(run).strategy('text')


def test_two_kinds_of_marks_are_a_mistake(run):
  with pytest.raises(errors.UserError, match='both'):
    strategies.Completers(run).strategy('[MASK] and <extra_id_0>')


@pytest.mark.parametrize(
  ('field', 'value', 'prompts', 'words'),
  [
    ('samples', 3, None, 'generate.samples=3 is read when training ends'),
    ('candidates', 2, ['text'], r'candidates=2 is not .* each \[MASK\], and'),
    ('max_tokens', 2, ['A [MASK].'], 'max_tokens=2 is not read: .* without'),
  ],
)
def test_what_has_no_effect_on_a_prompt_is_a_warning(
  capsys, field, value, prompts, words
):
  """Before anything is loaded; it is then left out."""
  overrides = {f'generate.{field}': value}
  nowhere = pathlib.Path('no/such/run')

  def warning(prompts):
    check.warn.cache_clear()
    with pytest.raises(errors.UserError, match='holds no run'):
      generate.run(nowhere, overrides, prompts, one_by_one=False)
    return capsys.readouterr().err

  line = warning(iter(()) if prompts is None else prompts)
  assert re.search(f'^warning: .*{words}.*; omit it', line)
  if prompts is None:
    return
  # One of several is enough; and of stdin what comes is not known.
  other = {'candidates': 'A [MASK].', 'max_tokens': 'text'}[field]
  for allowed in ([*prompts, other], iter(prompts)):
    assert warning(allowed) == ''


def test_the_seed_decides(run):
  texts = [
    [
      c.text
      for c in left_to_right.continuation_generator(with_settings(run, seed=s))(
        PROMPTS
      )
    ]
    for s in (0, 0, 1, 2**32 - 1)
  ]
  assert texts[0] == texts[1]
  assert len({tuple(some) for some in texts}) == 3


def test_only_text_comes_out_and_broken_bytes_are_counted(run):
  run = with_settings(
    run, temperature=2.0, max_tokens=24, top_p=1.0, samples_per_prompt=8
  )
  completions = left_to_right.continuation_generator(run)(['abc'])
  assert any(c.dropped_bytes for c in completions)
  for completion in completions:
    size = len(completion.text.encode())
    assert size + completion.dropped_bytes == completion.tokens
    assert '\ufffd' not in completion.text


def test_samples_of_a_prompt_differ_and_each_can_be_had_alone(run):
  run = with_settings(run, temperature=1.0, samples_per_prompt=3)
  generator = left_to_right.continuation_generator(run)
  samples = generator(PROMPTS)
  texts = [c.text for c in samples]
  assert len(set(texts)) == len(samples) == 3 * len(PROMPTS)
  # Whatever the size of the batch, the other prompts and their order.
  other = left_to_right.continuation_generator(with_settings(run, batch_size=5))
  assert other(PROMPTS) == samples
  backwards = generator(PROMPTS[::-1])
  assert backwards[:3] == samples[-3:]
  [last] = generator.batch([generator.encode(PROMPTS[1])], [2])
  assert last == samples[5]
  # And whether or not others are drawn.
  one = left_to_right.continuation_generator(
    with_settings(run, samples_per_prompt=1)
  )
  assert one(PROMPTS) == samples[::3]


def test_the_penalty_counts_the_prompt_and_what_was_drawn(run):
  """So large a penalty leaves the seen ids no chance."""
  settings = {'temperature': 0.0, 'max_tokens': 12}
  prompts = ['abcabc', 'Some longer prompt']
  free = left_to_right.continuation_generator(with_settings(run, **settings))
  fined = left_to_right.continuation_generator(
    with_settings(run, **settings, repetition_penalty=1e9)
  )
  repeats = 0
  for prompt in prompts:
    # As the ids are bytes, most draws form no character: look at the ids.
    for generator, allowed in ((free, True), (fined, False)):
      ids = generator([prompt])[0].ids
      seen = generator.encode(prompt).tokens_L.tolist()
      again = sum(i in [*seen, *ids[:n]] for n, i in enumerate(ids))
      repeats += again
      assert allowed or not again
  assert repeats


def test_min_p_of_one_is_greedy(run):
  drawn = with_settings(run, temperature=1.5, top_p=1.0, min_p=1.0)
  greedy = with_settings(run, temperature=0.0)
  assert left_to_right.continuation_generator(drawn)(
    PROMPTS
  ) == left_to_right.continuation_generator(greedy)(PROMPTS)


def test_several_samples_are_named_where_they_are_printed(
  run, monkeypatch, capsys
):
  run = with_settings(run, temperature=1.0, samples_per_prompt=2, batch_size=4)
  monkeypatch.setattr(generate.load_run, 'load', lambda *_: run)
  prompts = ['One', '二', 'third']  # of which two are decoded together
  generate.run(None, {}, prompts, one_by_one=False)
  out, err = capsys.readouterr()
  completions = left_to_right.continuation_generator(run)(prompts)
  expected = [
    f'=== prompt {i}, sample {j} ===\n{prompt}'
    for i, prompt in enumerate(prompts, 1)
    for j in (1, 2)
  ]
  assert out == ''.join(
    f'{head}{c.text}\n' for head, c in zip(expected, completions, strict=True)
  )
  assert err.startswith('[prompt 1, sample 1: 8 tokens, generate.max_tokens')


def test_streamed_text_is_the_completion(run):
  parts = {}
  generator = left_to_right.continuation_generator(
    with_settings(run, temperature=1.5)
  )
  encoded = [generator.encode(prompt) for prompt in PROMPTS]
  completions = generator.batch(
    encoded, on_text=lambda n, text: parts.setdefault(n, []).append(text)
  )
  for number, completion in enumerate(completions):
    assert ''.join(parts.get(number, [])) == completion.text


def test_stops_at_max_tokens_at_the_context_and_at_the_end(run):
  L = run.config.data.sequence_length
  generator = left_to_right.continuation_generator(
    with_settings(run, max_tokens=5)
  )
  allowed = {c.stop for c in generator(PROMPTS)}
  assert allowed <= {'max_tokens', 'end'}
  long = left_to_right.continuation_generator(
    with_settings(run, max_tokens=10**6, samples_per_prompt=8)
  )
  completions = long(['a' * (L - 4)])
  assert any(c.stop == 'context' for c in completions)
  for completion in completions:
    # BOS and L - 4 bytes are read; the last of L positions predicts one more.
    assert completion.tokens == 4 or completion.stop == 'end'
  assert len(long.encode('a' * (L - 1)).tokens_L) == L


def test_stops_at_the_end_of_document(config):
  """A model whose hidden state and readout always say EOS."""
  config.model.norm = 'layernorm'
  config.model.bias = True
  config.model.tie_embeddings = False
  config.generate.temperature = 0.0
  run = make_run(config)
  trunk = run.params['trunk']
  zeros = jnp.zeros_like(trunk['embeddings']['readout_kernel'])
  readout = zeros.at[:, tokenizer.EOS].set(1.0)
  trunk['embeddings']['readout_kernel'] = readout
  trunk['final_norm']['bias'] += 10.0
  found = left_to_right.continuation_generator(run)(['x'])[0]
  assert (found.text, found.tokens, found.stop) == ('', 0, 'end')


def test_a_prompt_longer_than_the_context_is_refused(run):
  L = run.config.data.sequence_length
  with pytest.raises(errors.UserError, match=f'longer than the context of {L}'):
    left_to_right.continuation_generator(run)(['a' * L])


def test_decoding_compiles_once_for_prompts_of_any_length(run):
  generator = left_to_right.continuation_generator(run)
  for prompt in PROMPTS:
    generator([prompt])
  assert generator._start._cache_size() == 1
  assert generator._extend._cache_size() == 1

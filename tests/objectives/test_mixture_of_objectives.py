"""Mixtures: what is drawn, that all is read, and that one alone is itself."""

import dataclasses
import math
import sys
import types as types_lib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from helpers import docstrings
from ml_collections import config_flags

from experiments import base as experiments_base
from lm import errors, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer as tokenizer_lib
from lm.models import attention
from lm.objectives import layout, mixture_components as components_lib

BOS, EOS = tokenizer_lib.BOS, tokenizer_lib.EOS
S0 = tokenizer_lib.SENTINELS[0]
BOTH = ('encoder_decoder', 'decoder')
PAIR = (
  (1.0, 'X', 'span', (('mean', 8.0), ('rate', 0.5))),
  (3, '', 'prefix', ()),
)


def record(n, rng, end=False):
  ids = rng.integers(270, 526, n).astype(np.int32)
  if end:
    ids[-1] = EOS
  return types.Record(ids_L=ids, word_L=np.arange(n, dtype=np.int32) // 2)


def resolved(config, components=None, architecture=None, length=64, **fields):
  config.objective.name = 'mixture'
  config.model.architecture = architecture
  config.data.sequence_length = length
  config.objective.mixture.components = components
  for name, value in fields.items():
    config.objective.mixture[name] = value
  return config_lib.resolve(config)


def make(config, components=None, architecture=None, length=64, **fields):
  return objectives.make(
    resolved(config, components, architecture, length, **fields)
  )


def test_prepended_examples_of_the_docstring():
  mode = tokenizer_lib.MODE_S
  given, shown = docstrings.examples(layout.prepend)
  inputs, targets = given['inputs'], given['targets']
  one = layout.prepend(layout.decoder(inputs, targets), mode, causal=False)
  docstrings.check(one, shown)
  # As if the mode had been the first of the inputs.
  inputs = np.append(mode, inputs)
  for make_example, causal in (
    (layout.decoder, False),
    (layout.causal_decoder, True),
    (layout.encoder_decoder, True),
  ):
    led = layout.prepend(make_example(inputs[1:], targets), mode, causal=causal)
    same(led, make_example(inputs, targets))


def same(a, b):
  for field in dataclasses.fields(types.Example):
    found, expected = getattr(a, field.name), getattr(b, field.name)
    if field.name == 'component_L' or expected is None:
      continue
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, err_msg=field.name)


def test_ul2_has_its_seven_denoisers(config):
  found = components_lib.read(resolved(config))
  assert [c.name for c in found] == [
    *('span_3_0.15', 'span_8_0.15', 'span_3_0.5', 'span_8_0.5'),
    *('span_64_0.15', 'span_64_0.5', 'prefix'),
  ]
  by_mode = {
    mode: sum(c.share for c in found if c.mode == mode) for mode in 'RXS'
  }
  assert by_mode == pytest.approx({'R': 0.4, 'X': 0.4, 'S': 0.2})


def test_components_are_drawn_by_their_shares(config):
  objective = make(config, PAIR)
  count = 10_000
  rng = np.random.default_rng(0)
  one = record(20, rng)
  drawn = [
    int(objective.corrupt(one, rng)[0].component_L[0]) for _ in range(count)
  ]
  found = np.bincount(drawn, minlength=2) / count
  atol = 5 * math.sqrt(0.25 * 0.75 / count)
  np.testing.assert_allclose(found, [0.25, 0.75], atol=atol)


def test_each_example_has_its_mode_in_front(config):
  names = dict.fromkeys((0, 1), tokenizer_lib.MODE_R)
  names |= dict.fromkeys((2, 3, 4, 5), tokenizer_lib.MODE_X)
  names[6] = tokenizer_lib.MODE_S
  for architecture in BOTH:
    objective = make(config, None, architecture)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
      for example in objective.corrupt(record(30, rng), rng):
        read = example.tokens_L
        if architecture == 'encoder_decoder':
          read = example.encoder_tokens_M
        assert read[:2].tolist() == [BOS, names[example.component_L[0]]]
        seen.add(int(example.component_L[0]))
    assert seen == set(range(7))


def text_of(example, raw):
  """The text that a span's or a prefix's example was made of."""
  if example.encoder_tokens_M is None:
    ids = np.append(example.tokens_L, example.targets_L[-1])
    given = int(np.argmax(example.weights_L)) + 1
    inputs, targets = ids[1:given], ids[given:]
  else:
    inputs, targets = example.encoder_tokens_M[1:], example.targets_L
  marks = np.isin(targets, tokenizer_lib.SENTINELS)
  inputs = inputs[~np.isin(inputs, range(267, 270))]
  if not marks.any():
    return np.concatenate([inputs, targets])
  ends = inputs[inputs == EOS]
  targets = targets[:-1]
  parts = np.split(targets, np.flatnonzero(marks[:-1]))
  behind = {int(p[0]): p[1:] for p in parts if len(p)}
  inputs = inputs[inputs != EOS]
  whole = [behind.get(int(i), np.array([i])) for i in inputs]
  return np.concatenate([*whole, ends])


@pytest.mark.parametrize('architecture', BOTH)
def test_nothing_of_a_chunk_is_lost_and_all_fits(config, architecture):
  objective = make(config, None, architecture, length=96)
  capacity = objective.capacity
  assert capacity.positions == 96
  rng = np.random.default_rng(0)
  several = 0
  for n in range(1, objective.raw_length + 1):
    for seed in range(12):
      chunk = record(n, rng, end=seed % 2)
      sizes = objective.sizes(n, np.random.default_rng(seed))
      examples = objective.corrupt(chunk, np.random.default_rng(seed))
      assert len(sizes) == len(examples)
      several += len(sizes) > 1
      text = np.concatenate([text_of(e, n) for e in examples])
      np.testing.assert_array_equal(text, chunk.ids_L)
      for size, example in zip(sizes, examples, strict=True):
        assert len(example.tokens_L) <= size.tokens <= capacity.tokens
        assert np.sum(example.weights_L > 0) <= size.predictions
        if architecture == 'encoder_decoder':
          read = len(example.encoder_tokens_M)
          assert read <= size.encoder_tokens <= capacity.encoder_tokens
  assert several


def test_a_decoder_of_spans_alone_reads_out_few(config):
  components = tuple(c for c in components_lib.UL2 if c[1] == 'R')
  objective = make(config, components, 'decoder', length=256)
  predictions = objective.capacity.predictions
  assert 0 < predictions < 128
  for n in range(1, objective.raw_length + 1):
    for size in objective.sizes(n, np.random.default_rng(n)):
      assert size.predictions <= predictions


def test_rows_of_both_sides_have_little_padding(config):
  """Chunks are as long as they get; 24 % if they could take a side whole."""
  for architecture, most in (('encoder_decoder', 0.1), ('decoder', 0.02)):
    objective = make(config, None, architecture, length=256)
    rng = np.random.default_rng(0)
    sizes = [
      size
      for _ in range(1024)
      for size in objective.sizes(objective.raw_length, rng)
    ]
    rows = packing.first_fit(sizes, objective.capacity)
    used = sum(size.positions for size in sizes)
    assert 1 - used / (256 * len(rows)) < most


# Every objective that can be a component, and some settings of these.
ALONE = [
  (name, architecture, ())
  for name, spec in objectives.OBJECTIVES.items()
  for architecture in spec.architectures
  if architecture in BOTH and spec.data != 'pairs' and name != 'mixture'
] + [
  ('span', 'decoder', (('rate', 0.5), ('mean', 8))),
  ('prefix', 'decoder', (('split', 'fixed'), ('share', 0.75))),
]


@pytest.mark.parametrize('mode', ['', 'X'])
@pytest.mark.parametrize(('name', 'architecture', 'fields'), ALONE)
def test_a_mixture_of_one_is_that_one(config, name, architecture, fields, mode):
  length = 64
  found = make(config, ((2.0, mode, name, fields),), architecture, length)
  # The mode takes a position.
  config.data.sequence_length = length - len(mode)
  config.objective.name = name
  config.objective.mixture.components = None
  for field, value in fields:
    config.objective[name][field] = value
  alone = objectives.make(config_lib.resolve(config))
  assert found.raw_length == alone.raw_length
  assert found.attention == alone.attention
  assert found.capacity.positions == length
  assert found.capacity.tokens == alone.capacity.tokens + (
    len(mode) * (architecture == 'decoder')
  )
  for n in (1, 2, 9, alone.raw_length):
    rng = np.random.default_rng(n)
    chunk = record(n, rng)
    (expected,) = alone.corrupt(chunk, np.random.default_rng(n))
    (example,) = found.corrupt(chunk, np.random.default_rng(n))
    (given,) = alone.sizes(n, np.random.default_rng(n))
    (size,) = found.sizes(n, np.random.default_rng(n))
    assert size.positions == given.positions + len(mode)
    if mode:
      causal = alone.attention == 'causal'
      expected = layout.prepend(expected, tokenizer_lib.MODE_X, causal=causal)
    same(example, expected)
  if alone.continuation is None:
    assert found.continuation is None
  else:
    made = alone.continuation(chunk.ids_L[:3], chunk.ids_L[3:5])
    if mode:
      made = layout.prepend(made, tokenizer_lib.MODE_X, causal=causal)
    same(found.continuation(chunk.ids_L[:3], chunk.ids_L[3:5]), made)
  assert found.scored_at_once == alone.scored_at_once
  assert found.generates == alone.generates


def decoder_batch(objective, count, seed=0):
  """Rows of two examples, and what draws them."""
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(count):
    examples = [objective.corrupt(record(n, rng), rng)[0] for n in (9, 12)]
    rows.append(packing.pack(examples, objective.capacity, ('component',)))
  return packing.stack(rows)


def linear_model():
  """Logits that depend on the token alone, and parameters."""
  key = jax.random.PRNGKey(0)
  params = {
    'in': jax.random.normal(key, (526, 8)),
    'out': jax.random.normal(key, (8, 526)),
  }
  model = types_lib.SimpleNamespace(
    hidden=lambda params, batch, key, train: params['in'][batch.tokens_BxL],
    logits=lambda params, hidden: hidden @ params['out'],
  )
  return model, params


def test_the_loss_of_one_is_that_of_the_objective(config):
  found = make(config, ((1.0, '', 'span', ()),), 'decoder')
  batch = decoder_batch(found, 2)
  model, params = linear_model()
  (pooled,) = found.loss(model, params, batch, None, False).values()
  config.objective.name = 'span'
  config.objective.mixture.components = None
  alone = objectives.make(config_lib.resolve(config))
  (expected,) = alone.loss(model, params, batch, None, False).values()
  assert pooled == expected
  assert found.coefficients == {'mixture': 1.0}


def test_static_attention_is_that_of_the_order(config):
  causal = (1.0, 'S', 'causal', ())
  span = (1.0, 'R', 'span', ())
  for components, kind in (((causal,), 'causal'), ((causal, span), 'prefix')):
    objective = make(config, components, 'decoder')
    assert objective.attention == kind
    rng = np.random.default_rng(0)
    for _ in range(20):
      (made,) = objective.corrupt(record(20, rng), rng)
      n = len(made.tokens_L)
      order, segment = made.order_L[None], np.ones((1, n), np.int32)
      mask = attention.attention_mask(order, order, segment, segment)[0]
      expected = np.tril(np.ones((n, n), bool))
      if kind == 'prefix':
        given = int(np.argmax(made.weights_L)) + 1
        expected[:given, :given] = True
      np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize('chunk', [0, 24])
@pytest.mark.parametrize('extras', [False, True])
def test_a_term_a_component_and_their_sum_is_the_pool(config, chunk, extras):
  config.train.loss_chunk = chunk
  if extras:
    config.train.label_smoothing, config.train.z_loss = 0.1, 1e-3
  values = {}
  for weighting in ('tokens', 'terms'):
    settings = resolved(config, PAIR, 'decoder', weighting=weighting)
    objective = objectives.make(settings)
    batch = decoder_batch(objective, 4)
    model, params = linear_model()

    def trained(
      params,
      objective=objective,
      batch=batch,
      model=model,
      weighting=weighting,
    ):
      # As if the components' tokens were pooled in the terms, too.
      terms = objective.loss(model, params, batch, None, True)
      factors = dict.fromkeys(objective.coefficients, 1.0)
      if weighting == 'terms' and extras:
        factors |= {'smoothing': 0.1, 'z': 1e-3}
      return sum(factor * terms[n][0] for n, factor in factors.items()), terms

    values[weighting] = jax.jit(jax.value_and_grad(trained, has_aux=True))(
      params
    )
    if weighting == 'terms':
      assert objective.coefficients == {
        **{'span_8_0.5': 0.25, 'prefix': 0.75},
        **({'smoothing': 0.1, 'z': 1e-3} if extras else {}),
      }
      component = np.asarray(batch.component_BxL)
      weights = np.asarray(batch.weights_BxL)
      assert set(np.unique(component[weights > 0])) == {0, 1}
      for index, name in enumerate(('span_8_0.5', 'prefix')):
        weight = values['terms'][0][1][name][1]
        assert weight == weights[component == index].sum() > 0
  (pooled, _), (summed, terms) = values['tokens'][0], values['terms'][0]
  assert set(terms) == set(objective.coefficients)
  np.testing.assert_allclose(pooled, summed, rtol=1e-5)
  for a, b in zip(
    *(jax.tree.leaves(values[w][1]) for w in ('tokens', 'terms')), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_evaluation_has_no_extras(config):
  config.train.z_loss = 1e-3
  settings = resolved(config, PAIR, 'decoder', weighting='terms')
  objective = objectives.make(settings)
  model, params = linear_model()
  batch = decoder_batch(objective, 1)
  terms = objective.loss(model, params, batch, None, False)
  assert set(terms) == {'span_8_0.5', 'prefix'}
  assert all(jnp.isfinite(total) for total, _ in terms.values())


SCORERS = [
  (None, 'conditional', tokenizer_lib.MODE_S, ('continuation', 'spans')),
  (((1.0, 'R', 'span', ()), (1.0, 'X', 'span', (('rate', 0.5),))), 'blocks',
   tokenizer_lib.MODE_R, ('spans',)),
  (((1.0, 'R', 'span', ()), (1.0, 'X', 'causal', ())), 'conditional',
   tokenizer_lib.MODE_X, ('continuation', 'spans')),
  (((1.0, 'R', 'span', (('corrupted', 'drop'),)),), 'none', None, ()),
]  # fmt: skip


@pytest.mark.parametrize(('components', 'scorer', 'mode', 'generates'), SCORERS)
def test_text_is_scored_by_the_component_that_continues(
  config, components, scorer, mode, generates
):
  objective = make(config, components, 'decoder')
  assert objective.scorer == scorer
  assert objective.generates == generates
  if scorer == 'none':
    assert objective.continuation is None
    return
  scored = np.array([312, 313])
  made = objective.continuation(np.array([310, 311]), scored)
  assert made.tokens_L[:4].tolist() == [BOS, mode, 310, 311]
  assert made.targets_L[made.weights_L > 0].tolist() == [312, 313]
  assert objective.scored_at_once == (3 if scorer == 'blocks' else None)


MISTAKES = [
  ((), r'components=\(\) names none; give tuples'),
  (((1.0, 'R', 'span'),), r"components\[0\]: \(1.0, 'R', 'span'\) is not"),
  (((1.0, 'R', 'span', ('mean',)),), r'components\[0\]: .* is not \(share'),
  (((0, 'R', 'span', ()),), r'components\[0\]: the share 0 is out of range'),
  ((('1', 'R', 'span', ()),), "the share '1' is no number"),
  (((1.0, 'Q', 'span', ()),), "unknown mode 'Q'; choose from '', R, S, X"),
  (((1.0, '', 'spam', ()),), "unknown objective 'spam'; choose from causal"),
  (((1.0, '', 'mixture', ()),), "unknown objective 'mixture'; choose from"),
  (
    ((1.0, '', 'prefix', ()), (1.0, '', 'span', (('spam', 1),))),
    r'components\[1\]: there is no field objective.span.spam; it has .*rate',
  ),
  (((1.0, '', 'span', (('rate', 'a'),)),), "span.rate='a' is not of the type"),
  (((1.0, '', 'span', (('rate', 2.0),)),), r'\[0\]: objective.span.rate=2.0'),
  (((1.0, '', 'span', (('unit', 'a'),)),), "unknown objective.span.unit='a'"),
  (
    ((1.0, '', 'span', (('unit', 'sentence'), ('noise', 'iid'))),),
    "objective.span.noise='iid' draws tokens or words",
  ),
  (
    ((1.0, '', 'causal', ()),),
    r"\[0\]: objective 'causal' trains model.architecture='decoder', not 'enc",
  ),
  (
    ((1.0, '', 'masked', ()),),
    "'masked' trains model.architecture='encoder', on which there are no mixt",
  ),
  (((1.0, '', 'supervised', ()),), "'supervised' is trained on pairs, and mix"),
]  # fmt: skip


@pytest.mark.parametrize(('components', 'expected'), MISTAKES)
def test_a_mistake_in_a_component_is_one_line(config, components, expected):
  with pytest.raises(errors.UserError, match=expected) as caught:
    make(config, components, 'encoder_decoder')
  assert '\n' not in str(caught.value)


def test_too_short_rows_and_losses_of_their_own_are_refused(
  config, monkeypatch
):
  with pytest.raises(errors.UserError, match='sequence_length=8 has no room'):
    make(config, None, 'encoder_decoder', length=8)
  # An objective whose loss has a normaliser of its own.
  from lm.objectives import prefix, token_loss

  def own(config, tokenizer=None):
    loss = token_loss.make(config, 'own', lambda batch: 1.0)
    return dataclasses.replace(prefix.make(config), loss=loss)

  spec = dataclasses.replace(prefix.SPEC, make=own)
  monkeypatch.setitem(objectives.OBJECTIVES, 'prefix', spec)
  with pytest.raises(errors.UserError, match="'prefix' has a loss of its own"):
    make(config, None, 'decoder')


def test_sentinels_are_counted_for_the_chunks_of_the_mixture(config):
  # A span objective alone would need 319 of the 256 in rows of this length.
  objective = make(config, None, 'encoder_decoder', length=2560)
  assert objective.raw_length > 1000
  with pytest.raises(errors.UserError, match=r'\[2\]: .* sentinels .* are 256'):
    make(config, None, 'encoder_decoder', length=8192)


def test_components_are_a_flag_and_survive_the_disk(
  config, tmp_path, monkeypatch
):
  given = f'--config.objective.mixture.components={PAIR!r}'
  monkeypatch.setattr(sys, 'argv', ['run.py', given])
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', experiments_base.get_config(), flag_values=values
  )
  values(sys.argv)
  assert values.config.objective.mixture.components == PAIR
  first = resolved(config, PAIR)
  config_lib.save(first, tmp_path)
  stored = config_lib.load(tmp_path)
  again = resolved(config, None)
  assert again.objective.mixture.components is None
  with pytest.raises(errors.UserError, match=r'mixture\.components'):
    config_lib.resolve(config, stored)
  config.objective.mixture.components = PAIR
  second = config_lib.resolve(config, stored)
  assert second.objective.mixture.components == PAIR

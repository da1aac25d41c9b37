"""What holds for every objective, on each architecture, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import base as base_config
from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer
from lm.models import attention, readout

L = 64
CASES = [
  (name, architecture)
  for name in objectives.OBJECTIVES
  for architecture in objectives.OBJECTIVES[name].architectures
]
every = pytest.mark.parametrize(('name', 'architecture'), CASES)


@dataclasses.dataclass(frozen=True)
class Setting:
  """An objective, a tiny model for it and fresh parameters."""

  config: ml_collections.FrozenConfigDict
  objective: types.Objective
  model: types.Model
  params: types.Params

  def pack(self, examples):
    """A row with these examples."""
    objective = self.objective
    return packing.pack(examples, objective.capacity, objective.arrays)


_SETTINGS: dict[tuple[str, str], Setting] = {}


def setting(name: str, architecture: str) -> Setting:
  if (name, architecture) not in _SETTINGS:
    config = base_config.get_config()
    config.data.tokenizer = 'bytes'
    config.data.sequence_length = L
    config.objective.name = name
    config.model.architecture = architecture
    if objectives.OBJECTIVES[name].data == 'pairs':
      config.data.target_column = 'target'
    config.model.num_layers = 2
    config.model.width = 32
    config.model.num_heads = 2
    config.model.mlp_width = 32
    config = config_lib.resolve(config)
    objective = objectives.make(config)
    model = models.make(config, objective)
    _SETTINGS[name, architecture] = Setting(
      config, objective, model, jax.jit(model.init)(jax.random.PRNGKey(0))
    )
  return _SETTINGS[name, architecture]


def record(rng, n: int, *, pair: bool, place: int = 0) -> types.Record:
  """Random text that ends its document; of a pair, with SEP near its middle."""
  ids = rng.integers(tokenizer.NUM_SPECIAL, tokenizer.FIRST_PIECE, n)
  ids[-1] = tokenizer.EOS
  if pair:
    ids[n // 2] = tokenizer.SEP
  return types.Record(ids.astype(np.int32), np.arange(n) // 2, place)


def size_of(objective: types.Objective, n: int):
  """What `sizes` is told of a record of n tokens."""
  return (n // 2 + 1, n - n // 2 - 1) if objective.pairs else n


def lengths_of(objective: types.Objective) -> list[int]:
  """Lengths of two chunks that often fit a row together."""
  return [objective.raw_length // 3, objective.raw_length // 3 - 1]


def examples_of(objective, seed: int, lengths) -> list[types.Example]:
  rng = np.random.default_rng(seed)
  examples = []
  for place, n in enumerate(lengths):
    one = record(rng, n, pair=objective.pairs, place=place)
    examples += objective.corrupt(one, rng)
  return examples


def find_examples(objective, *, packed: bool) -> list[types.Example]:
  """Examples that fit a row, each with something to predict."""
  lengths = lengths_of(objective) if packed else lengths_of(objective)[:1]
  for seed in range(200):
    examples = examples_of(objective, seed, lengths)
    sizes = [size_taken(example) for example in examples]
    in_one_row = len(packing.first_fit(sizes, objective.capacity)) == 1
    if in_one_row and all(size.predictions > 1 for size in sizes):
      return examples
  raise AssertionError('no seed predicts two tokens an example, in one row')


def size_taken(example: types.Example) -> types.Size:
  encoder = example.encoder_tokens_M
  return types.Size(
    tokens=len(example.tokens_L),
    encoder_tokens=0 if encoder is None else len(encoder),
    predictions=int(np.sum(example.weights_L > 0)),
  )


def losses_at(setting: Setting, row, places):
  """The loss of each of some positions alone, as a function of the inputs."""
  batch = packing.stack([row] * len(places))
  weights = np.zeros_like(batch.weights_BxL)
  weights[np.arange(len(places)), places] = 1.0
  batch = dataclasses.replace(batch, weights_BxL=weights)

  @jax.jit
  def losses(changes):
    changed = dataclasses.replace(batch, **changes)
    hidden = setting.model.hidden(setting.params, changed)
    hidden, targets, weights = readout.read_out(hidden, changed)
    logits = setting.model.logits(setting.params, hidden)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nll * weights, axis=1)

  # All are always given: another program would round in another way.
  given = {'tokens_BxL': batch.tokens_BxL}
  if batch.encoder_tokens_BxM is not None:
    given['encoder_tokens_BxM'] = batch.encoder_tokens_BxM
  return batch, lambda **changes: np.asarray(losses({**given, **changes}))


@pytest.mark.parametrize('packed', [False, True])
@every
def test_a_loss_depends_on_what_it_may_see_and_on_nothing_else(
  name, architecture, packed
):
  """Each position's loss alone, when each other token is changed."""
  case = setting(name, architecture)
  examples = find_examples(case.objective, packed=packed)
  row = case.pack(examples)
  places = np.flatnonzero(row['weights'])
  batch, losses = losses_at(case, row, places)
  before = losses()
  assert np.all(before > 0)

  def check(field, segment, changed, sees):
    tokens = getattr(batch, field).copy()
    tokens[:, changed] = 300 if tokens[0, changed] != 300 else 301
    same = losses(**{field: tokens}) == before
    np.testing.assert_array_equal(same, ~sees, err_msg=f'{field} {changed}')
    assert segment[changed] > 0

  segment, order = row['segment'], row['order']
  for changed in np.flatnonzero(segment):
    together = segment[places] == segment[changed]
    sees = together & (order[changed] <= order[places])
    check('tokens_BxL', segment, changed, sees)
  if batch.encoder_tokens_BxM is not None:
    encoder_segment = row['encoder_segment']
    for changed in np.flatnonzero(encoder_segment):
      together = segment[places] == encoder_segment[changed]
      check('encoder_tokens_BxM', encoder_segment, changed, together)


@every
def test_a_target_is_not_among_what_predicts_it(name, architecture):
  """A random target changes no input that its position may see.

  The examples of two texts that differ in one token differ, as far as the
  position that predicts it may see, in nothing. Where inputs hold targets by
  design they differ in that one token.
  """
  objective = setting(name, architecture).objective
  shown = objectives.OBJECTIVES[name].inputs_hold_targets
  n = lengths_of(objective)[0]
  checked = 0
  for seed in range(40):
    one = record(np.random.default_rng(seed), n, pair=objective.pairs)
    index = int(np.random.default_rng(seed).integers(n - 1))
    if one.ids_L[index] < tokenizer.NUM_SPECIAL:
      continue
    ids = one.ids_L.copy()
    ids[index] = 300 if ids[index] != 300 else 301
    other = dataclasses.replace(one, ids_L=ids)
    a, b = (
      objective.corrupt(x, np.random.default_rng(seed)) for x in (one, other)
    )
    for x, y in zip(a, b, strict=True):
      np.testing.assert_array_equal(x.weights_L, y.weights_L)
      predicted = (x.weights_L > 0) & (x.targets_L != y.targets_L)
      for place in np.flatnonzero(predicted):
        visible = x.order_L <= x.order_L[place]
        differing = np.sum(x.tokens_L[visible] != y.tokens_L[visible])
        if x.encoder_tokens_M is not None:
          differing += np.sum(x.encoder_tokens_M != y.encoder_tokens_M)
        assert differing <= shown
        checked += 1
  assert checked > 5


@every
def test_packing_changes_no_loss(name, architecture):
  """The sums over examples in one row, and over each in a row of its own."""
  case = setting(name, architecture)
  examples = find_examples(case.objective, packed=True)

  @jax.jit
  def loss(batch):
    return case.objective.loss(case.model, case.params, batch, None, False)

  def terms(rows):
    return loss(packing.stack([case.pack(row) for row in rows]))

  # As many rows, so that one program computes both.
  together = terms([examples, *[[]] * (len(examples) - 1)])
  apart = terms([[example] for example in examples])
  assert together.keys() == apart.keys()
  for term, (total, weight) in together.items():
    assert float(weight) == pytest.approx(float(apart[term][1]))
    np.testing.assert_allclose(total, apart[term][0], rtol=2e-5)
  assert any(float(weight) > 0 for _, weight in together.values())


@every
def test_order_amounts_to_the_static_attention(name, architecture):
  objective = setting(name, architecture).objective
  for example in find_examples(objective, packed=True):
    order = example.order_L
    steps = np.diff(order)
    if objective.attention == 'causal':
      np.testing.assert_array_equal(order, np.arange(len(order)))
    elif objective.attention == 'bidirectional':
      assert not order.any()
    else:
      assert objective.attention == 'prefix'
      assert order[0] == 0
      assert set(steps.tolist()) <= {0, 1}
      assert np.all(np.diff(steps) >= 0)
    segment = np.ones_like(order)[None]
    mask = attention.attention_mask(order[None], order[None], segment, segment)
    assert np.all(np.diagonal(mask[0]))


@every
def test_a_chunk_is_sized_as_it_is_corrupted(name, architecture):
  """Never more than its size, which fits a row, for every length."""
  objective = setting(name, architecture).objective
  capacity = objective.capacity
  assert capacity.positions == L
  for n in range(3 if objective.pairs else 1, objective.raw_length + 1):
    for seed in range(4):
      one = record(np.random.default_rng(seed), n, pair=objective.pairs)
      sizes = objective.sizes(
        size_of(objective, n), np.random.default_rng(seed)
      )
      examples = objective.corrupt(one, np.random.default_rng(seed))
      if objective.pairs and not fits(sizes[0], capacity):
        continue
      for size, example in zip(sizes, examples, strict=True):
        assert len(example.tokens_L) <= size.tokens <= capacity.tokens
        assert np.sum(example.weights_L > 0) <= size.predictions or (
          not capacity.predictions
        )
        assert fits(size, capacity)
        if example.encoder_tokens_M is not None:
          assert len(example.encoder_tokens_M) <= size.encoder_tokens


def fits(size: types.Size, capacity: types.Size) -> bool:
  return (
    size.tokens <= capacity.tokens
    and size.encoder_tokens <= capacity.encoder_tokens
    and (not capacity.predictions or size.predictions <= capacity.predictions)
  )


@every
def test_corruption_is_a_function_of_record_and_generator(name, architecture):
  objective = setting(name, architecture).objective
  lengths = lengths_of(objective)
  first, again, other = (examples_of(objective, s, lengths) for s in (3, 3, 4))
  for one, same in zip(first, again, strict=True):
    for field, value in vars(one).items():
      np.testing.assert_array_equal(value, getattr(same, field))
  assert any(
    not np.array_equal(x.tokens_L, y.tokens_L)
    for x, y in zip(first, other, strict=False)
  )


@every
def test_records_may_be_read_only(name, architecture):
  objective = setting(name, architecture).objective
  for seed in range(20):
    rng = np.random.default_rng(seed)
    one = record(rng, lengths_of(objective)[0], pair=objective.pairs)
    ids = one.ids_L.copy()
    one.ids_L.setflags(write=False)
    one.word_L.setflags(write=False)
    examples = objective.corrupt(one, rng)
    row = packing.pack(examples, objective.capacity, objective.arrays)
    assert row['segment'].max() == len(examples) > 0
    np.testing.assert_array_equal(one.ids_L, ids)


@every
def test_segments_begin_with_bos_and_specials_are_never_corrupted(
  name, architecture
):
  objective = setting(name, architecture).objective
  for seed in range(20):
    rng = np.random.default_rng(seed)
    one = record(rng, lengths_of(objective)[0], pair=objective.pairs)
    ends = 0
    for example in objective.corrupt(one, rng):
      assert example.tokens_L[0] == tokenizer.BOS
      read = [example.tokens_L]
      if example.encoder_tokens_M is not None:
        assert example.encoder_tokens_M[0] == tokenizer.BOS
        read.append(example.encoder_tokens_M)
      # The end of the document is read or predicted, and nothing else is EOS
      # but the end of a span objective's targets.
      ids = np.concatenate([*read, example.targets_L])
      ends += np.sum(ids == tokenizer.EOS)
    assert ends >= 1

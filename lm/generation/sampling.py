"""Sampling from logits: repetition penalty, filters, and the draw."""

import math

import jax
import jax.numpy as jnp

from lm import field, types
from lm.data import tokenizer


def unread_in_search(config, value) -> str | None:
  """`Field.unread` of what only draws read."""
  del value
  beams = config.generate.beams
  if (beams or 1) == 1:
    return None
  return (
    f'is not read with generate.beams={beams}, which searches for the '
    'likeliest text; leave it out, or give --config.generate.beams=1'
  )


def _unread_at_zero(config, value) -> str | None:
  if why := unread_in_search(config, value):
    return why
  temperature = config.generate.temperature
  if temperature != 0:
    return None
  return (
    f'is not read with generate.temperature={temperature!r}, which takes the '
    'likeliest tokens; leave it out, or give a higher temperature'
  )


def unread_where_all_is_the_same(config, value) -> str | None:
  """`Field.unread` of what has no effect on greedy decoding.

  Where the places themselves are drawn it has: the likeliest token of a place
  depends on the places that were filled before.
  """
  if why := unread_in_search(config, value):
    return why
  settings = config.generate
  if settings.order == 'random':
    return None
  for name, greedy, mend in (
    ('temperature', 0, 'temperature'),
    ('top_k', 1, 'one'),
    ('top_p', 0, 'one'),
  ):
    if settings[name] == greedy:
      return (
        f'is not read with generate.{name}={settings[name]!r}, which takes the '
        f'likeliest tokens, always the same; leave it out, or give a higher '
        f'{mend}'
      )
  return None


# What an `unread` looks at is declared before the field that it is of.
FIELDS = field.section(
  temperature=field.Field(
    None,
    'Temperature of draws; 0: greedy.',
    kind=float,
    least=0,
    where_read=0.8,
    neutral=0.0,
    unread=unread_in_search,
  ),
  top_k=field.Field(
    None,
    'Draws keep the k likeliest tokens; 0: all.',
    kind=int,
    least=0,
    where_read=0,
    neutral=0,
    unread=_unread_at_zero,
  ),
  top_p=field.Field(
    None,
    'Draws keep the likeliest tokens that hold this probability; 1: all.',
    kind=float,
    least=0,
    most=1,
    where_read=0.95,
    neutral=1.0,
    unread=_unread_at_zero,
  ),
  min_p=field.Field(
    None,
    'Draws keep tokens at least this share as likely as the likeliest; 0: all.',
    kind=float,
    least=0,
    most=1,
    where_read=0.0,
    neutral=0.0,
    unread=_unread_at_zero,
  ),
  repetition_penalty=field.Field(
    None,
    'Divides the logits of tokens in the prompt or the continuation; 1: none.',
    kind=float,
    least=1,
    where_read=1.0,
    neutral=1.0,
  ),
)
# What draws read, for `Strategy.reads`.
READS = (*FIELDS, 'seed', 'samples_per_prompt')


def last_hidden(hidden_BxLxD: jax.Array, cache: types.Cache) -> jax.Array:
  """Hidden state of each prompt that predicts the next id.

  Returns:
    [B, D].
  """
  last_B = cache['length'] - 1
  return jnp.take_along_axis(hidden_BxLxD, last_B[:, None, None], axis=1)[:, 0]


def readout(
  model: types.Model,
  params: types.Params,
  hidden_BxD: jax.Array,
  seen_BxV: jax.Array,
  allowed_V: jax.Array,
  penalty: float,
) -> jax.Array:
  """Penalized logits in float32; minus infinity for ids that are not allowed.

  Sentinels are not penalized, since the output repeats those of the prompt.
  """
  logits_BxV = model.logits(params, hidden_BxD[:, None])[:, 0]
  sentinels = slice(tokenizer.SENTINELS.start, tokenizer.SENTINELS.stop)
  seen_BxV = seen_BxV.at[:, sentinels].set(False)
  logits_BxV = penalize(logits_BxV.astype(jnp.float32), seen_BxV, penalty)
  return jnp.where(allowed_V, logits_BxV, -jnp.inf)


def penalize(
  logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: float
) -> jax.Array:
  """Lowers the logits of seen ids (Keskar et al. 2019, section 4.1).

  Positive logits are divided by the penalty. Negative ones, which a division
  would raise, are multiplied by it; the paper does not distinguish the two.

  penalty 2, logits [3 -1 1], seen [1 1 0] -> [1.5 -2 1]
  """
  if penalty == 1:
    return logits_BxV
  lowered_BxV = jnp.where(
    logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty
  )
  return jnp.where(seen_BxV, lowered_BxV, logits_BxV)


def prompt_ids(batch: types.Batch, vocab_size: int) -> jax.Array:
  """Ids that occur in each row's prompt, on either side; bool [B, V]."""
  B = len(batch.tokens_BxL)
  seen_BxV = jnp.zeros((B, vocab_size), bool)
  row_Bx1 = jnp.arange(B)[:, None]
  seen_BxV = seen_BxV.at[row_Bx1, batch.tokens_BxL].max(batch.segment_BxL != 0)
  if batch.encoder_tokens_BxM is None:
    return seen_BxV
  return seen_BxV.at[row_Bx1, batch.encoder_tokens_BxM].max(
    batch.encoder_segment_BxM != 0
  )


def mark_seen(seen_BxV: jax.Array, ids_B: jax.Array) -> jax.Array:
  """Marks one more id per row as seen."""
  return seen_BxV.at[jnp.arange(len(ids_B)), ids_B].set(True)


def candidates(
  logits_BxV: jax.Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
  min_p: float,
) -> tuple[jax.Array, jax.Array]:
  """Applies the temperature, then three filters in turn.

  top_k: keeps the k most probable ids.
  top_p: keeps the smallest set of these whose probability, renormalized, is at
    least `top_p` (Holtzman et al. 2020, equation 2).
  min_p: keeps those of these that are at least `min_p` times as probable as the
    most probable one (Nguyen et al. 2024).

  Each filter keeps the most probable id.

  Returns:
    Logits [B, k], minus infinity for ids that were filtered out, and the ids.
  """
  V = logits_BxV.shape[-1]
  logits = logits_BxV / temperature
  ids = jnp.broadcast_to(jnp.arange(V), logits.shape)
  if top_k or top_p < 1:
    logits, ids = jax.lax.top_k(logits, min(top_k, V) if top_k else V)
  if top_p < 1:
    p = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    # The most probable id is kept whatever top_p is.
    kept = (before < top_p).at[:, 0].set(True)
    logits = jnp.where(kept, logits, -jnp.inf)
  if min_p:
    lower_bound = jnp.max(logits, axis=-1, keepdims=True) + math.log(min_p)
    logits = jnp.where(logits < lower_bound, -jnp.inf, logits)
  return logits, ids


def sample(
  logits_BxV: jax.Array,
  keys_B: jax.Array,
  *,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  min_p: float | None,
) -> jax.Array:
  """Draws an id per row from its `candidates`.

  Temperature 0 selects the most probable id and ignores the filters.

  Returns:
    int32 [B].
  """
  if temperature == 0:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  logits_Bxk, ids_Bxk = candidates(
    logits_BxV,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
  )
  place_B = jax.vmap(jax.random.categorical)(keys_B, logits_Bxk)
  drawn_Bx1 = jnp.take_along_axis(ids_Bxk, place_B[:, None], axis=-1)
  return drawn_Bx1[:, 0].astype(jnp.int32)

"""Iterative unmasking: fills masks over several calls of one compiled step.

This is the sampling of masked diffusion (Nie et al. 2025, LLaDA; Sahoo et al.
2024, MDLM) and the decoding of MaskGIT (Chang et al. 2022, section 3.2). Each
step predicts all masks at once and fills some; the others stay masked for the
next step. Filled positions never change again.

Axes in addition to those of `types.py`: `P` masks of a row, `K` maximum number
of masks that a step fills, `R` = B x K.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm import field, types
from lm.generation import sampling
from lm.models import readout
from lm.training import step as step_lib


def counts(masks: int, steps: int | None) -> np.ndarray:
  """Number of masks that each step fills, evenly distributed; int32 [steps].

  masks 7, steps 3    [3 2 2]
  masks 3, steps 5    [1 1 1]

  Args:
    masks: number of masks.
    steps: number of steps; at most one per mask (default: one per mask).
  """
  steps = min(steps or masks, masks)
  return (masks // steps + (np.arange(steps) < masks % steps)).astype(np.int32)


def candidates(
  model: types.Model,
  params: types.Params,
  batch: types.Batch,
  allowed_V: jax.Array,
  count: int,
) -> tuple[jax.Array, jax.Array]:
  """The most probable ids for each mask, given that all others stay masked.

  Args:
    batch: its `predict_BxP` holds the positions of the masks.
    allowed_V: bool, ids that masks may become.
    count: number of candidates per mask.

  Returns:
    Probabilities among the allowed ids, descending, and ids; [B, P, count].
  """
  hidden_BxPxD, _, _ = readout.read_out(model.hidden(params, batch), batch)

  def most_probable(chunk):
    (hidden_BxcxD,) = chunk
    logits_BxcxV = model.logits(params, hidden_BxcxD).astype(jnp.float32)
    logits_BxcxV = jnp.where(allowed_V, logits_BxcxV, -jnp.inf)
    return jax.lax.top_k(jax.nn.softmax(logits_BxcxV, axis=-1), count)

  return readout.map_chunks(
    most_probable,
    (hidden_BxPxD,),
    readout.positions_at_a_time(len(hidden_BxPxD), len(allowed_V)),
  )


def make_step(model: types.Model, allowed_V: jax.Array, settings):
  """Returns the unmasking step, not compiled.

  (params, batch, masked [B, P], count [B], seed, names [B, 2], K) ->
  (tokens [B, L], masked [B, P]). It fills `count` masks of each row, chosen by
  `generate.order` (see ORDERS) among the positions of `predict_BxP` at which
  `masked` is true.

  Args:
    model: model to generate with.
    allowed_V: bool, ids that masks may become.
    settings: the section `generate` of a config.
  """
  # The order is None if a single step fills all masks.
  order = _no_order if settings.order is None else ORDERS[settings.order]
  draw = functools.partial(
    sampling.sample,
    temperature=settings.temperature,
    top_k=settings.top_k,
    top_p=settings.top_p,
    min_p=settings.min_p,
  )

  def step(params, batch, masked_BxP, count_B, seed, names_Bx2, K):
    seen_BxV = sampling.prompt_ids(batch, len(allowed_V))
    hidden_BxPxD, _, _ = readout.read_out(model.hidden(params, batch), batch)

    def read(hidden_RxD):
      """Logits of R hidden states, the same number for each row."""
      return sampling.readout(
        model,
        params,
        hidden_RxD,
        jnp.repeat(seen_BxV, len(hidden_RxD) // len(count_B), axis=0),
        allowed_V,
        settings.repetition_penalty,
      )

    def keys(name, place_Bxn):
      # Keys depend on the sample and the position, not on the rest of the
      # batch.
      key = step_lib.named_key(jax.random.PRNGKey(seed), name)
      keys_B = _fold(_fold(key, names_Bx2[:, 0]), names_Bx2[:, 1])
      return jax.vmap(_fold)(keys_B, place_Bxn)

    score_BxP = order(
      read, keys, hidden_BxPxD, batch.predict_BxP, len(allowed_V)
    )
    score_BxP = jnp.where(masked_BxP, score_BxP, -jnp.inf)
    _, chosen_BxK = jax.lax.top_k(score_BxP, K)
    place_BxK = jnp.take_along_axis(batch.predict_BxP, chosen_BxK, axis=1)
    hidden_BxKxD = jnp.take_along_axis(
      hidden_BxPxD, chosen_BxK[:, :, None], axis=1
    )
    logits_RxV = read(hidden_BxKxD.reshape(-1, hidden_BxKxD.shape[-1]))
    keys_R = keys('generate', place_BxK).reshape(len(logits_RxV), -1)
    ids_BxK = draw(logits_RxV, keys_R).reshape(place_BxK.shape)
    filled_BxK = jnp.arange(K)[None, :] < count_B[:, None]
    return (
      _put(batch.tokens_BxL, place_BxK, ids_BxK, filled_BxK),
      _put(masked_BxP, chosen_BxK, False, filled_BxK),
    )

  return step


def _confidence(read, keys, hidden_BxPxD, place_BxP, V):
  """Scores masks by the probability of their most probable id."""
  del keys, place_BxP

  def max_probability(chunk):
    (hidden_BxcxD,) = chunk
    logits_RxV = read(hidden_BxcxD.reshape(-1, hidden_BxcxD.shape[-1]))
    p_R = jnp.max(jax.nn.softmax(logits_RxV, axis=-1), axis=-1)
    return p_R.reshape(hidden_BxcxD.shape[:2])

  return readout.map_chunks(
    max_probability,
    (hidden_BxPxD,),
    readout.positions_at_a_time(len(hidden_BxPxD), V),
  )


def _random(read, keys, hidden_BxPxD, place_BxP, V):
  """Random scores, the same at each step."""
  del read, hidden_BxPxD, V
  return jax.vmap(jax.vmap(jax.random.uniform))(keys('order', place_BxP))


def _no_order(read, keys, hidden_BxPxD, place_BxP, V):
  """Equal scores."""
  del read, keys, hidden_BxPxD, V
  return jnp.zeros(place_BxP.shape)


# generate.order -> function that scores masks; the highest are filled first.
#
# confidence: at temperature 0, the same as LLaDA's low-confidence remasking and
# MaskGIT. Above 0, these sample an id for every mask and keep the most probable
# samples, which sharpens the requested distribution; here the masks are chosen
# before sampling.
# random: the reverse process of masked diffusion.
ORDERS = {'confidence': _confidence, 'random': _random}


def _unread_in_one_step(config, value) -> str | None:
  del value
  if config.generate.steps != 1:
    return None
  return (
    'is not read with generate.steps=1, which fills all masks at once; leave '
    'it out, or give more steps'
  )


FIELDS = field.section(
  steps=field.Field(
    None,
    'Forward passes of unmasking over all masks.',
    kind=int,
    least=1,
    none='one a mask',
  ),
  order=field.Field(
    None,
    'Which masks a step of unmasking fills: the surest, or random ones.',
    kind=str,
    choices=tuple(ORDERS),
    where_read='confidence',
    unread=_unread_in_one_step,
  ),
)


def _fold(keys, numbers_n):
  """Folds each number into the key, or into its own key."""
  axes = (None if keys.ndim == 1 else 0, 0)
  return jax.vmap(jax.random.fold_in, in_axes=axes)(keys, numbers_n)


def _put(array_Bxn, place_BxK, values, where_BxK):
  """Sets the values at the places selected by `where`."""
  place_BxK = jnp.where(where_BxK, place_BxK, array_Bxn.shape[1])
  row_Bx1 = jnp.arange(len(array_Bxn))[:, None]
  return array_Bxn.at[row_Bx1, place_BxK].set(values, mode='drop')

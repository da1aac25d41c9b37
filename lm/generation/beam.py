"""Beam search for the most probable continuation, as one compiled loop.

Axes in addition to those of `types.py`: `J` beams, `R` = B x J rows of the
cache, `T` ids of the longest continuation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm import field, types
from lm.data import tokenizer
from lm.generation import sampling


def _unread_without_beams(config, value) -> str | None:
  del value
  if config.generate.beams != 1:
    return None
  return (
    'is not read with generate.beams=1, which continues with one token after '
    'the other; leave it out, or give --config.generate.beams=4 or so'
  )


FIELDS = field.section(
  beams=field.Field(
    None,
    'Beams of a search for the likeliest text, in place of drawing; 1: no '
    'search.',
    kind=int,
    least=1,
    where_read=1,
    neutral=1,
  ),
  length_penalty=field.Field(
    None,
    'Alpha of beam search (Wu et al. 2016); a larger one finds longer text.',
    kind=float,
    least=0,
    where_read=0.6,
    unread=_unread_without_beams,
  ),
)


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
  """Divisor of log-probabilities in scores (Wu et al. 2016, equation 14).

  alpha 0: 1 for every length. alpha 1: 1 for one id, 2 for seven.
  """
  return ((5.0 + length) / 6.0) ** alpha


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
  """The best continuation of each row.

  ids_BxT: int32, its ids with EOS, followed by zeros.
  length_B: int32, its number of ids.
  score_B: float32, its log-probability divided by the length penalty.
  """

  ids_BxT: jax.Array
  length_B: jax.Array
  score_B: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """Active beams, and the best of the continuations that have ended.

  length: number of ids in each beam.
  ids_BxJxT: ids of the beams.
  log_p_BxJ: log-probabilities of the beams.
  seen_RxV: ids that occur in the prompt or in the beam.
  cache: cache of the model, with R rows.
  best: best continuation that has ended.
  ended_B: number of continuations that have ended.
  done_B: whether the search of the row is done.
  """

  length: jax.Array
  ids_BxJxT: jax.Array
  log_p_BxJ: jax.Array
  seen_RxV: jax.Array
  cache: types.Cache
  best: Found
  ended_B: jax.Array
  done_B: jax.Array


def make_search(
  model: types.Model,
  allowed_V: jax.Array,
  *,
  context: int,
  beams: int,
  max_tokens: int,
  alpha: float,
  repetition_penalty: float,
) -> Callable[[types.Params, Any, jax.Array], Found]:
  """Returns (params, batch of prompts, limit [B]) -> `Found`, not compiled.

  A continuation ends with EOS, or with its `limit`-th id. Each step extends the
  beams by one id. Among the `beams` most probable extensions, those that end
  are compared by score; the `beams` most probable others become the new beams.
  A row is done when `beams` continuations have ended, or when no beam can reach
  a higher score. With one beam this is greedy decoding; with V^(T-1) beams the
  search is exhaustive.

  Args:
    model: model to search with.
    allowed_V: bool, ids that may be generated.
    context: number of positions in the cache.
    beams: number of beams, J.
    max_tokens: upper bound of the limits, T.
    alpha: exponent of the length penalty, at least 0.
    repetition_penalty: lowers ids of the prompt and of the continuation in
      every distribution, see `sampling.penalize`; scores include its effect.
  """
  return _Search(
    model=model,
    allowed_V=allowed_V,
    context=context,
    J=beams,
    T=max_tokens,
    alpha=alpha,
    repetition_penalty=repetition_penalty,
  ).run


@dataclasses.dataclass(frozen=True)
class _Search:
  """The search loop, with the settings of `make_search`."""

  model: types.Model
  allowed_V: jax.Array
  context: int
  J: int
  T: int
  alpha: float
  repetition_penalty: float

  def run(self, params, batch, limit_B) -> Found:
    """See `make_search`."""
    state, hidden_RxD = self._first_state(params, batch, limit_B)
    state = self._select(params, state, hidden_RxD, limit_B)
    return jax.lax.while_loop(
      lambda state: ~jnp.all(state.done_B),
      lambda state: self._select(params, *self._extend(params, state), limit_B),
      state,
    ).best

  def _first_state(self, params, batch, limit_B):
    B, J, T = len(limit_B), self.J, self.T
    hidden_BxLxD, cache = self.model.start(params, batch, self.context)
    hidden_BxD = sampling.last_hidden(hidden_BxLxD, cache)
    nothing = Found(
      ids_BxT=jnp.zeros((B, T), jnp.int32),
      length_B=jnp.zeros(B, jnp.int32),
      score_B=jnp.full(B, -jnp.inf),
    )
    seen_BxV = sampling.prompt_ids(batch, len(self.allowed_V))
    state = _State(
      length=jnp.zeros((), jnp.int32),
      ids_BxJxT=jnp.zeros((B, J, T), jnp.int32),
      # Only the first beam is possible: the empty continuation.
      log_p_BxJ=jnp.full((B, J), -jnp.inf).at[:, 0].set(0.0),
      seen_RxV=jnp.repeat(seen_BxV, J, axis=0),
      cache=jax.tree.map(lambda x: jnp.repeat(x, J, axis=0), cache),
      best=nothing,
      ended_B=jnp.zeros(B, jnp.int32),
      done_B=jnp.zeros(B, bool),
    )
    return state, jnp.repeat(hidden_BxD, J, axis=0)

  def _select(self, params, state, hidden_RxD, limit_B):
    """Extends the beams by one id, ends some of them, and keeps J."""
    B, J, length = len(limit_B), self.J, state.length + 1
    log_p_Bx2J, parent_Bx2J, id_Bx2J = self._best_extensions(
      params, state, hidden_RxD, B
    )
    last_B = length >= limit_B
    ends_Bx2J = (id_Bx2J == tokenizer.EOS) | last_B[:, None]
    ending_BxJ = (ends_Bx2J & jnp.isfinite(log_p_Bx2J))[:, :J]
    ending_BxJ &= ~state.done_B[:, None]
    best = _best(
      state, length, self.alpha, log_p_Bx2J, parent_Bx2J, id_Bx2J, ending_BxJ
    )
    log_p_BxJ, kept_BxJ = jax.lax.top_k(
      jnp.where(id_Bx2J == tokenizer.EOS, -jnp.inf, log_p_Bx2J), J
    )
    parent_BxJ = jnp.take_along_axis(parent_Bx2J, kept_BxJ, axis=1)
    id_BxJ = jnp.take_along_axis(id_Bx2J, kept_BxJ, axis=1)
    ids_BxJxT = jnp.take_along_axis(
      state.ids_BxJxT, parent_BxJ[:, :, None], axis=1
    )
    ids_BxJxT = ids_BxJxT.at[:, :, state.length].set(id_BxJ)
    rows_R = (jnp.arange(B)[:, None] * J + parent_BxJ).reshape(-1)
    seen_RxV = sampling.mark_seen(state.seen_RxV[rows_R], id_BxJ.reshape(-1))
    ended_B = state.ended_B + jnp.sum(ending_BxJ, axis=1)
    # Log-probabilities only fall and the penalty only grows, so no beam can
    # reach a score above this.
    reach_B = log_p_BxJ[:, 0] / length_penalty(limit_B, self.alpha)
    return _State(
      length=length,
      ids_BxJxT=ids_BxJxT,
      log_p_BxJ=log_p_BxJ,
      seen_RxV=seen_RxV,
      cache=jax.tree.map(lambda x: x[rows_R], state.cache),
      best=best,
      ended_B=ended_B,
      done_B=state.done_B | last_B | (ended_B >= J) | (best.score_B >= reach_B),
    )

  def _best_extensions(self, params, state, hidden_RxD, B: int):
    """The 2J most probable extensions by one id, or all if there are fewer.

    At most J of them end with EOS, one per beam, so at least J do not.

    Returns:
      Log-probability, extended beam and new id; each [B, 2J].
    """
    J, V = self.J, len(self.allowed_V)
    logits_RxV = sampling.readout(
      self.model,
      params,
      hidden_RxD,
      state.seen_RxV,
      self.allowed_V,
      self.repetition_penalty,
    )
    log_p_RxV = jax.nn.log_softmax(logits_RxV, axis=-1)
    total_BxJxV = state.log_p_BxJ[:, :, None] + log_p_RxV.reshape(B, J, V)
    log_p_Bx2J, place_Bx2J = jax.lax.top_k(
      total_BxJxV.reshape(B, J * V), min(2 * J, J * V)
    )
    return log_p_Bx2J, place_Bx2J // V, place_Bx2J % V

  def _extend(self, params, state):
    newest_BxJ = state.ids_BxJxT[:, :, state.length - 1]
    hidden_Rx1xD, cache = self.model.extend(
      params, state.cache, newest_BxJ.reshape(-1, 1)
    )
    return dataclasses.replace(state, cache=cache), hidden_Rx1xD[:, 0]


def _best(state, length, alpha, log_p_Bx2J, parent_Bx2J, id_Bx2J, ending_BxJ):
  """Updates the best continuation with those that end at `length` ids."""
  J = ending_BxJ.shape[1]
  log_p_BxJ = jnp.where(ending_BxJ, log_p_Bx2J[:, :J], -jnp.inf)
  place_Bx1 = jnp.argmax(log_p_BxJ, axis=1)[:, None]

  def take(x_Bxn):
    return jnp.take_along_axis(x_Bxn, place_Bx1, axis=1)[:, 0]

  parent_B = take(parent_Bx2J)
  ids_BxT = jnp.take_along_axis(
    state.ids_BxJxT, parent_B[:, None, None], axis=1
  )[:, 0]
  ids_BxT = ids_BxT.at[:, length - 1].set(take(id_Bx2J))
  score_B = take(log_p_BxJ) / length_penalty(length, alpha)
  old = state.best
  better_B = score_B > old.score_B
  return Found(
    ids_BxT=jnp.where(better_B[:, None], ids_BxT, old.ids_BxT),
    length_B=jnp.where(better_B, length, old.length_B),
    score_B=jnp.where(better_B, score_B, old.score_B),
  )

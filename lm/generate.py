"""Continuations: a cache, one compiled step, and text as it comes."""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import errors, hosts, scoring, sharding, step, trained
from lm.data import packing, tokenizer


def run(
  workdir: pathlib.Path,
  overrides: Mapping[str, Any],
  prompts: Iterable[str],
  *,
  one_by_one: bool,
):
  """Prints each prompt and its continuation, as it comes.

  A single prompt streams; of several, decoded in batches, each is printed when
  its turn has come. Notes go to stderr.

  Args:
    one_by_one: answers a prompt before it reads the next, as a person at a
      terminal expects; else `generate.batch_size` are read and decoded
      together.
  """
  generator = Generator(trained.load(workdir, overrides))
  size = 1 if one_by_one else generator.batch_size
  prompts, number = iter(prompts), 0
  while group := hosts.decide(lambda: list(itertools.islice(prompts, size))):
    encoded = [generator.encode(prompt) for prompt in group]
    printer = _Printer(group)
    for completion in generator.batch(encoded, number, on_text=printer.add):
      printer.end()
      if hosts.is_first():
        _note(number, completion)
      number += 1


class _Printer:
  """Prints texts that come in turns one after the other."""

  def __init__(self, prompts: Sequence[str]):
    self._texts = list(prompts)
    self._current = 0
    _show(self._texts[0])

  def add(self, number: int, text: str):
    """Takes new text of the prompt `number` of the group."""
    if number == self._current:
      _show(text)
    else:
      self._texts[number] += text

  def end(self):
    """The current text is whole: goes on to the next."""
    _show('\n')
    self._current += 1
    if self._current < len(self._texts):
      _show(self._texts[self._current])


def _show(text: str):
  print(text, end='', flush=True)


def _note(number: int, completion: 'Completion'):
  """Why a continuation ended, and what was left out, on stderr."""
  reasons = {
    'end': 'end of document',
    'max_tokens': 'generate.max_tokens reached',
    'context': 'the context (data.sequence_length) is full',
  }
  dropped = ''
  if completion.dropped_bytes:
    dropped = (
      f'; {completion.dropped_bytes} byte(s) that form no character left out'
    )
  print(
    f'[{number + 1}: {completion.tokens} tokens, '
    f'{reasons[completion.stop]}{dropped}]',
    file=sys.stderr,
    flush=True,
  )


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a prompt was continued with.

  stop: `end` (of document), `max_tokens`, or `context` when no position is
    left.
  dropped_bytes: bytes that formed no character and were left out.
  """

  text: str
  tokens: int
  stop: str
  dropped_bytes: int


def sample(
  logits_BxV: jax.Array,
  keys_B: jax.Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
) -> jax.Array:
  """Draws an id a row; the likeliest one at temperature 0.

  First the temperature, then the k likeliest, then the smallest set that holds
  `top_p` of what is left (Holtzman et al. 2020, equation 2).

  Returns:
    int32 [B].
  """
  if temperature == 0:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  logits_BxV = logits_BxV / temperature
  if top_k or top_p < 1:
    V = logits_BxV.shape[-1]
    sorted_BxV, ids_BxV = jax.lax.top_k(
      logits_BxV, min(top_k, V) if top_k else V
    )
    if top_p < 1:
      p_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
      before_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV
      # The likeliest is kept whatever top_p is.
      kept_BxV = (before_BxV < top_p).at[:, 0].set(True)
      sorted_BxV = jnp.where(kept_BxV, sorted_BxV, -jnp.inf)
    place_B = jax.vmap(jax.random.categorical)(keys_B, sorted_BxV)
    drawn_Bx1 = jnp.take_along_axis(ids_BxV, place_B[:, None], axis=-1)
    return drawn_Bx1[:, 0].astype(jnp.int32)
  drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BxV)
  return drawn_B.astype(jnp.int32)


class Generator:
  """Continues batches of prompts; compiles once for each batch size."""

  def __init__(self, run: trained.Trained):
    self._params, self._coder = run.params, run.tokenizer
    self._settings = settings = run.config.generate
    self._length = run.config.data.sequence_length
    model = run.model
    allowed_V = scoring.allowed_ids(run.tokenizer, end=True)

    def draw(params, hidden_BxD, seed, number_B, position_B):
      logits_BxV = model.logits(params, hidden_BxD[:, None])[:, 0]
      logits_BxV = jnp.where(
        allowed_V, logits_BxV.astype(jnp.float32), -jnp.inf
      )
      # Of the prompt's number and the position: the draw does not depend on
      # what else is in the batch.
      key = step.named_key(jax.random.PRNGKey(seed), 'generate')
      keys_B = jax.vmap(
        lambda n, p: jax.random.fold_in(jax.random.fold_in(key, n), p)
      )(number_B, position_B)
      return sample(
        logits_BxV,
        keys_B,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
      )

    def start(params, batch, seed, number_B):
      hidden_BxLxD, cache = model.start(params, batch, self._length)
      last_B = cache['length'] - 1
      hidden_BxD = jnp.take_along_axis(
        hidden_BxLxD, last_B[:, None, None], axis=1
      )[:, 0]
      return draw(params, hidden_BxD, seed, number_B, cache['length']), cache

    def extend(params, cache, ids_B, seed, number_B):
      hidden_Bx1xD, cache = model.extend(params, cache, ids_B[:, None])
      hidden_BxD = hidden_Bx1xD[:, 0]
      return draw(params, hidden_BxD, seed, number_B, cache['length']), cache

    # Every process reads the ids; where the cache lives is left to XLA.
    shardings = (sharding.replicated(run.mesh), None)
    self._start = jax.jit(start, out_shardings=shardings)
    self._extend = jax.jit(extend, donate_argnums=1, out_shardings=shardings)

  @property
  def batch_size(self) -> int:
    """Prompts decoded together."""
    return self._settings.batch_size

  def encode(self, prompt: str) -> np.ndarray:
    """Ids of a prompt behind BOS.

    Raises:
      UserError: the prompt does not fit the context.
    """
    ids = np.concatenate([[tokenizer.BOS], self._coder.encode(prompt)])
    if len(ids) > self._length:
      raise errors.UserError(
        f'a prompt of {len(ids)} tokens (BOS included) is longer than the '
        f'context of {self._length} (data.sequence_length); shorten it: '
        f'{json.dumps(prompt[:40], ensure_ascii=False)}...'
      )
    return ids.astype(np.int32)

  def __call__(self, prompts: Sequence[str]) -> list[Completion]:
    """Continues each prompt, in batches."""
    encoded = [self.encode(prompt) for prompt in prompts]
    completions = []
    for first in range(0, len(encoded), self.batch_size):
      group = encoded[first : first + self.batch_size]
      completions += self.batch(group, first)
    return completions

  def batch(
    self,
    group: list[np.ndarray],
    first: int,
    *,
    on_text: Callable[[int, str], None] = lambda place, text: None,
  ) -> list[Completion]:
    """Continues one batch of encoded prompts together.

    Args:
      group: ids of at most `batch_size` prompts.
      first: number of the first prompt, which its draws depend on.
      on_text: is given a prompt's place in the group and the characters that
        are complete, as they come.
    """
    # One program for a lone prompt, one for any batch.
    size = self.batch_size if len(group) > 1 else 1
    rows = [
      _Row(self._coder, len(ids), self._length, self._settings.max_tokens)
      for ids in group
    ]
    filled = group + [group[0]] * (size - len(group))
    batch = packing.one_a_row(filled, size, self._length)
    # Of numpy, which is the same on every host: jnp would put it on one device.
    number_B = np.arange(first, first + size)
    seed = self._settings.seed
    ids_B, cache = self._start(self._params, batch, seed, number_B)
    while True:
      # Dispatched before the ids are read: the device does not wait for us.
      following, cache = self._extend(
        self._params, cache, ids_B, seed, number_B
      )
      new_B = np.asarray(ids_B).tolist()
      for place, row in enumerate(rows):
        text = row.feed(new_B[place])
        if text:
          on_text(place, text)
      if all(row.stop for row in rows):
        return [row.completion() for row in rows]
      ids_B = following


class _Row:
  """The state of one prompt while its batch is decoded."""

  def __init__(self, coder, prompt: int, context: int, max_tokens: int):
    self._decoder = tokenizer.StreamDecoder(coder)
    # The last position read can still predict one more token.
    self._room = context - prompt + 1
    self._max_tokens = max_tokens
    self._parts: list[str] = []
    self._tokens = 0
    self.stop = ''

  def feed(self, new: int) -> str:
    """Takes an id; the characters that it completes."""
    if self.stop:
      return ''
    if new == tokenizer.EOS:
      self.stop = 'end'
      text = self._decoder.flush()
    else:
      self._tokens += 1
      text = self._decoder.feed([new])
      if self._tokens == self._max_tokens:
        self.stop = 'max_tokens'
      elif self._tokens == self._room:
        self.stop = 'context'
      if self.stop:
        text += self._decoder.flush()
    self._parts.append(text)
    return text

  def completion(self) -> Completion:
    return Completion(
      text=''.join(self._parts),
      tokens=self._tokens,
      stop=self.stop,
      dropped_bytes=self._decoder.dropped_bytes,
    )

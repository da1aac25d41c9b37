"""Left-to-right generation with a cache and one compiled step, streamed."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lm import errors, field, types
from lm.data import tokenizer as tokenizer_lib
from lm.generation import beam, completion, sampling
from lm.runtime import sharding
from lm.training import loaded, step

# Placeholder for the ids to be predicted, which a prompt does not have.
UNKNOWN = np.array([tokenizer_lib.PAD], np.int32)

FIELDS = field.section(
  max_tokens=field.Field(
    None,
    'Maximum number of new tokens; ignored when filling masks.',
    kind=int,
    least=1,
    where_read=128,
  ),
)
# What strategies read that predict from left to right, see `Strategy.reads`.
READS = ('batch_size', *FIELDS, *beam.FIELDS, *sampling.READS)

_REASONS = {
  'end': 'end of document',
  'max_tokens': 'generate.max_tokens reached',
  'context': 'the context (data.sequence_length) is full',
}


@dataclasses.dataclass(frozen=True)
class Continuation(completion.Completion):
  """Text generated from left to right.

  stop: reason why it ended: `end` (EOS), `max_tokens`, or `context` if no
    position is left.
  """

  stop: str

  def ending(self) -> str:
    """Reason why the text ended."""
    return f', {_REASONS[self.stop]}'


class Generator(completion.Completer):
  """Generates the text that follows prompts, until EOS, by sampling or search.

  A prompt is encoded as an Example in the format that the objective trains. Its
  last position predicts the first new token: that of the prompt's last token in
  a decoder, and the decoder's BOS in an encoder-decoder.
  """

  def __init__(
    self,
    run: loaded.LoadedModel,
    read: Callable[[str], types.Example],
    allowed_V: np.ndarray | None = None,
    *,
    shows_prompt: bool = False,
  ):
    """See also `continuation_generator` and `target_generator`.

    Args:
      run: model to generate with.
      read: encodes a prompt as an Example.
      allowed_V: bool, ids that may be generated (default: text and EOS).
      shows_prompt: whether the generated text continues the text of the prompt.
    """
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._read, self._shows_prompt = read, shows_prompt
    # Only the last position is read out.
    self._capacity = dataclasses.replace(run.objective.capacity, predictions=0)
    self._arrays = run.objective.arrays
    if allowed_V is None:
      allowed_V = run.tokenizer.allowed_ids(end=True)
    settings, length = self._settings, self._capacity.tokens
    # Every process reads the ids; XLA chooses the sharding of the cache.
    ids = sharding.replicated(run.mesh)
    if settings.beams > 1:
      search = beam.make_search(
        run.model,
        allowed_V,
        context=length,
        beams=settings.beams,
        max_tokens=min(settings.max_tokens, length),
        alpha=settings.length_penalty,
        repetition_penalty=settings.repetition_penalty,
      )
      self._search = jax.jit(search, out_shardings=ids)
    else:
      start, extend = _make_steps(run.model, allowed_V, length, settings)
      self._start = jax.jit(start, out_shardings=(ids, None))
      self._extend = jax.jit(
        extend, donate_argnums=1, out_shardings=(ids, None)
      )

  def encode(self, prompt: str) -> types.Example:
    """Encodes a prompt as the model reads it.

    Raises:
      UserError: the prompt does not fit the context.
    """
    example = self._read(prompt)
    if not example.weights_L[-1]:
      raise AssertionError('the last position does not predict what follows')
    check_fits(prompt, example, self._capacity)
    return example

  def limit(self, example: types.Example) -> int:
    """Maximum number of tokens that can be generated."""
    return min(self._settings.max_tokens, self._free_positions(example))

  def _free_positions(self, example: types.Example) -> int:
    # The last position of the prompt predicts a token, too.
    return self._capacity.tokens - len(example.tokens_L) + 1

  def beginning(self, prompt: str) -> str:
    """The prompt, if the generated text continues its text."""
    return prompt if self._shows_prompt else ''

  def batch(
    self,
    group: Sequence[types.Example],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[Continuation]:
    """See `completion.Completer`; beam search yields all text at the end."""
    # One program for a single prompt, one for any batch.
    size = self.batch_size if len(group) > 1 else 1
    max_tokens = self._settings.max_tokens
    rows = [
      _Row(self._tokenizer, max_tokens, self._free_positions(example))
      for example in group
    ]
    batch = completion.make_batch(group, size, self._capacity, self._arrays)
    if self._settings.beams > 1:
      self._decode_beams(batch, rows, on_text)
    else:
      names_Bx2 = completion.draw_names(group, samples, size)
      self._decode_draws(batch, names_Bx2, rows, on_text)
    return [row.completion() for row in rows]

  def _decode_draws(self, batch, names_Bx2, rows, on_text):
    """Samples one token per row at a time, until all rows have ended."""
    # A Python int would have to fit an int32. The seed is None if unused.
    seed = np.uint32(self._settings.seed or 0)
    ids_B, state = self._start(self._params, batch, seed, names_Bx2)
    while True:
      # Dispatched before the ids are read, so that the device never waits.
      following, state = self._extend(
        self._params, state, ids_B, seed, names_Bx2
      )
      _feed(rows, np.asarray(ids_B)[:, None], on_text)
      if all(row.stop for row in rows):
        return
      ids_B = following

  def _decode_beams(self, batch, rows, on_text):
    """Searches for all tokens at once."""
    limits = [row.limit for row in rows]
    limits += limits[:1] * (len(batch.tokens_BxL) - len(rows))
    found = self._search(self._params, batch, np.array(limits, np.int32))
    _feed(rows, np.asarray(found.ids_BxT), on_text)


def continuation_generator(run: loaded.LoadedModel) -> Generator:
  """Builds a generator of continuations; the objective reads the prompt."""

  def read(prompt: str) -> types.Example:
    return run.objective.continuation(encode_beginning(run, prompt), UNKNOWN)

  return Generator(run, read, shows_prompt=not reads_pairs(run))


def encode_beginning(run: loaded.LoadedModel, prompt: str) -> np.ndarray:
  """Tokenizes a prompt to be continued.

  If the data is pairs, read as text, the prompt is a source and ends with SEP.
  """
  separator = np.full(int(reads_pairs(run)), tokenizer_lib.SEP, np.int32)
  return np.concatenate([run.tokenizer.encode(prompt), separator])


def reads_pairs(run: loaded.LoadedModel) -> bool:
  """Whether a run's documents are pairs: a target follows a prompt."""
  return run.config.data.target_column is not None


def target_generator(run: loaded.LoadedModel) -> Generator:
  """Builds a generator of targets, for an objective of pairs."""

  def read(prompt: str) -> types.Example:
    return run.objective.continuation(run.tokenizer.encode(prompt), UNKNOWN)

  return Generator(run, read)


def check_fits(
  prompt: str,
  example: types.Example,
  capacity: types.Size,
  *,
  added: str = 'BOS',
):
  """Raises UserError if a prompt, with the tokens added to it, is too long.

  Args:
    prompt: text of the prompt.
    example: the encoded prompt.
    capacity: capacity of a row.
    added: description of the added tokens, for the message.
  """
  side, size, limit = 'context', len(example.tokens_L), capacity.tokens
  if example.encoder_tokens_M is not None:
    size, limit = len(example.encoder_tokens_M), capacity.encoder_tokens
    side = "encoder's share"
  if size > limit:
    raise errors.UserError(
      f'a prompt of {size} tokens ({added} included) is longer than the '
      f'{side} of {limit} (data.sequence_length); shorten it: '
      f'{json.dumps(prompt[:40], ensure_ascii=False)}...'
    )


def _make_steps(model: types.Model, allowed_V, length: int, settings):
  """Returns the first and the later sampling steps of a batch, not compiled."""

  def draw(params, hidden_BxD, seen_BxV, seed, names_Bx2, position_B):
    penalty = settings.repetition_penalty
    logits_BxV = sampling.readout(
      model, params, hidden_BxD, seen_BxV, allowed_V, penalty
    )
    key = step.named_key(jax.random.PRNGKey(seed), 'generate')

    def fold(*numbers):
      return functools.reduce(jax.random.fold_in, numbers, key)

    # Keys depend on the sample and the position, not on the rest of the batch.
    ids_B = sampling.sample(
      logits_BxV,
      jax.vmap(fold)(names_Bx2[:, 0], names_Bx2[:, 1], position_B),
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      min_p=settings.min_p,
    )
    return ids_B, sampling.mark_seen(seen_BxV, ids_B)

  def start(params, batch, seed, names_Bx2):
    hidden_BxLxD, cache = model.start(params, batch, length)
    hidden_BxD = sampling.last_hidden(hidden_BxLxD, cache)
    seen_BxV = sampling.prompt_ids(batch, len(allowed_V))
    ids_B, seen_BxV = draw(
      params, hidden_BxD, seen_BxV, seed, names_Bx2, cache['length']
    )
    return ids_B, (cache, seen_BxV)

  def extend(params, state, ids_B, seed, names_Bx2):
    cache, seen_BxV = state
    hidden_Bx1xD, cache = model.extend(params, cache, ids_B[:, None])
    ids_B, seen_BxV = draw(
      params, hidden_Bx1xD[:, 0], seen_BxV, seed, names_Bx2, cache['length']
    )
    return ids_B, (cache, seen_BxV)

  return start, extend


def _feed(rows: Sequence['_Row'], ids_BxT: np.ndarray, on_text):
  """Adds new ids to each row, and reports the text that they complete."""
  for place, row in enumerate(rows):
    text = ''.join(row.feed(new) for new in ids_BxT[place].tolist())
    if text:
      on_text(place, text)


class _Row:
  """State of a row of a batch: a continuation of at most `limit` tokens."""

  def __init__(
    self, tokenizer: tokenizer_lib.Tokenizer, max_tokens: int, free: int
  ):
    self._decoder = tokenizer_lib.StreamDecoder(tokenizer)
    self.limit = min(max_tokens, free)
    self._reason = 'max_tokens' if max_tokens <= free else 'context'
    self._parts: list[str] = []
    self._ids: list[int] = []
    self.stop = ''

  def feed(self, new: int) -> str:
    """Adds an id; returns the characters that it completes."""
    if self.stop:
      return ''
    if new == tokenizer_lib.EOS:
      self.stop = 'end'
      text = self._decoder.flush()
    else:
      self._ids.append(new)
      text = self._decoder.feed([new])
      if len(self._ids) == self.limit:
        self.stop = self._reason
        text += self._decoder.flush()
    self._parts.append(text)
    return text

  def completion(self) -> Continuation:
    return Continuation(
      text=''.join(self._parts),
      ids=tuple(self._ids),
      dropped_bytes=self._decoder.dropped_bytes,
      stop=self.stop,
    )

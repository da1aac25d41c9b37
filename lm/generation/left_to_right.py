"""Text from left to right: a cache, one compiled step, and text as it comes."""

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

# Stands for what is to be predicted, which a prompt does not know.
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
class Continued(completion.Completion):
  """What was drawn, one token after the other.

  stop: `end` (EOS), `max_tokens`, or `context` when no position is left.
  """

  stop: str

  def ending(self) -> str:
    """Why there is no more of it."""
    return f', {_REASONS[self.stop]}'


class Generator(completion.Completer):
  """Draws, or searches for, what follows prompts; EOS ends it.

  A prompt is an Example in the format that the objective trains, in which the
  last position is the one that predicts what follows: of a decoder that of the
  prompt's last token, of an encoder-decoder the decoder's BOS.
  """

  def __init__(
    self,
    run: loaded.LoadedModel,
    read: Callable[[str], types.Example],
    allowed_V: np.ndarray | None = None,
    *,
    shows_prompt: bool = False,
  ):
    """See `of_continuations` and `of_targets`.

    Args:
      read: a prompt to its Example.
      allowed_V: bool, ids that may be drawn; None: text and EOS.
      shows_prompt: whether what is drawn goes on from the prompt's text.
    """
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._read, self._shows_prompt = read, shows_prompt
    # Nothing but the last position is read out.
    self._capacity = dataclasses.replace(run.objective.capacity, predictions=0)
    self._arrays = run.objective.arrays
    if allowed_V is None:
      allowed_V = run.tokenizer.allowed_ids(end=True)
    settings, length = self._settings, self._capacity.tokens
    # Every process reads the ids; where the cache lives is left to XLA.
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
    """A prompt as the model reads it.

    Raises:
      UserError: the prompt does not fit the context.
    """
    example = self._read(prompt)
    if not example.weights_L[-1]:
      raise AssertionError('the last position does not predict what follows')
    check_fits(prompt, example, self._capacity)
    return example

  def limit(self, example: types.Example) -> int:
    """Tokens that can be drawn at most."""
    return min(self._settings.max_tokens, self._room(example))

  def _room(self, example: types.Example) -> int:
    # The last position read can still predict one more token.
    return self._capacity.tokens - len(example.tokens_L) + 1

  def beginning(self, prompt: str) -> str:
    """The prompt, where its text is gone on with."""
    return prompt if self._shows_prompt else ''

  def batch(
    self,
    group: Sequence[types.Example],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[Continued]:
    """See `completion.Completer`; of beam search all text comes at the end."""
    # One program for a lone prompt, one for any batch.
    size = self.batch_size if len(group) > 1 else 1
    most = self._settings.max_tokens
    rows = [
      _Row(self._tokenizer, most, room) for room in map(self._room, group)
    ]
    batch = completion.rows_of(group, size, self._capacity, self._arrays)
    if self._settings.beams > 1:
      self._decode_beams(batch, rows, on_text)
    else:
      names_Bx2 = completion.draw_names(group, samples, size)
      self._decode_draws(batch, names_Bx2, rows, on_text)
    return [row.completion() for row in rows]

  def _decode_draws(self, batch, names_Bx2, rows, on_text):
    """A token of each row at a time, until all have ended."""
    # As a Python int it would have to fit an int32. None: nothing is drawn.
    seed = np.uint32(self._settings.seed or 0)
    ids_B, state = self._start(self._params, batch, seed, names_Bx2)
    while True:
      # Dispatched before the ids are read: the device does not wait for us.
      following, state = self._extend(
        self._params, state, ids_B, seed, names_Bx2
      )
      _feed(rows, np.asarray(ids_B)[:, None], on_text)
      if all(row.stop for row in rows):
        return
      ids_B = following

  def _decode_beams(self, batch, rows, on_text):
    """All tokens at once."""
    limits = [row.limit for row in rows]
    limits += limits[:1] * (len(batch.tokens_BxL) - len(rows))
    found = self._search(self._params, batch, np.array(limits, np.int32))
    _feed(rows, np.asarray(found.ids_BxT), on_text)


def of_continuations(run: loaded.LoadedModel) -> Generator:
  """Goes on from a prompt, read as the objective reads what is given."""

  def read(prompt: str) -> types.Example:
    return run.objective.continuation(encode_beginning(run, prompt), UNKNOWN)

  return Generator(run, read, shows_prompt=not reads_pairs(run))


def encode_beginning(run: loaded.LoadedModel, prompt: str) -> np.ndarray:
  """Ids of a prompt that text goes on from.

  Where pairs were read as text it is a source, which stands before SEP.
  """
  behind = np.full(int(reads_pairs(run)), tokenizer_lib.SEP, np.int32)
  return np.concatenate([run.tokenizer.encode(prompt), behind])


def reads_pairs(run: loaded.LoadedModel) -> bool:
  """Whether its documents are pairs: what follows a prompt is a target."""
  return run.config.data.target_column is not None


def of_targets(run: loaded.LoadedModel) -> Generator:
  """Turns a source into its target, as an objective of pairs reads it."""

  def read(prompt: str) -> types.Example:
    return run.objective.continuation(run.tokenizer.encode(prompt), UNKNOWN)

  return Generator(run, read)


def check_fits(
  prompt: str,
  example: types.Example,
  capacity: types.Size,
  *,
  with_it: str = 'BOS',
):
  """Raises UserError where a prompt, with what is added, does not fit a row."""
  side, size, room = 'context', len(example.tokens_L), capacity.tokens
  if example.encoder_tokens_M is not None:
    size, room = len(example.encoder_tokens_M), capacity.encoder_tokens
    side = "encoder's share"
  if size > room:
    raise errors.UserError(
      f'a prompt of {size} tokens ({with_it} included) is longer than the '
      f'{side} of {room} (data.sequence_length); shorten it: '
      f'{json.dumps(prompt[:40], ensure_ascii=False)}...'
    )


def _make_steps(model: types.Model, allowed_V, length: int, settings):
  """The first draw of a batch and every later one, not yet compiled."""

  def draw(params, hidden_BxD, seen_BxV, seed, names_Bx2, position_B):
    penalty = settings.repetition_penalty
    logits_BxV = sampling.readout(
      model, params, hidden_BxD, seen_BxV, allowed_V, penalty
    )
    key = step.named_key(jax.random.PRNGKey(seed), 'generate')

    def fold(*numbers):
      return functools.reduce(jax.random.fold_in, numbers, key)

    # Of the sample and its position: not of what else is in the batch.
    ids_B = sampling.sample(
      logits_BxV,
      jax.vmap(fold)(names_Bx2[:, 0], names_Bx2[:, 1], position_B),
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      min_p=settings.min_p,
    )
    return ids_B, sampling.see(seen_BxV, ids_B)

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
  """Gives each row its new ids, and `on_text` the text that they complete."""
  for place, row in enumerate(rows):
    text = ''.join(row.feed(new) for new in ids_BxT[place].tolist())
    if text:
      on_text(place, text)


class _Row:
  """The state of one continuation, of at most `limit` tokens, in its batch."""

  def __init__(
    self, tokenizer: tokenizer_lib.Tokenizer, max_tokens: int, room: int
  ):
    self._decoder = tokenizer_lib.StreamDecoder(tokenizer)
    self.limit = min(max_tokens, room)
    self._reason = 'max_tokens' if max_tokens <= room else 'context'
    self._parts: list[str] = []
    self._ids: list[int] = []
    self.stop = ''

  def feed(self, new: int) -> str:
    """Takes an id; the characters that it completes."""
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

  def completion(self) -> Continued:
    return Continued(
      text=''.join(self._parts),
      ids=tuple(self._ids),
      dropped_bytes=self._decoder.dropped_bytes,
      stop=self.stop,
    )

"""Masks in a text: what could stand at each, and filling them step by step."""

import dataclasses
import functools
import json
from collections.abc import Sequence

import jax
import numpy as np

from lm import errors, field, types
from lm.data import tokenizer
from lm.generation import completion, left_to_right, prompts, unmasking
from lm.objectives import layout
from lm.runtime import sharding
from lm.training import loaded

# Ids of a mask and their probabilities, falling.
Candidates = tuple[tuple[int, float], ...]

FIELDS = field.section(
  candidates=field.Field(
    None,
    'Likeliest pieces that are listed for each [MASK] in a prompt; 0: none.',
    kind=int,
    least=0,
    where_read=5,
    neutral=0,
  ),
)


@dataclasses.dataclass(frozen=True)
class Masked:
  """A prompt.

  ids_L: without BOS, MASK among them.
  continues: the masks stand behind it, for text that goes on.
  """

  ids_L: np.ndarray
  continues: bool = False

  @property
  def places(self) -> np.ndarray:
    """Where the masks stand."""
    return np.flatnonzero(self.ids_L == tokenizer.MASK)

  @property
  def masks(self) -> int:
    """How many there are."""
    return len(self.places)

  @property
  def example(self) -> types.Example:
    """As the model reads it; what is predicted are the masks."""
    weights_L = self.ids_L == tokenizer.MASK
    return layout.encoder(self.ids_L, self.ids_L, weights_L)


@dataclasses.dataclass(frozen=True)
class Filled(completion.Completion):
  """The prompt with its masks filled.

  candidates: for each mask pieces and their probabilities, falling.
  """

  candidates: tuple[tuple[tuple[bytes, float], ...], ...]

  def ending(self) -> str:
    """Where they stand."""
    return ' in place of masks'

  def shown(self) -> str:
    """The text, and a line a mask."""
    lines = [
      f'{prompts.MASK} {number}  '
      + '  '.join(f'{_spelt(piece)} {p:.3f}' for piece, p in of_mask)
      for number, of_mask in enumerate(self.candidates, 1)
      if of_mask
    ]
    return '\n'.join([self.text, *lines])


def _spelt(piece: bytes) -> str:
  """A piece in quotes; a byte that is no character by its number."""
  try:
    return json.dumps(piece.decode(), ensure_ascii=False)
  except UnicodeDecodeError:
    return ''.join(f'<0x{byte:02X}>' for byte in piece)


class Masks(completion.Completer):
  """The likeliest pieces for each [MASK], and the text with the first of them.

  The masks of a prompt are read at their own places, in one pass: each is
  predicted as if the others stayed masked.
  """

  def __init__(self, run: loaded.LoadedModel):
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._capacity = run.objective.capacity
    self._arrays = run.objective.arrays
    allowed_V = run.tokenizer.allowed_ids(end=False)
    # One is what the text is filled with, also where none is to be shown.
    count = min(max(self._settings.candidates, 1), int(allowed_V.sum()))
    self._candidates = jax.jit(
      functools.partial(
        unmasking.candidates, run.model, allowed_V=allowed_V, count=count
      ),
      out_shardings=sharding.replicated(run.mesh),
    )

  def encode(self, prompt: str) -> Masked:
    """A prompt with masks.

    Raises:
      UserError: it has no mask, or does not fit the context.
    """
    masked = Masked(prompts.encode(prompt, self._tokenizer))
    if not masked.masks:
      raise errors.UserError(
        f'the prompt has no {prompts.MASK}; put it where text is to be found'
      )
    left_to_right.check_fits(prompt, masked.example, self._capacity)
    return masked

  def batch(
    self,
    group: Sequence[Masked],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[Filled]:
    """See `completion.Completer`; nothing is drawn."""
    del samples
    completions = [
      self.fill(masked, [best for (best, _), *_ in found], found)
      for masked, found in zip(
        group, self.candidates(group, self.rows(group)), strict=True
      )
    ]
    for row, filled in enumerate(completions):
      on_text(row, filled.shown())
    return completions

  def rows(self, group: Sequence[Masked]) -> types.Batch:
    """A prompt a row, with the places of its masks as `predict_BxP`."""
    most = max(masked.masks for masked in group)
    # In powers of two, since each number is compiled apart.
    capacity = dataclasses.replace(
      self._capacity, predictions=1 << (most - 1).bit_length()
    )
    size = self.batch_size if len(group) > 1 else 1
    return completion.rows_of(
      [x.example for x in group], size, capacity, self._arrays
    )

  def candidates(
    self, group: Sequence[Masked], batch: types.Batch
  ) -> list[list[Candidates]]:
    """Of each mask of each prompt; at least one for each."""
    p_BxPxk, ids_BxPxk = map(np.asarray, self._candidates(self._params, batch))
    return [
      [
        tuple(zip(ids_Pxk[n].tolist(), p_Pxk[n].tolist(), strict=True))
        for n in range(masked.masks)
      ]
      # After the prompts come rows that fill the batch.
      for masked, ids_Pxk, p_Pxk in zip(group, ids_BxPxk, p_BxPxk, strict=False)
    ]

  def fill(
    self, masked: Masked, ids: Sequence[int], found: Sequence[Candidates]
  ) -> Filled:
    """The prompt with an id in place of each mask."""
    pieces = self._tokenizer.pieces
    text, dropped = prompts.splice(
      masked.ids_L, [pieces[i] for i in ids], self._tokenizer
    )
    shown = self._settings.candidates
    return Filled(
      text=text,
      ids=tuple(ids),
      dropped_bytes=dropped,
      candidates=tuple(
        tuple((pieces[i], p) for i, p in of_mask[:shown]) for of_mask in found
      ),
    )


class Unmasking(completion.Completer):
  """Fills masks over `generate.steps` steps, see `unmasking.py`.

  Those of the prompt, for which the candidates of the first step are kept, too;
  of a prompt without masks as many as `generate.max_tokens` behind it. It ends
  there: a model that was never to predict EOS does not know where text ends.
  """

  def __init__(self, run: loaded.LoadedModel):
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._capacity = run.objective.capacity
    self._run, self._masks = run, Masks(run)
    step = unmasking.make_step(
      run.model,
      run.tokenizer.allowed_ids(end=False),
      self._settings,
    )
    self._step = jax.jit(
      step, static_argnames='K', out_shardings=sharding.replicated(run.mesh)
    )

  def encode(self, prompt: str) -> Masked:
    """A prompt with masks, or with masks behind it.

    Raises:
      UserError: it does not fit the context.
    """
    if prompts.mark(prompt) == prompts.MASK:
      return self._masks.encode(prompt)
    ids_L = left_to_right.encode_beginning(self._run, prompt)
    room = self._capacity.tokens - 1 - len(ids_L)
    masks = max(1, min(self._settings.max_tokens, room))
    masked = Masked(np.append(ids_L, [tokenizer.MASK] * masks), continues=True)
    left_to_right.check_fits(
      prompt, masked.example, self._capacity, with_it='BOS and a mask'
    )
    return masked

  def limit(self, masked: Masked) -> int:
    """Tokens that are drawn."""
    return masked.masks

  def beginning(self, prompt: str) -> str:
    """The prompt, where its text is gone on with."""
    shown = not prompts.mark(prompt) and not left_to_right.reads_pairs(
      self._run
    )
    return prompt if shown else ''

  def batch(
    self,
    group: Sequence[Masked],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[completion.Completion]:
    """See `completion.Completer`; all text comes at the end."""
    batch = self._masks.rows(group)
    found = [[]] * len(group)
    if self._settings.candidates and not all(x.continues for x in group):
      found = self._masks.candidates(group, batch)
    tokens_BxL = self._unmask(group, samples, batch)
    completions = []
    for row, masked in enumerate(group):
      ids = tokens_BxL[row, masked.places + 1].tolist()  # behind BOS
      if masked.continues:
        completions.append(self._continued(ids))
        on_text(row, completions[-1].text)
      else:
        completions.append(self._masks.fill(masked, ids, found[row]))
        on_text(row, completions[-1].shown())
    return completions

  def _unmask(self, group, samples, batch) -> np.ndarray:
    """All steps; the ids [B, L]."""
    size, most = batch.predict_BxP.shape
    steps = self._settings.steps
    counts_B = [unmasking.counts(masked.masks, steps) for masked in group]
    counts_B += counts_B[:1] * (size - len(group))
    schedule_SxB = np.zeros((max(map(len, counts_B)), size), np.int32)
    masked_BxP = np.zeros((size, most), bool)
    for row, counts in enumerate(counts_B):
      schedule_SxB[: len(counts), row] = counts
      masked_BxP[row, : counts.sum()] = True
    names_Bx2 = completion.draw_names(
      [masked.example for masked in group], samples, size
    )
    # As a Python int it would have to fit an int32. None: nothing is drawn.
    seed = np.uint32(self._settings.seed or 0)
    for count_B in schedule_SxB:
      tokens_BxL, masked_BxP = self._step(
        self._params,
        batch,
        masked_BxP,
        count_B,
        seed,
        names_Bx2,
        # Of the most masks that these shapes hold: one program for all steps.
        K=int(unmasking.counts(most, steps)[0]),
      )
      # On the host, as the first were: what is on devices is compiled apart.
      masked_BxP = np.asarray(masked_BxP)
      batch = dataclasses.replace(batch, tokens_BxL=np.asarray(tokens_BxL))
    return batch.tokens_BxL

  def _continued(self, ids: list[int]) -> left_to_right.Continued:
    text, dropped = prompts.splice(np.array(ids), [], self._tokenizer)
    whole = len(ids) == self._settings.max_tokens
    return left_to_right.Continued(
      text=text,
      ids=tuple(ids),
      dropped_bytes=dropped,
      stop='max_tokens' if whole else 'context',
    )

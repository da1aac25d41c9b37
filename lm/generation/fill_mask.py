"""Fills masks: candidates for each mask, and iterative unmasking."""

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

# (id, probability) of the candidates for a mask, most probable first.
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
class MaskedPrompt:
  """A prompt with masks.

  ids_L: int32, its ids with MASK, without BOS.
  continues: whether the masks were appended to continue the text.
  """

  ids_L: np.ndarray
  continues: bool = False

  @property
  def places(self) -> np.ndarray:
    """Indices of the masks."""
    return np.flatnonzero(self.ids_L == tokenizer.MASK)

  @property
  def masks(self) -> int:
    """Number of masks."""
    return len(self.places)

  @property
  def example(self) -> types.Example:
    """The prompt as the model reads it; the masks are predicted."""
    weights_L = self.ids_L == tokenizer.MASK
    return layout.encoder(self.ids_L, self.ids_L, weights_L)


@dataclasses.dataclass(frozen=True)
class Filled(completion.Completion):
  """The prompt with its masks filled.

  candidates: pieces for each mask with probabilities, most probable first.
  """

  candidates: tuple[tuple[tuple[bytes, float], ...], ...]

  def ending(self) -> str:
    """Says that the tokens replace masks."""
    return ' in place of masks'

  def shown(self) -> str:
    """The text, followed by one line per mask."""
    lines = [
      f'{prompts.MASK} {number}  '
      + '  '.join(f'{_quote(piece)} {p:.3f}' for piece, p in found)
      for number, found in enumerate(self.candidates, 1)
      if found
    ]
    return '\n'.join([self.text, *lines])


def _quote(piece: bytes) -> str:
  """A piece in quotes; bytes that form no character in hexadecimal."""
  try:
    return json.dumps(piece.decode(), ensure_ascii=False)
  except UnicodeDecodeError:
    return ''.join(f'<0x{byte:02X}>' for byte in piece)


class MaskFiller(completion.Completer):
  """Fills each [MASK] with its most probable piece, and reports candidates.

  All masks of a prompt are predicted in one pass, each given that the others
  stay masked.
  """

  def __init__(self, run: loaded.LoadedModel):
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._capacity = run.objective.capacity
    self._arrays = run.objective.arrays
    allowed_V = run.tokenizer.allowed_ids(end=False)
    # At least one, to fill the text even if no candidates are shown.
    count = min(max(self._settings.candidates, 1), int(allowed_V.sum()))
    self._candidates = jax.jit(
      functools.partial(
        unmasking.candidates, run.model, allowed_V=allowed_V, count=count
      ),
      out_shardings=sharding.replicated(run.mesh),
    )

  def encode(self, prompt: str) -> MaskedPrompt:
    """Encodes a prompt with masks.

    Raises:
      UserError: it has no mask, or does not fit the context.
    """
    masked = MaskedPrompt(prompts.encode(prompt, self._tokenizer))
    if not masked.masks:
      raise errors.UserError(
        f'the prompt has no {prompts.MASK}; put one at each gap in the text'
      )
    left_to_right.check_fits(prompt, masked.example, self._capacity)
    return masked

  def batch(
    self,
    group: Sequence[MaskedPrompt],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[Filled]:
    """See `completion.Completer`; deterministic."""
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

  def rows(self, group: Sequence[MaskedPrompt]) -> types.Batch:
    """Builds a batch of prompts, with their masks as `predict_BxP`."""
    masks = max(masked.masks for masked in group)
    # A power of two, since each number of predictions is compiled separately.
    capacity = dataclasses.replace(
      self._capacity, predictions=1 << (masks - 1).bit_length()
    )
    size = self.batch_size if len(group) > 1 else 1
    return completion.make_batch(
      [x.example for x in group], size, capacity, self._arrays
    )

  def candidates(
    self, group: Sequence[MaskedPrompt], batch: types.Batch
  ) -> list[list[Candidates]]:
    """Candidates for each mask of each prompt, at least one per mask."""
    p_BxPxk, ids_BxPxk = map(np.asarray, self._candidates(self._params, batch))
    return [
      [
        tuple(zip(ids_Pxk[n].tolist(), p_Pxk[n].tolist(), strict=True))
        for n in range(masked.masks)
      ]
      # The batch may have more rows than there are prompts.
      for masked, ids_Pxk, p_Pxk in zip(group, ids_BxPxk, p_BxPxk, strict=False)
    ]

  def fill(
    self, masked: MaskedPrompt, ids: Sequence[int], found: Sequence[Candidates]
  ) -> Filled:
    """Replaces each mask of the prompt by an id."""
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
        tuple((pieces[i], p) for i, p in candidates[:shown])
        for candidates in found
      ),
    )


class Unmasker(completion.Completer):
  """Fills masks in `generate.steps` steps, see `unmasking.py`.

  Fills the masks of the prompt and reports the candidates of the first step. To
  a prompt without masks, `generate.max_tokens` masks are appended, and all of
  them are filled: a model never trained to predict EOS cannot end a text.
  """

  def __init__(self, run: loaded.LoadedModel):
    super().__init__(run.config.generate)
    self._params, self._tokenizer = run.params, run.tokenizer
    self._capacity = run.objective.capacity
    self._run, self._mask_filler = run, MaskFiller(run)
    step = unmasking.make_step(
      run.model,
      run.tokenizer.allowed_ids(end=False),
      self._settings,
    )
    self._step = jax.jit(
      step, static_argnames='K', out_shardings=sharding.replicated(run.mesh)
    )

  def encode(self, prompt: str) -> MaskedPrompt:
    """Encodes a prompt with masks, or appends masks to it.

    Raises:
      UserError: it does not fit the context.
    """
    if prompts.mark(prompt) == prompts.MASK:
      return self._mask_filler.encode(prompt)
    ids_L = left_to_right.encode_beginning(self._run, prompt)
    free = self._capacity.tokens - 1 - len(ids_L)  # without BOS
    masks = max(1, min(self._settings.max_tokens, free))
    masked = MaskedPrompt(
      np.append(ids_L, [tokenizer.MASK] * masks), continues=True
    )
    left_to_right.check_fits(
      prompt, masked.example, self._capacity, added='BOS and a mask'
    )
    return masked

  def limit(self, masked: MaskedPrompt) -> int:
    """Number of tokens to generate."""
    return masked.masks

  def beginning(self, prompt: str) -> str:
    """The prompt, if the generated text continues its text."""
    shown = not prompts.mark(prompt) and not left_to_right.reads_pairs(
      self._run
    )
    return prompt if shown else ''

  def batch(
    self,
    group: Sequence[MaskedPrompt],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[completion.Completion]:
    """See `completion.Completer`; yields all text at the end."""
    batch = self._mask_filler.rows(group)
    found = [[]] * len(group)
    if self._settings.candidates and not all(x.continues for x in group):
      found = self._mask_filler.candidates(group, batch)
    tokens_BxL = self._unmask(group, samples, batch)
    completions = []
    for row, masked in enumerate(group):
      ids = tokens_BxL[row, masked.places + 1].tolist()  # after BOS
      if masked.continues:
        completions.append(self._continued(ids))
        on_text(row, completions[-1].text)
      else:
        completions.append(self._mask_filler.fill(masked, ids, found[row]))
        on_text(row, completions[-1].shown())
    return completions

  def _unmask(self, group, samples, batch) -> np.ndarray:
    """Runs all steps; returns the ids [B, L]."""
    size, P = batch.predict_BxP.shape
    steps = self._settings.steps
    counts_B = [unmasking.counts(masked.masks, steps) for masked in group]
    counts_B += counts_B[:1] * (size - len(group))
    schedule_SxB = np.zeros((max(map(len, counts_B)), size), np.int32)
    masked_BxP = np.zeros((size, P), bool)
    for row, counts in enumerate(counts_B):
      schedule_SxB[: len(counts), row] = counts
      masked_BxP[row, : counts.sum()] = True
    names_Bx2 = completion.draw_names(
      [masked.example for masked in group], samples, size
    )
    # A Python int would have to fit an int32. The seed is None if unused.
    seed = np.uint32(self._settings.seed or 0)
    for count_B in schedule_SxB:
      tokens_BxL, masked_BxP = self._step(
        self._params,
        batch,
        masked_BxP,
        count_B,
        seed,
        names_Bx2,
        # Upper bound for these shapes, so that all steps share one program.
        K=int(unmasking.counts(P, steps)[0]),
      )
      # On the host, as in the first step; device arrays would be recompiled.
      masked_BxP = np.asarray(masked_BxP)
      batch = dataclasses.replace(batch, tokens_BxL=np.asarray(tokens_BxL))
    return batch.tokens_BxL

  def _continued(self, ids: list[int]) -> left_to_right.Continuation:
    text, dropped = prompts.splice(np.array(ids), [], self._tokenizer)
    complete = len(ids) == self._settings.max_tokens
    return left_to_right.Continuation(
      text=text,
      ids=tuple(ids),
      dropped_bytes=dropped,
      stop='max_tokens' if complete else 'context',
    )

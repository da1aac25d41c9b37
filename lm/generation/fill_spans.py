"""Fills spans: generates the text of sentinels and puts it into the prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm import errors, types
from lm.data import tokenizer as tokenizer_lib
from lm.generation import completion, left_to_right, prompts
from lm.training import loaded

# (id of a sentinel, ids of its span).
Pair = tuple[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt with sentinels.

  ids_L: int32, its ids with sentinels, without BOS.
  marks: the sentinels as written in the text, see `prompts.marks`.
  example: the prompt as the model reads it.
  """

  ids_L: np.ndarray
  marks: Sequence[str]
  example: types.Example


@dataclasses.dataclass(frozen=True)
class Spliced(left_to_right.Continuation):
  """The prompt with its spans filled in.

  pairs: generated sentinels, by name, and the text after each.
  missing: sentinels of the prompt that were not generated; the text keeps them.
  stray: number of ids generated before the first sentinel, which are dropped.
  """

  pairs: tuple[tuple[str, str], ...]
  missing: tuple[str, ...]
  stray: int

  def ending(self) -> str:
    """Reason why the text ended, and its defects."""
    text = ', end of the spans' if self.stop == 'end' else super().ending()
    if self.missing:
      text += f'; nothing for {", ".join(self.missing)}'
    if self.stray:
      text += f'; {self.stray} before the first sentinel dropped'
    return text

  def shown(self) -> str:
    """The text, followed by one line per span."""
    return '\n'.join([self.text, *(name + span for name, span in self.pairs)])


class SpanFiller(completion.Completer):
  """Generates `<extra_id_0>`, its span, `<extra_id_1>`, ..., until EOS.

  Decoding is not constrained: sentinels may be missing or out of order. Each
  span is put at the position of its sentinel in the prompt.
  """

  def __init__(self, run: loaded.LoadedModel):
    super().__init__(run.config.generate)
    self._tokenizer = run.tokenizer
    allowed_V = run.tokenizer.allowed_ids(end=True)
    allowed_V[tokenizer_lib.SENTINELS.start : tokenizer_lib.SENTINELS.stop] = (
      True
    )

    def read(prompt: str) -> types.Example:
      inputs = prompts.encode(prompt, self._tokenizer)
      return run.objective.filling(inputs, left_to_right.UNKNOWN)

    self._generator = left_to_right.Generator(run, read, allowed_V)

  def encode(self, prompt: str) -> Prompt:
    """Encodes a prompt with sentinels.

    Raises:
      UserError: there are no sentinels, they are not 0, 1, 2, ..., or the
        prompt does not fit the context.
    """
    ids_L = prompts.encode(prompt, self._tokenizer)
    found = ids_L[prompts.is_mark(ids_L)].tolist()
    if not found or found != list(tokenizer_lib.SENTINELS)[: len(found)]:
      names = [tokenizer_lib.SPECIAL_NAMES[i] for i in found]
      raise errors.UserError(
        f'the prompt has {", ".join(names) or "no sentinel"}; number the gaps '
        f'from {prompts.SENTINEL} on, in order: '
        f'{prompts.SENTINEL}, <extra_id_1>, ...'
      )
    marks = prompts.marks(prompt, self._tokenizer)
    return Prompt(ids_L, marks, self._generator.encode(prompt))

  def batch(
    self,
    group: Sequence[Prompt],
    samples: Sequence[int] | None = None,
    *,
    on_text: completion.OnText = lambda row, text: None,
  ) -> list[Spliced]:
    """See `completion.Completer`; yields all text at the end."""
    continued = self._generator.batch([x.example for x in group], samples)
    completions = [
      splice(prompt, one, self._tokenizer)
      for prompt, one in zip(group, continued, strict=True)
    ]
    for row, spliced in enumerate(completions):
      on_text(row, spliced.shown())
    return completions


def parse(ids: Sequence[int]) -> tuple[list[int], list[Pair]]:
  """Splits generated ids at sentinels: stray ids before them, and the spans.

  [310 S0 311 312 S1 313] -> [310], [(S0, (311, 312)), (S1, (313,))]
  """
  stray, pairs = [], []
  for i in ids:
    if i in tokenizer_lib.SENTINELS:
      pairs.append((i, ()))
    elif pairs:
      pairs[-1] = (pairs[-1][0], (*pairs[-1][1], i))
    else:
      stray.append(i)
  return stray, pairs


def splice(
  prompt: Prompt,
  continued: left_to_right.Continuation,
  tokenizer: tokenizer_lib.Tokenizer,
) -> Spliced:
  """Replaces the sentinels of a prompt by the generated spans.

  ids_L [310 S0 311 S1], completion [S0 312 S1 313 314] -> the text of
  [310 312 311 313 314]

  A sentinel that was not generated stays in the text; if one was generated
  twice, the first span counts. The sentinel that closes the last span, as in
  T5's targets of text that continues after it, has no span of its own.
  """
  wanted = prompt.ids_L[prompts.is_mark(prompt.ids_L)].tolist()
  stray, pairs = parse(continued.ids)
  found = {i: tokenizer.decode_bytes(span) for i, span in reversed(pairs)}
  fillings = [
    found.get(i, mark.encode())
    for i, mark in zip(wanted, prompt.marks, strict=True)
  ]
  text, dropped = prompts.splice(prompt.ids_L, fillings, tokenizer)
  names = tokenizer_lib.SPECIAL_NAMES
  return Spliced(
    text=text,
    ids=continued.ids,
    dropped_bytes=dropped,
    stop=continued.stop,
    pairs=tuple(
      (names[i], tokenizer.decode(span))
      for i, span in pairs
      if i in wanted or span
    ),
    missing=tuple(names[i] for i in wanted if i not in found),
    stray=len(stray),
  )

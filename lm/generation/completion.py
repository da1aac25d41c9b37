"""Base classes of the generation strategies: completers and completions."""

import abc
import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm import field, types
from lm.data import packing
from lm.generation import sampling

# Callback of `batch`: (index of a prompt in its group, new text of it).
OnText = Callable[[int, str], None]

FIELDS = field.section(
  seed=field.Field(
    None,
    'Random seed for sampling.',
    kind=int,
    least=0,
    most=2**32 - 1,
    where_read=0,
    unread=sampling.unread_where_all_is_the_same,
  ),
  samples_per_prompt=field.Field(
    None,
    'Samples of each prompt, where they can differ.',
    kind=int,
    least=1,
    where_read=1,
    neutral=1,
    unread=sampling.unread_where_all_is_the_same,
  ),
  batch_size=field.Field(
    None,
    'Completions decoded together; with beam search each has `beams` rows of '
    'its own.',
    kind=int,
    least=1,
    where_read=8,
  ),
)


@dataclasses.dataclass(frozen=True)
class Completion:
  """Text generated for a prompt.

  text: the generated text; some strategies include the prompt.
  ids: generated ids, without the final EOS.
  dropped_bytes: number of bytes dropped because they form no character.
  """

  text: str
  ids: tuple[int, ...]
  dropped_bytes: int

  @property
  def tokens(self) -> int:
    """Number of generated ids."""
    return len(self.ids)

  def note(self) -> str:
    """Describes how the text ended and what was dropped."""
    dropped = ''
    if self.dropped_bytes:
      dropped = f'; {self.dropped_bytes} byte(s) that form no character dropped'
    return f'{self.tokens} tokens{self.ending()}{dropped}'

  def ending(self) -> str:
    """Reason why the text ended."""
    return ''

  def shown(self) -> str:
    """The text, with further results if there are any."""
    return self.text


class Completer(abc.ABC):
  """A generation strategy for a loaded model; compiles once per batch size.

  A sample depends only on the model, `generate.seed`, the prompt and the number
  of the sample, not on the rest of the batch.
  """

  def __init__(self, settings):
    """Stores the settings, the section `generate` of a config."""
    self._settings = settings

  @property
  def batch_size(self) -> int:
    """Maximum number of rows in a batch."""
    return self._settings.batch_size

  @property
  def samples_per_prompt(self) -> int:
    """Number of completions per prompt; 1 if all would be equal."""
    return self._settings.samples_per_prompt or 1

  @abc.abstractmethod
  def encode(self, prompt: str) -> Any:
    """Encodes a prompt for `batch`.

    Raises:
      UserError: the strategy does not accept the prompt.
    """

  @abc.abstractmethod
  def batch(
    self,
    group: Sequence[Any],
    samples: Sequence[int] | None = None,
    *,
    on_text: OnText = lambda row, text: None,
  ) -> list[Completion]:
    """Completes one batch of encoded prompts.

    Args:
      group: at most `batch_size` encoded prompts.
      samples: number of each prompt's sample, on which its random draws depend
        (default: 0 for all).
      on_text: called with the index of a prompt in the group and new text to be
        shown after `beginning`, as soon as it is generated.
    """

  def beginning(self, prompt: str) -> str:
    """Text shown before the completion of a prompt."""
    del prompt
    return ''

  def __call__(self, prompts: Sequence[str]) -> list[Completion]:
    """Completes each prompt `samples_per_prompt` times, in batches.

    Returns:
      All samples of the first prompt, then all of the second, and so on.
    """
    encoded = [self.encode(prompt) for prompt in prompts]
    rows = list(itertools.product(encoded, range(self.samples_per_prompt)))
    completions = []
    for first in range(0, len(rows), self.batch_size):
      group, samples = zip(*rows[first : first + self.batch_size], strict=True)
      completions += self.batch(group, samples)
    return completions


def make_batch(
  examples: Sequence[types.Example],
  size: int,
  capacity: types.Size,
  arrays: Sequence[str],
) -> types.Batch:
  """Builds a batch with one example per row, padded with copies of the first.

  Args:
    examples: at most `size` examples.
    size: number of rows.
    capacity: capacity of a row.
    arrays: names of optional arrays, see `types.Objective`.
  """
  rows = [packing.pack([example], capacity, arrays) for example in examples]
  return packing.stack([*rows, *[rows[0]] * (size - len(rows))])


def draw_names(
  examples: Sequence[types.Example],
  samples: Sequence[int] | None,
  size: int,
) -> np.ndarray:
  """Numbers that identify the random draws of each row; uint32 [B, 2]."""
  names = [
    (zlib.crc32(_read(example).astype('<i4').tobytes()), sample)
    for example, sample in zip(
      examples, samples or [0] * len(examples), strict=True
    )
  ]
  return np.array([*names, *names[:1] * (size - len(names))], np.uint32)


def _read(example: types.Example) -> np.ndarray:
  if example.encoder_tokens_M is None:
    return example.tokens_L
  return np.concatenate([example.encoder_tokens_M, example.tokens_L])

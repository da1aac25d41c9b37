"""What the ways to generate have in common: prompts in batches, and results."""

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

# What `batch` tells a prompt's place in its group and new text of it.
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
  """What was generated for a prompt.

  text: what a reader wants; what of the prompt it holds is up to the way.
  ids: what was drawn for it, without the EOS that ends it.
  dropped_bytes: bytes that formed no character and were left out.
  """

  text: str
  ids: tuple[int, ...]
  dropped_bytes: int

  @property
  def tokens(self) -> int:
    """Ids that were drawn."""
    return len(self.ids)

  def note(self) -> str:
    """How it ended and what was left out, for people."""
    dropped = ''
    if self.dropped_bytes:
      dropped = (
        f'; {self.dropped_bytes} byte(s) that form no character left out'
      )
    return f'{self.tokens} tokens{self.ending()}{dropped}'

  def ending(self) -> str:
    """Why there is no more of it."""
    return ''

  def shown(self) -> str:
    """The text with all that there is to see besides."""
    return self.text


class Completer(abc.ABC):
  """A way to generate; compiles once for each size of a batch.

  A sample is a function of the model, `generate.seed`, the prompt and the
  number of the sample, and not of what is generated beside it.
  """

  def __init__(self, settings):
    """`settings` are the section `generate` of a config."""
    self._settings = settings

  @property
  def batch_size(self) -> int:
    """Prompts that are read together."""
    return self._settings.batch_size

  @property
  def samples_per_prompt(self) -> int:
    """Completions of each prompt; one where all would be the same."""
    return self._settings.samples_per_prompt or 1

  @abc.abstractmethod
  def encode(self, prompt: str) -> Any:
    """What `batch` reads of a prompt.

    Raises:
      UserError: nothing can be generated for such a prompt.
    """

  @abc.abstractmethod
  def batch(
    self,
    group: Sequence[Any],
    samples: Sequence[int] | None = None,
    *,
    on_text: OnText = lambda row, text: None,
  ) -> list[Completion]:
    """Completes one batch of encoded prompts together.

    Args:
      group: at most `batch_size` encoded prompts.
      samples: the number of each one's sample, on which its draws depend;
        0 for all where left out.
      on_text: is given a prompt's place in the group and text to be shown
        behind `beginning`, as it comes.
    """

  def beginning(self, prompt: str) -> str:
    """What is shown of a prompt before its completion comes."""
    del prompt
    return ''

  def __call__(self, prompts: Sequence[str]) -> list[Completion]:
    """Completes each prompt `samples_per_prompt` times, in batches.

    Returns:
      All samples of the first prompt, then those of the second, ...
    """
    encoded = [self.encode(prompt) for prompt in prompts]
    rows = list(itertools.product(encoded, range(self.samples_per_prompt)))
    completions = []
    for first in range(0, len(rows), self.batch_size):
      group, samples = zip(*rows[first : first + self.batch_size], strict=True)
      completions += self.batch(group, samples)
    return completions


def rows_of(
  examples: Sequence[types.Example],
  size: int,
  capacity: types.Size,
  arrays: Sequence[str],
) -> types.Batch:
  """A batch with an example a row; after the last, the first one again.

  Args:
    size: rows of the batch.
    arrays: see `types.Objective`.
  """
  rows = [packing.pack([example], capacity, arrays) for example in examples]
  return packing.stack([*rows, *[rows[0]] * (size - len(rows))])


def draw_names(
  examples: Sequence[types.Example],
  samples: Sequence[int] | None,
  size: int,
) -> np.ndarray:
  """What tells the draws of each row from those of others; uint32 [B, 2]."""
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

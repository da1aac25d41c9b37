"""Assignment of documents to splits, without duplicates.

It depends on digests of the texts that `collect.py` has cleaned; pairs with the
same source text stay together.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from lm import errors, field
from lm.data import collect, duplicates, sources as sources_lib, tally

# In place of a split, for documents that are dropped.
_DUPLICATE, _NEAR_DUPLICATE = -2, -3
_REASONS = {_DUPLICATE: 'duplicate', _NEAR_DUPLICATE: 'near duplicate'}


def _unread_of_fixed(config, value) -> str | None:
  del value
  names = sources_lib.names(config.data)
  if any(name not in sources_lib.FIXED_SPLITS for name in names):
    return None
  return (
    f'is not read: data.source={names[0]!r} fixes what is held out; leave it '
    'out'
  )


FIELDS = field.section(
  held_out_fraction=field.Field(
    0.05,
    'Share of the documents for validation and for test each, where the '
    'source fixes no splits.',
    least=0,
    most=0.4,
    unread=_unread_of_fixed,
  ),
  held_out_bytes=field.Field(
    8 << 20,
    'Maximum bytes of text for validation and for test each, where the source '
    'fixes no splits; the sources of a mixture share them evenly.',
    least=1,
    unread=_unread_of_fixed,
  ),
)


def assign(
  collected: collect.Collected,
  config_data,
  sources: Sequence[sources_lib.Source],
  folder: pathlib.Path,
  counts: tally.Tally,
) -> np.ndarray:
  """Index into collect.SPLITS by document, below 0 for a duplicate; int8 [D].

  Of equal texts, and of near duplicates, the one whose source fixes its split
  is kept, test before validation before train, else the first.
  If a source fixes no split, its documents are taken in the order of their
  digests, so that the split depends on the texts and not on names or order:
  first for test, then for validation, at least one for each. No text has a near
  duplicate in another split, since of two near duplicates one is dropped; if
  `near_duplicates` is 0, no text is equal to one in another split.
  Pairs with equal source texts are in the same split, also across the entries
  of a mixture, of which the first decides: pairs are counted by their different
  source texts.

  Raises:
    UserError: a source has too little text for three splits.
  """
  split_D = np.full(len(collected.size), _DUPLICATE, np.int8)
  priority = np.lexsort((np.arange(len(split_D)), -collected.fixed))
  _, first = np.unique(_view(collected.digest)[priority], return_index=True)
  by_digest = priority[first]
  twin = similarity = None
  if collected.sketch is not None:
    unique = priority[np.sort(first)]
    twin, similarity = duplicates.find(
      collected.sketch, unique, config_data.near_duplicates
    )
    split_D[twin >= 0] = _NEAR_DUPLICATE
    by_digest = by_digest[twin[by_digest] < 0]
  split_D[by_digest] = collected.fixed[by_digest]
  # Groups are numbered in the order of their digests; nearly always each
  # document is one.
  _, group_D = np.unique(_view(collected.group), return_inverse=True)
  by_digest = by_digest[np.argsort(group_D[by_digest], kind='stable')]
  split_G = np.full(group_D.max(initial=0) + 1, collect.FREE, np.int8)
  of_source = collected.source[by_digest]
  for number, source in enumerate(sources):
    members = by_digest[of_source == number]
    if not len(members):
      of_all = split_D[collected.source == number]
      raise _no_text(source, config_data, counts, of_all)
    free = members[split_D[members] == collect.FREE]
    split_D[free] = split_G[group_D[free]]
    rest = free[split_D[free] == collect.FREE]
    if len(rest) < len(free) and len(np.unique(group_D[rest])) < 3:
      # Too few groups are left to be split, besides those that an earlier
      # source has assigned.
      split_D[rest] = collect.SPLITS.index('train')
      rest = rest[:0]
    _split_free(
      source,
      rest,
      group_D,
      collected.size,
      split_D,
      config_data,
      config_data.held_out_bytes // len(sources),
    )
    split_G[group_D[members]] = split_D[members]
  _count(collected, split_D, twin, similarity, sources, folder, counts)
  return split_D


def _view(digest_Dx2: np.ndarray) -> np.ndarray:
  """Each digest as one value."""
  return np.ascontiguousarray(digest_Dx2).view('<u8,<u8').reshape(-1)


def _no_text(source, config_data, counts, split_D) -> errors.UserError:
  dropped = counts.as_dict()[source.name]['dropped']
  numbers = {reason: amount['documents'] for reason, amount in dropped.items()}
  for code, reason in _REASONS.items():
    if number := int((split_D == code).sum()):
      numbers[reason] = number
  reasons = ', '.join(f'{number} {r}' for r, number in numbers.items())
  where = f'data.sources: {source.name!r}'
  if not config_data.sources:
    where = f'data.source={source.name!r}'
    if config_data.path:
      where += f' with data.path={config_data.path!r}'
  return errors.UserError(
    f'{where} holds no text that is kept (dropped: {reasons or "none"}); give '
    "more, or turn cleaning off with --config.data.cleaning.rules='()'"
  )


def _split_free(
  source, free, group_D, size_D, split_D, config_data, held_out_bytes
):
  """Splits the documents `free`, given in the order of their groups."""
  if not len(free):
    return
  starts = np.flatnonzero(np.diff(group_D[free], prepend=-1))
  size_G = np.add.reduceat(size_D[free], starts)
  bounds = [*starts.tolist(), len(free)]
  if len(starts) < 3:
    total = int(size_D[free].sum())
    if config_data.target_column is not None:
      raise errors.UserError(
        f'{_entry(source, config_data)}pairs with {len(starts)} different '
        'source(s) cannot be split into train, validation and test: three are '
        'needed; give more'
      )
    cut = f'--config.data.document_bytes={max(1024, total // 20)}'
    raise errors.UserError(
      f'{_entry(source, config_data)}{len(free)} document(s) of {total} bytes '
      'cannot be split into train, validation and test: three are needed; give '
      'more' + (f', or cut them with {cut}' if total > 3 * 1024 else '')
    )
  wanted = max(1, round(config_data.held_out_fraction * len(starts)))
  wanted = min(wanted, (len(starts) - 1) // 2)  # At least one is for training.
  split_D[free] = collect.SPLITS.index('train')
  taken = 0
  for name in ('test', 'validation'):
    fits = np.cumsum(size_G[taken : taken + wanted]) <= held_out_bytes
    number = max(1, int(fits.sum()))
    rest = free[bounds[taken] : bounds[taken + number]]
    split_D[rest] = collect.SPLITS.index(name)
    taken += number


def _entry(source, config_data) -> str:
  """The beginning of a message if there are several sources, else ''."""
  return f'data.sources: {source.name!r}: ' if config_data.sources else ''


def _count(collected, split_D, twin, similarity, sources, folder, counts):
  """Adds the kept documents and the dropped duplicates to `counts`."""
  for number, source in enumerate(sources):
    kept = (split_D >= 0) & (collected.source == number)
    size, characters = collected.size[kept], collected.characters[kept]
    counts.keep(
      source.name, int(size.sum()), int(characters.sum()), int(kept.sum())
    )
  with open(folder / 'documents.jsonl', 'rb') as spool:
    for number in np.flatnonzero(split_D < 0).tolist():
      reason = _REASONS[int(split_D[number])]
      name = sources[collected.source[number]].name
      example = None
      if counts.wants_example(name, reason):
        document = _read(spool, collected.offset[number])
        sides = [document[x] for x in ('text', 'target') if x in document]
        example = {'name': document['name'], 'text': collect.excerpt(sides)}
        if split_D[number] == _NEAR_DUPLICATE:
          other = _read(spool, collected.offset[twin[number]])
          share = similarity[number]
          example['detail'] = f'{share:.2f} like {other["name"]}'
      size, characters = collected.size[number], collected.characters[number]
      counts.drop(name, reason, int(size), int(characters), example)


def _read(spool, offset: int) -> dict[str, str]:
  spool.seek(offset)
  return json.loads(spool.readline())

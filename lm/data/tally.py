"""Counts of the text read, kept and dropped, by source and by reason."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

# Maximum number of dropped documents shown per source and reason.
EXAMPLES = 3
# Maximum length of an example's text, in characters.
EXCERPT = 160


@dataclasses.dataclass
class Amount:
  """Documents, bytes of UTF-8 and characters."""

  documents: int = 0
  bytes: int = 0
  characters: int = 0

  def add(self, size: int, characters: int, documents: int = 1):
    """Adds documents of `size` bytes and `characters` characters in all."""
    self.documents += documents
    self.bytes += size
    self.characters += characters


@dataclasses.dataclass
class Dropped(Amount):
  """Documents dropped for one reason, the first of them as examples."""

  examples: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Ignored:
  """Files that were not read, the first of them by name."""

  files: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)


class Tally:
  """Counts for each source.

  Of documents, read = kept + dropped. Bytes and characters that cleaning
  removed from a document without dropping it are in neither, even if the
  document was later dropped as a duplicate.
  """

  def __init__(self, sources: Iterable[str]):
    self._read = {name: Amount() for name in sources}
    self._kept = {name: Amount() for name in self._read}
    self._dropped = {name: {} for name in self._read}
    self._changed = {name: collections.Counter() for name in self._read}
    self._ignored = {name: Ignored() for name in self._read}

  def ignore(self, source: str, names: Sequence[str]):
    """Records files that are of no known format."""
    self._ignored[source] = Ignored(len(names), list(names[:EXAMPLES]))

  def read(self, source: str, size: int, characters: int):
    """Counts a document as its source yielded it."""
    self._read[source].add(size, characters)

  def keep(self, source: str, size: int, characters: int, documents: int = 1):
    """Counts kept documents, with the sizes that cleaning left."""
    self._kept[source].add(size, characters, documents)

  def change(self, source: str, rules: Iterable[str]):
    """Counts the rules that changed a document."""
    self._changed[source].update(rules)

  def drop(
    self,
    source: str,
    reason: str,
    size: int,
    characters: int,
    example: dict[str, Any] | None = None,
  ):
    """Counts a dropped document; stores `example` up to a limit of EXAMPLES."""
    dropped = self._dropped[source].setdefault(reason, Dropped())
    dropped.add(size, characters)
    if example is not None and len(dropped.examples) < EXAMPLES:
      dropped.examples.append(example)

  def wants_example(self, source: str, reason: str) -> bool:
    """Whether `drop` would store an example for this source and reason."""
    dropped = self._dropped[source].get(reason)
    return dropped is None or len(dropped.examples) < EXAMPLES

  def as_dict(self) -> dict[str, Any]:
    """{source: {'ignored', 'read', 'kept', 'changed', 'dropped': {...}}}."""
    return {
      name: {
        'ignored': dataclasses.asdict(self._ignored[name]),
        'read': dataclasses.asdict(self._read[name]),
        'kept': dataclasses.asdict(self._kept[name]),
        'changed': dict(sorted(self._changed[name].items())),
        'dropped': {
          reason: dataclasses.asdict(amount)
          for reason, amount in sorted(self._dropped[name].items())
        },
      }
      for name in self._read
    }


def reasons(sources: dict[str, Any]) -> dict[str, int]:
  """Documents dropped by reason, over all sources of an `as_dict`."""
  total = collections.Counter()
  for counts in sources.values():
    for reason, amount in counts['dropped'].items():
      total[reason] += amount['documents']
  return dict(sorted(total.items()))


def excerpt(text: str) -> str:
  """The beginning of a text, on one line and without control characters."""
  return printable(' '.join(text[: 2 * EXCERPT].split())[:EXCERPT])


def describe(sources: dict[str, Any]) -> list[str]:
  """Describes an `as_dict` in lines for a terminal."""
  lines = []
  for name, counts in sources.items():
    if number := counts['ignored']['files']:
      names = counts['ignored']['examples']
      names = names + ['...'] * (number > len(names))
      line = f'  {name}, not read: {number:,} files of no known format '
      lines.append(printable(line + f'({", ".join(names)})'))
    lines.append(_amount(f'  {name}, read', counts['read']))
    lines.append(_amount(f'  {name}, kept', counts['kept']))
    for rule, documents in counts['changed'].items():
      lines.append(f'    changed by {rule:<21}{documents:>10,} documents')
    for reason, amount in counts['dropped'].items():
      lines.append(_amount(f'    {reason}', amount))
      lines += [f'      {_example(e)}' for e in amount['examples']]
  return lines


def _amount(label: str, amount: dict[str, Any]) -> str:
  return (
    f'{label:<36}{amount["documents"]:>10,} documents'
    f'{amount["bytes"]:>15,} bytes{amount["characters"]:>15,} characters'
  )


def _example(example: dict[str, Any]) -> str:
  detail = f' ({example["detail"]})' if example.get('detail') else ''
  text = f': {example["text"]}' if example.get('text') else ''
  return printable(f'{example["name"]}{detail}{text}'[:120])


def printable(text: str) -> str:
  """The text with U+FFFD for characters that a terminal might obey."""
  return ''.join(c if c.isprintable() else '\ufffd' for c in text)

"""Diversity, repetition and length of texts.

Texts are split into words by `lm/data/text/words.py`, without the spaces before
them: runs of letters and digits, runs of punctuation, and single characters in
scripts without spaces between words, such as Chinese. Line ends are ignored.
Words are case-sensitive.
"""

from collections.abc import Iterable, Mapping

from lm.data.text import words

REPETITION = 4

# Name of a figure -> label and meaning in reports.
NAMES = {
  'distinct_1': ('distinct-1', 'Distinct words, as a share of all words.'),
  'distinct_2': (
    'distinct-2',
    'Distinct pairs of words, as a share of all words.',
  ),
  'distinct_3': (
    'distinct-3',
    'Distinct triples of words, as a share of all words.',
  ),
  'repetition_4': (
    'repetition-4',
    'Share of 4-grams of words that repeat one of their text; mean over texts.',
  ),
  'mean_words': ('words', 'Mean length in words.'),
  'mean_tokens': ('tokens', 'Mean length in tokens.'),
  'mean_bytes': ('bytes', 'Mean length in bytes.'),
}


def split(text: str) -> list[str]:
  """Splits a text into words.

  'Big dogs, big\\n我们' -> ['Big', 'dogs', ',', 'big', '我', '们']
  """
  stripped = (word.strip() for word in words.split(text))
  return [word for word in stripped if word]


def distinct(texts: Iterable[str], n: int) -> float | None:
  """Distinct-n (Li et al. 2016), over all texts together.

  The number of distinct n-grams divided by the number of words. It falls with
  the amount of text: only texts of the same size can be compared.

  n 1, ['a b a', 'a c'] -> a, b, c of 5 words: 0.6
  n 2, ['a b a', 'a c'] -> ab, ba, ac of 5 words: 0.6

  Returns:
    None if there are no words.
  """
  texts_words = [split(text) for text in texts]
  total = sum(map(len, texts_words))
  found = {gram for one in texts_words for gram in _ngrams(one, n)}
  return len(found) / total if total else None


def repetition(texts: Iterable[str], n: int = REPETITION) -> float | None:
  """Seq-rep-n (Welleck et al. 2020), averaged over texts.

  1 - distinct n-grams / n-grams, for each text alone.

  n 2, ['a b a b', 'a b c'] -> 1 - 2/3 and 1 - 2/2: 1/6

  Returns:
    None if no text has n words.
  """
  shares = []
  for text in texts:
    grams = _ngrams(split(text), n)
    if grams:
      shares.append(1 - len(set(grams)) / len(grams))
  return sum(shares) / len(shares) if shares else None


def diversity(texts: Iterable[str]) -> dict[str, float]:
  """Distinct-1 to distinct-3, and repetition; undefined ones are absent."""
  texts = list(texts)
  values = {f'distinct_{n}': distinct(texts, n) for n in (1, 2, 3)}
  values[f'repetition_{REPETITION}'] = repetition(texts)
  return {name: value for name, value in values.items() if value is not None}


def lengths(texts: Iterable[str], tokens: Iterable[int]) -> dict[str, float]:
  """Mean lengths in words, tokens and bytes.

  ['a b', '我'], [4, 2] -> 1.5 words, 3 tokens, 3 bytes
  """
  texts, tokens = list(texts), list(tokens)
  return {
    'mean_words': sum(len(split(text)) for text in texts) / len(texts),
    'mean_tokens': sum(tokens) / len(tokens),
    'mean_bytes': sum(len(text.encode()) for text in texts) / len(texts),
  }


def cell(name: str, value: float | None) -> str:
  """Formats a figure of `NAMES`: shares as 0.512, lengths as 91.5."""
  if value is None:
    return '–'
  return f'{value:,.1f}' if name.startswith('mean') else f'{value:.3f}'


def table(figures: Mapping[str, float]) -> str:
  """Formats the figures of samples and held-out text for a terminal."""
  lines = [
    f'{figures["samples_count"]} sample(s) beside the true continuations of '
    'the test documents',
    f'  {"samples":>8}  {"held-out":>8}',
  ]
  for name, (label, _) in NAMES.items():
    both = [figures.get(f'{text}_{name}') for text in ('samples', 'held_out')]
    if any(value is not None for value in both):
      cells = [cell(name, value) for value in both]
      lines.append(f'  {cells[0]:>8}  {cells[1]:>8}  {label}')
  return '\n'.join(lines)


def _ngrams(items: list[str], n: int) -> list[tuple[str, ...]]:
  return list(zip(*(items[i:] for i in range(n)), strict=False))

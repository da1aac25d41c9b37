"""What a finished run writes: text from held-out documents, and its figures.

Of pairs the sources are prompts, and the targets are what should follow.
"""

import json
import pathlib

from lm import field, types
from lm.data import tokenizer as tokenizer_lib
from lm.data.text import words
from lm.generation import diversity, prompts as prompts_lib, strategies
from lm.runtime import files, hosts
from lm.training import loaded

# Characters of a held-out document that samples continue.
_PROMPT = 120
# Of the words of an opening, those that are masked, and those that a sentinel
# stands for: so many behind every so many.
_MASKED, _SPAN = (1, 5), (2, 6)

FIELDS = field.section(
  samples=field.Field(
    8,
    'Held-out documents that are continued, or filled, when training ends.',
    least=0,
  ),
)


def write(
  run: loaded.LoadedModel, workdir: pathlib.Path
) -> tuple[str, dict[str, float]]:
  """Generates from test documents into WORKDIR/samples.txt.

  What the objective can do first of what it can: goes on from their beginnings,
  or finds words that were taken out of them.

  Returns:
    The first sample, for a terminal, and where text goes on, the figures of the
    first sample of each document beside those of the document's own text there;
    '' and none where `generate.samples` is 0, the documents are empty or the
    objective generates nothing.
  """
  if not run.objective.generates:
    return '', {}
  way = run.objective.generates[0]
  pairs = openings(
    workdir / 'held_out' / 'test.jsonl',
    run.config.generate.samples,
    run.tokenizer,
    most_tokens=_most_tokens(run.objective.capacity),
  )
  # Marks that a document has by itself are none.
  pairs = [pair for pair in pairs if not prompts_lib.is_marked(pair[0])]
  if way in _MARKED:
    pairs = [(_MARKED[way](prompt, run.tokenizer), '') for prompt, _ in pairs]
    pairs = [pair for pair in pairs if prompts_lib.is_marked(pair[0])]
  if not pairs:
    return '', {}
  prompts = [prompt for prompt, _ in pairs]
  completer = strategies.STRATEGIES[way].make(run)
  completions = completer(prompts)
  continues, each = (
    strategies.STRATEGIES[way].continues,
    completer.samples_per_prompt,
  )
  texts = [
    _show(run.config, *pairs[i // each], one.shown(), continues=continues)
    for i, one in enumerate(completions)
  ]
  blocks = [
    f'=== step {run.step}, sample {i} ===\n{text}\n'
    for i, text in enumerate(texts, 1)
  ]
  if hosts.is_first():
    files.write(workdir / 'samples.txt', '\n'.join(blocks))
  if not continues:
    return texts[0], {}
  limits = [completer.limit(completer.encode(prompt)) for prompt in prompts]
  return texts[0], _figures(run, pairs, limits, completions[::each])


def _show(
  config, prompt: str, truth: str, text: str, *, continues: bool
) -> str:
  """A sample; of pairs the true target stands beside it."""
  if config.data.target_column is not None and truth:
    return f'{prompt}\n[generated] {text}\n[true] {truth}'
  return f'{prompt}[...]{text}' if continues else f'{prompt}\n[...]\n{text}'


def _most_tokens(capacity: types.Size) -> int:
  """Of an opening: half of the context is left to the continuation."""
  if capacity.encoder_tokens:
    return capacity.encoder_tokens - 2  # BOS, and perhaps a mode or SEP
  return capacity.tokens // 2 - 1


def mask_words(text: str, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Some words, each replaced by as many [MASK] as it has tokens.

  'a b c d e f g' -> 'a b c d e [MASK] g'
  """
  return _mark_words(
    text,
    *_MASKED,
    lambda number, words: (
      prompts_lib.MASK
      * max(1, len(tokenizer.encode(words)) - _rest(words, tokenizer))
    ),
  )


def cut_spans(text: str, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Some pairs of words, each replaced by a sentinel.

  'a b c d e f g h i' -> 'a b c d e f <extra_id_0> i'
  """
  del tokenizer
  return _mark_words(text, *_SPAN, lambda number, words: _sentinel(number))


# Way to generate -> what makes a prompt for it of an opening.
_MARKED = {'masks': mask_words, 'spans': cut_spans}


def _rest(text: str, tokenizer) -> int:
  """Tokens of the blanks before a word that stay where it is masked."""
  blanks = text[: len(text) - len(text.lstrip())]
  return len(prompts_lib.encode(blanks + prompts_lib.MASK, tokenizer)) - 1


def _sentinel(number: int) -> str:
  return tokenizer_lib.SPECIAL_NAMES[tokenizer_lib.SENTINELS[number]]


def _mark_words(text: str, count: int, gap: int, mark) -> str:
  """Replaces `count` words behind every `gap` by `mark(number, words)`.

  Of a text of few words, the last ones. Blanks before them stay.
  """
  units = words.split(text)
  first = max(0, min(gap, len(units) - count))
  parts, done, number = [], 0, 0
  for start in range(first, len(units), count + gap):
    taken = ''.join(units[start : start + count])
    if not taken.strip() or '\n' in taken:
      continue
    blanks = taken[: len(taken) - len(taken.lstrip())]
    parts += [*units[done:start], blanks, mark(number, taken)]
    done, number = start + count, number + 1
  return ''.join([*parts, *units[done:]])


def openings(
  path: pathlib.Path,
  count: int,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  most_tokens: int,
) -> list[tuple[str, str]]:
  """Beginnings of documents, to be continued, and what follows; whole pairs.

  The documents are spread evenly over the file, in which the sources of a
  mixture follow one another. Of each about `_PROMPT` characters, to the end of
  a word where one ends in their second half. Of pairs, those whose source has
  more than `most_tokens` are left out.
  """
  with open(path, encoding='utf-8', newline='\n') as f:
    lines = f.readlines()
  number = min(count, len(lines))
  chosen = [lines[i * len(lines) // number] for i in range(number)]
  documents = [json.loads(line) for line in chosen]
  pairs = []
  for document in documents:
    text = document['text']
    if 'target' in document:
      if len(tokenizer.encode(text)) <= most_tokens:
        pairs.append((text, document['target']))
      continue
    text = text.lstrip()
    limit = min(_PROMPT, len(text))
    cut = text.rfind(' ', limit // 2, limit)
    prompt = text[: cut if cut > 0 else limit]
    while prompt and len(tokenizer.encode(prompt)) > most_tokens:
      prompt = prompt[: len(prompt) * 3 // 4]
    pairs.append((prompt, text[len(prompt) :]))
  return pairs


def _figures(run, pairs, limits, completions) -> dict[str, float]:
  """`samples_NAME` and `held_out_NAME`, see `text_figures.NAMES`.

  Diversity and repetition depend on how much text there is: the held-out text
  is cut to the tokens of its sample. Its length is what the same limit leaves.
  """
  tokenizer = run.tokenizer
  most_bytes = int(tokenizer.byte_lengths_V.max())
  truths, matched = [], []
  for (_, rest), limit, completion in zip(
    pairs, limits, completions, strict=True
  ):
    ids = tokenizer.encode(rest[: limit * most_bytes])[:limit]
    truths.append(ids)
    matched.append(tokenizer.decode(ids[: completion.tokens]))
  texts = [completion.text for completion in completions]
  figures = {'samples_count': len(texts)}
  of_samples = {
    **diversity.diversity(texts),
    **diversity.lengths(texts, [c.tokens for c in completions]),
  }
  of_truths = {
    **diversity.diversity(matched),
    **diversity.lengths(map(tokenizer.decode, truths), map(len, truths)),
  }
  for name in diversity.NAMES:
    for whose, values in (('samples', of_samples), ('held_out', of_truths)):
      if name in values:
        figures[f'{whose}_{name}'] = values[name]
  return figures

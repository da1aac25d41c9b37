"""Samples of a finished run, prompted by held-out documents, and their figures.

If the documents are pairs, the sources are the prompts, and the targets are the
true continuations.
"""

import json
import pathlib

from lm import field, types
from lm.data import tokenizer as tokenizer_lib
from lm.data.text import words
from lm.generation import diversity, prompts as prompts_lib, strategies
from lm.runtime import files, hosts
from lm.training import loaded

# Maximum number of characters of a prompt.
_PROMPT = 120
# (words replaced, words kept before them) in prompts with masks or sentinels.
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
  """Generates samples from test documents into WORKDIR/samples.txt.

  The first strategy of the objective is used: it continues the beginnings of
  the documents, or fills words removed from them.

  Returns:
    The first sample, for a terminal; and, if the strategy continues text, the
    figures of the first sample of each document and of its true continuation.
    ('', {}) if `generate.samples` is 0, the documents are empty or the
    objective generates nothing.
  """
  if not run.objective.generates:
    return '', {}
  name = run.objective.generates[0]
  strategy = strategies.STRATEGIES[name]
  pairs = openings(
    workdir / 'held_out' / 'test.jsonl',
    run.config.generate.samples,
    run.tokenizer,
    max_tokens=_max_prompt_tokens(run.objective.capacity),
  )
  # Documents with marks of their own are skipped.
  pairs = [pair for pair in pairs if not prompts_lib.is_marked(pair[0])]
  if name in _MARKED:
    pairs = [(_MARKED[name](prompt, run.tokenizer), '') for prompt, _ in pairs]
    pairs = [pair for pair in pairs if prompts_lib.is_marked(pair[0])]
  if not pairs:
    return '', {}
  prompts = [prompt for prompt, _ in pairs]
  completer = strategy.make(run)
  completions = completer(prompts)
  continues, each = strategy.continues, completer.samples_per_prompt
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
  """Formats a sample; for a pair, the true target follows it."""
  if config.data.target_column is not None and truth:
    return f'{prompt}\n[generated] {text}\n[true] {truth}'
  return f'{prompt}[...]{text}' if continues else f'{prompt}\n[...]\n{text}'


def _max_prompt_tokens(capacity: types.Size) -> int:
  """Maximum number of tokens of a prompt: half of a decoder's context."""
  if capacity.encoder_tokens:
    return capacity.encoder_tokens - 2  # BOS, and perhaps a mode or SEP
  return capacity.tokens // 2 - 1


def mask_words(text: str, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Replaces some words, each by as many [MASK] as it has tokens.

  'a b c d e f g' -> 'a b c d e [MASK] g'
  """
  return _mark_words(
    text,
    *_MASKED,
    lambda number, words: (
      prompts_lib.MASK
      * max(1, len(tokenizer.encode(words)) - _space_tokens(words, tokenizer))
    ),
  )


def cut_spans(text: str, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Replaces some pairs of words, each by a sentinel.

  'a b c d e f g h i' -> 'a b c d e f <extra_id_0> i'
  """
  del tokenizer
  return _mark_words(text, *_SPAN, lambda number, words: _sentinel(number))


# Strategy -> function that marks a text as a prompt for it.
_MARKED = {'masks': mask_words, 'spans': cut_spans}


def _space_tokens(text: str, tokenizer) -> int:
  """Number of tokens of spaces before a word, which masks do not replace."""
  spaces = text[: len(text) - len(text.lstrip())]
  return len(prompts_lib.encode(spaces + prompts_lib.MASK, tokenizer)) - 1


def _sentinel(number: int) -> str:
  return tokenizer_lib.SPECIAL_NAMES[tokenizer_lib.SENTINELS[number]]


def _mark_words(text: str, count: int, gap: int, mark) -> str:
  """Replaces `count` words after every `gap` words by `mark(number, words)`.

  In a text of few words, replaces the last ones. Spaces before them are kept.
  """
  split = words.split(text)
  first = max(0, min(gap, len(split) - count))
  parts, done, number = [], 0, 0
  for start in range(first, len(split), count + gap):
    removed = ''.join(split[start : start + count])
    if not removed.strip() or '\n' in removed:
      continue
    spaces = removed[: len(removed) - len(removed.lstrip())]
    parts += [*split[done:start], spaces, mark(number, removed)]
    done, number = start + count, number + 1
  return ''.join([*parts, *split[done:]])


def openings(
  path: pathlib.Path,
  count: int,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  max_tokens: int,
) -> list[tuple[str, str]]:
  """Returns (prompt, true continuation) of some documents, or (source, target).

  The documents are evenly spaced in the file, where the sources of a mixture
  follow one another. A prompt has about `_PROMPT` characters, up to the end of
  a word if one ends in its second half. Pairs whose source has more than
  `max_tokens` tokens are skipped.
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
      if len(tokenizer.encode(text)) <= max_tokens:
        pairs.append((text, document['target']))
      continue
    text = text.lstrip()
    limit = min(_PROMPT, len(text))
    cut = text.rfind(' ', limit // 2, limit)
    prompt = text[: cut if cut > 0 else limit]
    while prompt and len(tokenizer.encode(prompt)) > max_tokens:
      prompt = prompt[: len(prompt) * 3 // 4]
    pairs.append((prompt, text[len(prompt) :]))
  return pairs


def _figures(run, pairs, limits, completions) -> dict[str, float]:
  """Returns `samples_NAME` and `held_out_NAME`, see `diversity.NAMES`.

  Diversity and repetition depend on the amount of text, so the held-out text is
  cut to the number of tokens of its sample. Its length is measured after
  cutting it to the limit of the sample.
  """
  tokenizer = run.tokenizer
  max_bytes = int(tokenizer.byte_lengths_V.max())
  truths, matched = [], []
  for (_, rest), limit, completion in zip(
    pairs, limits, completions, strict=True
  ):
    ids = tokenizer.encode(rest[: limit * max_bytes])[:limit]
    truths.append(ids)
    matched.append(tokenizer.decode(ids[: completion.tokens]))
  texts = [completion.text for completion in completions]
  figures = {'samples_count': len(texts)}
  sample_values = {
    **diversity.diversity(texts),
    **diversity.lengths(texts, [c.tokens for c in completions]),
  }
  true_values = {
    **diversity.diversity(matched),
    **diversity.lengths(map(tokenizer.decode, truths), map(len, truths)),
  }
  for name in diversity.NAMES:
    for text, values in (('samples', sample_values), ('held_out', true_values)):
      if name in values:
        figures[f'{text}_{name}'] = values[name]
  return figures

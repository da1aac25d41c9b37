"""Scores any text with a finished run, and reports each token's surprisal.

Writes JSON lines to stdout, one object per token, in order:

  {"document": "a.txt", "start": 0, "end": 3, "id": 812, "text": "The",
   "bits": 5.25}

`bits` is the surprisal, minus log2 of the token's probability. `start` and
`end` are byte offsets into the document's text in UTF-8; the tokens of a
document cover it without gaps. A byte order mark at the start of a file is not
text. A token that is only part of a character has the text null and the key
`bytes`, in hexadecimal. The last token of a document is EOS, which has no
bytes.

The last line holds the figures: `bits_per_byte` counts the bits of EOS, as the
run's own figure on its test documents does; `text_bits_per_byte` does not. EOS
and `bits_per_byte` are reported only if the run's scorer is exact. Runs whose
scorer does not score token by token are refused.
"""

import base64
import collections
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments import base as base_config
from lm import errors, evaluate, field, load_run
from lm.config import check, compatible, resolve as config_lib
from lm.data import sources, tokenizer as tokenizer_lib
from lm.data.sources import streams
from lm.evaluation import passages as passages_lib, scoring_methods
from lm.runtime import console, hosts
from lm.training import loaded

STDIN = '-'
# Fields that say which text to read, and how.
FIELDS = ('data.path', 'data.text_column', 'data.encoding', 'data.errors')
# Fields of other sections that have an effect.
_READS = ('evaluate.batch_size',)
_WHOLE = 2**31 - 1  # bytes, so that no document is cut


def run(workdir: pathlib.Path, overrides: Mapping[str, Any]):
  """Scores the text at `data.path`, a file, folder, glob or - for stdin.

  Args:
    workdir: run folder.
    overrides: 'section.field' -> value; FIELDS choose the text, others override
      the run's own config.

  Raises:
    UserError: the folder holds no run, there is no text, or it has another
      encoding.
  """
  check.overrides(overrides, _READS, '--mode=evaluate with --config.data.path')
  config_lib.load(workdir)  # Reports its mistakes before those of the text.
  path = overrides['data.path']
  size, found = _open(overrides)
  rest = {k: v for k, v in overrides.items() if k not in FIELDS}
  run = load_run.load(workdir, rest)
  compatible.check_scoring(run.config, run.objective)
  method = _method(run)
  # On a terminal the lines themselves show the progress.
  shown = hosts.is_first() and not sys.stdout.isatty()
  stream = sys.stderr if shown else io.StringIO()
  with console.Progress(
    'scoring byte', start=0, total=size, stream=stream
  ) as progress:
    figures = _score(run, method, found, progress)
  if not figures['documents']:
    raise errors.UserError(
      f'data.path={path!r} holds no text to score; give a file that is not '
      'empty'
    )
  print(json.dumps({'step': run.step, 'path': path, **figures}))
  if hosts.is_first():
    print(_table(workdir, run.step, path, figures), file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Text(passages_lib.Passage):
  """A document.

  name: its name.
  ends: byte offset of the end of each id.
  """

  name: str
  ends: np.ndarray


def _method(run: loaded.LoadedModel) -> scoring_methods.Method:
  """Returns the scoring method of the run's objective.

  Raises:
    UserError: it does not score token by token.
  """
  method = scoring_methods.METHODS.get(run.objective.scorer)
  if method is None or not method.chain:
    name = run.config.objective.name
    raise errors.UserError(
      f"objective.name='{name}' (scorer {run.objective.scorer}) has no bits of "
      'single tokens; omit data.path to evaluate it on its held-out text'
    )
  return method


def _score(
  run: loaded.LoadedModel, method: scoring_methods.Method, found, progress
) -> dict[str, Any]:
  """Prints a line for each token; returns the figures."""
  scorer, tokenizer = evaluate.make_scorer(run, method), run.tokenizer
  allowed_V = tokenizer.allowed_ids(end=method.documents)
  skipped = collections.Counter()
  documents = tokens = size = 0
  bits = end_bits = 0.0

  def passages() -> Iterator[_Text]:
    for document in found:
      if isinstance(document, sources.Skipped):
        skipped[document.reason] += 1
      else:
        yield _passage(document, tokenizer, end=method.documents)

  for parts in scorer.batches(run.params, passages(), allowed_V):
    for part in parts:
      lines = list(_lines(part, tokenizer))
      print(*(json.dumps(x, ensure_ascii=False) for x in lines), sep='\n')
      bits += float(part.bits_n.sum(dtype=np.float64))
      tokens += len(lines)
      last = lines[-1]
      if part.first + len(lines) == len(part.passage.scored):
        documents, size = documents + 1, size + last['end']
        if last['id'] == tokenizer_lib.EOS:
          end_bits += float(part.bits_n[-1])
      progress.advance(last['end'] - lines[0]['start'])
  figures = {'documents': documents, 'bytes': size, 'tokens': tokens}
  if skipped:
    figures['skipped'] = dict(skipped)
  if size:
    if method.documents:
      figures |= {'bits_per_byte': bits / size, 'end_bits': end_bits}
    figures |= {
      'text_bits_per_byte': (bits - end_bits) / size,
      'bits': bits,
      'scorer': run.objective.scorer,
    }
  return figures


def _passage(
  document: sources.Document, tokenizer: tokenizer_lib.Tokenizer, *, end: bool
) -> _Text:
  ids = tokenizer.encode(document.text)
  if end:
    ids = np.append(ids, np.int32(tokenizer_lib.EOS))
  ends = np.cumsum(tokenizer.byte_lengths_V[ids], dtype=np.int64)
  return _Text(
    context=np.zeros(0, np.int32),
    scored=ids,
    size=int(ends[-1]),
    name=document.name,
    ends=ends,
  )


def _lines(
  part: passages_lib.Part, tokenizer: tokenizer_lib.Tokenizer
) -> Iterator[dict[str, Any]]:
  """Yields the JSON object of each token."""
  document, first = part.passage, part.first
  stop = first + len(part.bits_n)
  start = int(document.ends[first - 1]) if first else 0
  for id_, end, bits in zip(
    document.scored[first:stop].tolist(),
    document.ends[first:stop].tolist(),
    part.bits_n.tolist(),
    strict=True,
  ):
    line = {'document': document.name, 'start': start, 'end': end, 'id': id_}
    piece = tokenizer.decode_bytes([id_])
    try:
      line['text'] = piece.decode()
    except UnicodeDecodeError:
      line |= {'text': None, 'bytes': piece.hex()}
    yield {**line, 'bits': round(bits, 6)}
    start = end


def _open(overrides: Mapping[str, Any]):
  """Returns the approximate size in bytes, and an iterator over documents."""
  path = overrides['data.path']
  # Defaults, since the run's own `data` describes its training text.
  config = base_config.get_config()
  for name in FIELDS:
    if name in overrides:
      field.put(config, name, overrides[name])
  config.data.source, config.data.document_bytes = 'files', _WHOLE
  config_data = config_lib.resolve(config).data
  if path == STDIN:
    return _plain(STDIN, _read_stdin(), config_data.encoding)
  file = pathlib.Path(path).expanduser()
  try:
    source = sources.make(config_data)
  except errors.UserError:
    # A single file of unknown format is read as text; other errors are raised.
    if file.is_dir() or not file.exists():
      raise
    try:
      with streams.open_bytes(file) as stream:
        return _plain(file.name, stream.read(), config_data.encoding)
    except streams.StreamError as error:
      raise errors.UserError(
        f'data.path: {file} {error}; give a whole file'
      ) from None
    except OSError as error:
      raise errors.UserError(
        f'data.path: {file} cannot be read ({error.strerror}); make it readable'
      ) from None
  return sum(p.stat().st_size for p in source.inputs), source.documents()


def _read_stdin() -> bytes:
  """Reads the stdin of the first process; launchers give the others none."""

  def read() -> str:
    data = sys.stdin.buffer.read() if sys.stdin else b''
    return base64.b64encode(data).decode()

  return base64.b64decode(hosts.decide(read))


def _plain(name: str, data: bytes, encoding: str):
  """Decodes a single document; returns its size in bytes, and an iterator."""
  is_utf8 = streams.is_utf8(encoding)
  try:
    text = data.decode('utf-8' if is_utf8 else encoding).removeprefix('\ufeff')
  except UnicodeError as error:
    if not is_utf8:
      raise errors.UserError(
        f'data.path: {name} is not {encoding}; set data.encoding to its '
        'encoding'
      ) from None
    raise errors.UserError(
      f'data.path: {name} is not UTF-8 at byte {error.start}; convert it, for '
      'instance with iconv -f GB18030 -t UTF-8 OLD > NEW, or give its '
      "encoding, for instance data.encoding='gb18030'"
    ) from None
  found = [] if not text or text.isspace() else [sources.Document(name, text)]
  return len(data), iter(found)


def _table(workdir, step: int, path: str, figures: Mapping[str, Any]) -> str:
  """Formats the figures for a terminal."""
  lines = [
    f'{workdir}, step {step}: {path}, {figures["bytes"]:,} bytes, '
    f'{figures["tokens"]:,} tokens, {figures["documents"]:,} document(s)',
  ]
  if 'bits_per_byte' in figures:
    lines.append(
      f'  {figures["bits_per_byte"]:6.3f}  bits per byte, with the end of each '
      'document'
    )
  scorer = figures['scorer']
  lines.append(
    f'  {figures["text_bits_per_byte"]:6.3f}  bits per byte of the text, '
    f'scorer {scorer}: {scoring_methods.METHODS[scorer].meaning}'
  )
  for reason, count in figures.get('skipped', {}).items():
    lines.append(f'{count} document(s) skipped: {reason}')
  return '\n'.join(lines)

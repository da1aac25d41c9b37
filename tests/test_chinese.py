"""Chinese from files to generated text: no byte lost, whole characters only."""

import json
import shutil

import pytest
from helpers.texts import chinese

from lm import errors, evaluate, generate, load_run, train
from lm.config import resolve as config_lib
from lm.data import prepare, store
from lm.generation import left_to_right

_PROMPTS = ['我们今天', '因为天气非常好，', '中', '北京的大学。学生', '龘']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of Chinese files."""
  folder = tmp_path_factory.mktemp('中文 语料')
  for number in range(12):
    text = chinese(number, 30)
    (folder / f'文章{number}.txt').write_text(text, encoding='utf-8')
  return folder


def settings(config, folder, prepared, kind):
  config.data.path = str(folder)
  config.data.directory = str(prepared)
  config.data.tokenizer = kind
  # So few pieces that rare characters are spelt in bytes.
  config.data.vocab_size = 560 if kind == 'unigram' else 528
  config.train.steps = 3
  config.train.evaluate_every = 0
  config.train.checkpoint_every = 0
  config.generate.samples = 0
  config.generate.max_tokens = 12
  return config


@pytest.fixture(scope='module')
def workdir(folder, tmp_path_factory, module_config):
  """A run folder, alone: its texts and prepared data are gone."""
  root = tmp_path_factory.mktemp('运行 目录')
  source = shutil.copytree(folder, root / '语料')
  prepared = root / '数据'
  train.run(
    settings(module_config, source, prepared, 'unigram'),
    root / '运行',
    'python',
  )
  shutil.rmtree(source)
  shutil.rmtree(prepared)
  return root / '运行'


@pytest.fixture(scope='module')
def module_config(tmp_path_factory):
  from experiments import base

  config = base.get_config()
  config.data.source = 'files'
  config.data.sequence_length = 32
  config.data.batch_size = 8
  config.model.num_layers = 1
  config.model.width = 32
  config.model.mlp_width = 64
  config.evaluate.batches = 1
  config.evaluate.baselines = False
  return config


def generator(workdir, **overrides):
  fields = {f'generate.{name}': value for name, value in overrides.items()}
  return left_to_right.continuation_generator(load_run.load(workdir, fields))


def test_some_characters_are_spelt_in_bytes(workdir):
  tokenizer = load_run.load(workdir, {}).tokenizer
  assert tokenizer.kind == 'unigram'
  ids = tokenizer.encode('龘靐齉爩鱻麤灪麣鸾籲')
  assert len(ids) > 10
  assert tokenizer.decode(ids) == '龘靐齉爩鱻麤灪麣鸾籲'


def test_held_out_text_round_trips(workdir):
  tokenizer = load_run.load(workdir, {}).tokenizer
  for name in prepare.HELD_OUT:
    split = store.Split(workdir / 'held_out' / name)
    path = workdir / 'held_out' / f'{name}.jsonl'
    texts = [
      json.loads(x)['text'] for x in path.read_text('utf-8').split('\n')[:-1]
    ]
    assert texts == [
      tokenizer.decode(split.read(d)[0]) for d in range(len(split))
    ]


def test_a_batch_says_what_each_prompt_says_alone(workdir):
  """Pieces and bytes; test_generate.py has greedy and smaller batches."""
  fields = {'temperature': 1.0, 'top_p': 0.9}
  together = generator(workdir, batch_size=len(_PROMPTS), **fields)
  by_batch = together(_PROMPTS)
  alone = generator(workdir, batch_size=1, **fields)
  for number, prompt in enumerate(_PROMPTS):
    [completion] = alone.batch([alone.encode(prompt)])
    assert completion == by_batch[number]


def test_only_whole_characters_come_out_and_dropped_bytes_are_counted(workdir):
  drawn = generator(workdir, temperature=5.0, top_p=1.0, batch_size=8)
  parts = {place: [] for place in range(8)}
  encoded = [drawn.encode('我们')] * 8
  completions = drawn.batch(
    encoded, range(8), on_text=lambda place, text: parts[place].append(text)
  )
  # At so high a temperature bytes come in no order.
  assert sum(completion.dropped_bytes for completion in completions) > 0
  for place, completion in enumerate(completions):
    assert ''.join(parts[place]) == completion.text
    assert '\ufffd' not in completion.text
    completion.text.encode()


def test_run_prints_chinese(workdir, capsys):
  generate.run(
    workdir,
    {'generate.max_tokens': 4},
    iter(['我们', '', '学生']),
    one_by_one=False,
  )
  out, err = capsys.readouterr()
  assert out.startswith('我们')
  assert '\n学生' in out
  assert '\ufffd' not in out
  assert err.count('\n') == 3


@pytest.mark.parametrize('kind', ['unigram', 'bytes'])
def test_scored_bytes_are_the_documents_bytes(
  folder, module_config, workdir, tmp_path, kind
):
  config = config_lib.resolve(
    settings(
      module_config.copy_and_resolve_references(), folder, tmp_path / 'p', kind
    )
  )
  prepared = prepare.prepare(config.data)
  path = prepared.directory / 'held_out' / 'test.jsonl'
  lines = path.read_text('utf-8').split('\n')[:-1]
  size = sum(len(json.loads(line)['text'].encode()) for line in lines)
  scored = split_bytes(prepared)
  assert scored == size
  if kind == 'unigram':
    figures = evaluate.score(load_run.load(workdir, {}), workdir / 'held_out')
    assert figures['bytes'] == size
    assert 0 < figures['bits_per_byte'] < 30


def split_bytes(prepared):
  split = prepared.held_out('test')
  return sum(int(split.read(d)[2][-1]) for d in range(len(split)))


def test_a_run_is_read_on_other_devices_than_it_was_trained_on(
  workdir, tmp_path
):
  """Neither mesh nor attention of config.json would run on eight of a CPU."""
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  config = json.loads((copy / 'config.json').read_text())
  config['mesh'] = {'data': 3, 'fsdp': 1, 'tensor': 1}
  config['model']['attention'] = 'splash'
  (copy / 'config.json').write_text(json.dumps(config))
  shape = {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert load_run.load(copy, {}).mesh.shape == shape
  with pytest.raises(errors.UserError, match=r'mesh\.data=3'):
    load_run.load(copy, {'mesh.data': 3})

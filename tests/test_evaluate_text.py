"""Each token's surprisal: nothing left out, nothing twice, the same sums."""

import dataclasses
import gzip
import io
import json
import sys
import tracemalloc
import types

import ml_collections
import pytest
from helpers.generators import make_run
from helpers.texts import chinese

from lm import errors, evaluate_text, objectives
from lm.data import tokenizer as tokenizer_lib
from lm.evaluation import passages, scorer as scorer_lib, scoring_methods
from lm.runtime import sharding

TEXTS = {
  'english': 'Plain words,\r\nand a second line. ' * 4,
  'chinese': chinese(50, 12) + '龘靐𠮷',
  'short': 'x',
}


@pytest.fixture(scope='module')
def tokenizer():
  """So few pieces that rare characters are spelt in bytes."""
  return tokenizer_lib.train('unigram', 560, [chinese(i, 30) for i in range(6)])


@pytest.fixture
def run(config, tokenizer):
  config.data.vocab_size = 560
  run = make_run(config)
  return dataclasses.replace(
    run,
    mesh=sharding.make_mesh(run.config),
    objective=objectives.make(run.config),
    tokenizer=tokenizer,
  )


@pytest.fixture
def score(run, monkeypatch, capsys, tmp_path):
  """score(path, batch_size=16) -> token lines, figures, stderr."""
  monkeypatch.setattr(evaluate_text.config_lib, 'load', lambda workdir: {})

  def load(workdir, overrides):
    config = run.config.to_dict()
    config['evaluate']['batch_size'] = overrides['evaluate.batch_size']
    frozen = ml_collections.FrozenConfigDict(config)
    return dataclasses.replace(run, config=frozen)

  monkeypatch.setattr(evaluate_text.load_run, 'load', load)

  def start(path, batch_size=16):
    overrides = {'data.path': str(path), 'evaluate.batch_size': batch_size}
    evaluate_text.run(tmp_path, overrides)
    out, err = capsys.readouterr()
    *lines, figures = map(json.loads, out.split('\n')[:-1])
    return lines, figures, err

  return start


def spelt(line):
  """The bytes that a line stands for."""
  if line['text'] is None:
    return bytes.fromhex(line['bytes'])
  assert 'bytes' not in line
  return line['text'].encode()


@pytest.mark.parametrize('name', TEXTS)
def test_tokens_tile_the_text_and_their_bits_are_its_score(
  score, run, tokenizer, tmp_path, name
):
  text = TEXTS[name]
  (tmp_path / 'a.log').write_bytes(text.encode())
  (*lines, end), figures, _ = score(tmp_path / 'a.log')
  place = 0
  for line in lines:
    assert line['document'] == 'a.log'
    assert line['start'] == place < line['end']
    assert text.encode()[place : line['end']] == spelt(line)
    place = line['end']
  size = len(text.encode())
  assert (place, end['start'], end['end']) == (size, size, size)
  assert (end['id'], end['text']) == (tokenizer_lib.EOS, '')
  assert any(line['text'] is None for line in lines) == (name == 'chinese')
  ids = [line['id'] for line in [*lines, end]]
  assert tokenizer.decode(ids) == text
  scorer = scorer_lib.Scorer(
    scoring_methods.METHODS['exact'],
    run.objective,
    run.model,
    run.mesh,
    batch_size=8,
  )
  passage = passages.Passage(tokenizer.encode(''), ids, size)
  allowed = tokenizer.allowed_ids(end=True)
  whole = scorer(run.params, [passage], allowed)
  bits = sum(line['bits'] for line in lines)
  assert bits + end['bits'] == pytest.approx(whole.bits, rel=1e-5)
  assert figures['bits_per_byte'] == pytest.approx(
    whole.bits_per_byte(), rel=1e-5
  )
  assert figures['text_bits_per_byte'] == pytest.approx(bits / size, rel=1e-5)
  assert figures['end_bits'] == pytest.approx(end['bits'], rel=1e-5)
  assert (figures['bytes'], figures['tokens']) == (size, len(ids))


def test_documents_of_a_folder_are_named_and_scored_alone(score, tmp_path):
  folder = tmp_path / 'texts'
  folder.mkdir()
  (folder / 'a.txt').write_text(TEXTS['english'], newline='')
  (folder / 'b.txt').write_text(' \n')
  rows = [{'text': text} for text in TEXTS.values()]
  (folder / 'c.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  lines, figures, err = score(folder)
  names = list(dict.fromkeys(line['document'] for line in lines))
  assert names == ['a.txt', 'c.jsonl:1', 'c.jsonl:2', 'c.jsonl:3']
  assert (figures['documents'], figures['skipped']) == (4, {'empty': 1})
  assert '1 document(s) skipped: empty' in err
  # In other batches, with other neighbours in them.
  again, other, _ = score(folder, batch_size=8)
  assert other['bits'] == pytest.approx(figures['bits'], rel=1e-6)
  for one, two in zip(lines, again, strict=True):
    assert two['bits'] == pytest.approx(one['bits'], abs=1e-3)
    assert {**one, 'bits': 0} == {**two, 'bits': 0}
  part = [line['bits'] for line in lines if line['document'] == 'c.jsonl:2']
  (tmp_path / 'zh').write_text(TEXTS['chinese'])
  alone = [line['bits'] for line in score(tmp_path / 'zh')[0]]
  assert alone == pytest.approx(part, abs=1e-4)


def test_a_proper_scorer_that_is_not_exact_has_no_ends(score, run, tmp_path):
  """With an empty context and causal attention its bits are the same."""
  # It fits one window, so that its end does not move others.
  (tmp_path / 'a.txt').write_text('Plain words.')
  (*lines, _), exact, _ = score(tmp_path / 'a.txt')
  object.__setattr__(run.objective, 'scorer', 'conditional')
  found, figures, err = score(tmp_path / 'a.txt')
  assert 'bits_per_byte' not in figures
  assert figures['documents'] == 1
  assert figures['bytes'] == exact['bytes']
  assert 'scorer conditional' in err
  # That a document can end costs a little everywhere.
  for one, two in zip(lines, found, strict=True):
    assert one['bits'] - 0.1 < two['bits'] <= one['bits'] + 1e-5
  for scorer in ('bound', 'none'):
    object.__setattr__(run.objective, 'scorer', scorer)
    with pytest.raises(errors.UserError, match=f'scorer {scorer}.*no bits'):
      score(tmp_path / 'a.txt')


def test_a_byte_order_mark_is_no_text(score, tmp_path, monkeypatch):
  marked = b'\xef\xbb\xbf' + TEXTS['english'].encode()
  for name in ('a.txt', 'a.log'):
    (tmp_path / name).write_bytes(marked)
    lines, figures, _ = score(tmp_path / name)
    assert b''.join(map(spelt, lines)) == marked[3:]
    assert figures['bytes'] == len(marked) - 3
  stdin = types.SimpleNamespace(buffer=io.BytesIO(marked))
  monkeypatch.setattr(sys, 'stdin', stdin)
  assert score('-')[1]['bits'] == pytest.approx(figures['bits'], rel=1e-6)


def test_a_packed_file_of_no_known_format_is_text(tmp_path):
  whole = gzip.compress(b'Plain words.')
  (tmp_path / 'a.log.gz').write_bytes(whole)
  size, found = evaluate_text._open({'data.path': str(tmp_path / 'a.log.gz')})
  assert size == len(b'Plain words.')
  assert [document.text for document in found] == ['Plain words.']
  (tmp_path / 'torn.log.gz').write_bytes(whole[:-9])
  with pytest.raises(errors.UserError, match='is broken gzip in line 1,'):
    evaluate_text._open({'data.path': str(tmp_path / 'torn.log.gz')})


def test_no_more_memory_is_asked_for_than_a_text_takes(tmp_path):
  (tmp_path / 'a.txt').write_text('Plain words.')
  tracemalloc.start()
  _, found = evaluate_text._open({'data.path': str(tmp_path / 'a.txt')})
  assert len(list(found)) == 1
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 16 << 20


def test_a_large_file_is_one_document(tmp_path):
  """`data.document_bytes` cuts what is trained on, not what is scored."""
  text = 'x' * ((1 << 20) + 5)
  (tmp_path / 'a.txt').write_text(text)
  _, found = evaluate_text._open({'data.path': str(tmp_path / 'a.txt')})
  assert [len(document.text) for document in found] == [len(text)]

"""Samples and their figures: measured against the same places of real text."""

import json

import pytest
from helpers.generators import make_run, with_settings
from helpers.texts import sentences

from lm import errors
from lm.data import tokenizer as tokenizer_lib
from lm.generation import diversity, left_to_right, prompts, samples
from lm.objectives import layout

TEXTS = [
  '  ' + sentences(1, 30),
  '我们今天学习语言模型。' * 60,
  'Short',
  'x' * 300,
]


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'held_out').mkdir()
  rows = ''.join(json.dumps({'text': text}) + '\n' for text in TEXTS)
  (tmp_path / 'held_out' / 'test.jsonl').write_text(rows)
  return tmp_path


def openings(workdir, tokenizer, max_tokens, count=9):
  path = workdir / 'held_out' / 'test.jsonl'
  return samples.openings(path, count, tokenizer, max_tokens=max_tokens)


def test_openings_and_rests_are_the_documents(workdir):
  tokenizer = tokenizer_lib.train('bytes', 528, [])
  pairs = openings(workdir, tokenizer, 10**6)
  assert [a + b for a, b in pairs] == [text.lstrip() for text in TEXTS]
  assert [len(a) for a, _ in pairs[1:]] == [120, 5, 120]
  assert pairs[0][1][0] == ' '  # to the end of a word
  assert openings(workdir, tokenizer, 10**6, count=2) == pairs[::2]
  for prompt, _ in openings(workdir, tokenizer, 15):
    assert 0 < len(tokenizer.encode(prompt)) <= 15


def test_an_opening_is_not_cut_short_at_an_early_blank(workdir):
  path = workdir / 'held_out' / 'test.jsonl'
  path.write_text(json.dumps({'text': '北京 ' + '我们' * 99}))
  tokenizer = tokenizer_lib.train('bytes', 528, [])
  [(prompt, _)] = openings(workdir, tokenizer, 10**6)
  assert len(prompt) == 120


def test_a_pair_opens_with_its_source_and_its_target_follows(workdir):
  path = workdir / 'held_out' / 'test.jsonl'
  pairs = [(' two words ', 'zwei\nWörter'), ('x' * 200, 'y'), ('我们', 'we')]
  rows = [{'name': 'a', 'text': s, 'target': t} for s, t in pairs]
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  tokenizer = tokenizer_lib.train('bytes', 528, [])
  assert openings(workdir, tokenizer, 200) == pairs
  # None is cut short.
  assert openings(workdir, tokenizer, 199) == [pairs[0], pairs[2]]


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_the_longest_opening_of_pairs_fits(config, architecture):
  """With BOS and SEP."""
  config.data.sequence_length, config.data.target_column = 64, 'target'
  config.objective.name = 'prefix'
  config.model.architecture = architecture
  run = make_run(config)
  most = samples._max_prompt_tokens(run.objective.capacity)
  generator = left_to_right.continuation_generator(run)
  generator.encode('a' * most)
  if architecture == 'encoder_decoder':
    with pytest.raises(errors.UserError, match='longer than the encoder'):
      generator.encode('a' * (most + 1))


@pytest.mark.parametrize('share', [1.0, 0.5])
@pytest.mark.parametrize('each', [1, 2])
def test_true_text_as_a_sample_has_the_figures_of_the_held_out_text(
  config, workdir, monkeypatch, share, each
):
  config.data.sequence_length = 64
  run = with_settings(
    make_run(config), max_tokens=24, samples=9, samples_per_prompt=each
  )
  rests = dict(openings(workdir, run.tokenizer, 31))

  def complete(self, prompts):
    found = []
    for prompt in prompts:
      ids = tuple(run.tokenizer.encode(rests[prompt])[: int(24 * share)])
      text = run.tokenizer.decode(ids)
      found.append(left_to_right.Continuation(text, ids, 0, 'max_tokens'))
      # Other samples of the prompt are not measured.
      found += [left_to_right.Continuation('z', (1,), 0, 'end')] * (each - 1)
    return found

  monkeypatch.setattr(left_to_right.Generator, '__call__', complete)
  shown, figures = samples.write(run, workdir)
  assert figures['samples_count'] == len(TEXTS)
  same = [name for name in diversity.NAMES if name[:4] != 'mean']
  if share == 1:
    same = list(diversity.NAMES)
  for name in same:
    assert figures[f'samples_{name}'] == figures[f'held_out_{name}'], name
  # 24 tokens, but for the document that ends.
  assert figures['held_out_mean_tokens'] == 18
  assert figures['samples_mean_tokens'] == 18 * share
  blocks = (workdir / 'samples.txt').read_text('utf-8').split('=== step 0, ')
  assert len(blocks) == 1 + each * len(TEXTS)
  assert blocks[1] == f'sample 1 ===\n{shown}\n\n'


def test_no_document_is_no_sample(config, workdir):
  run = with_settings(make_run(config), samples=0)
  assert samples.write(run, workdir) == ('', {})
  assert not (workdir / 'samples.txt').exists()


def test_words_are_masked_by_their_tokens_and_spans_cut():
  tokenizer = tokenizer_lib.train('bytes', 526, [])
  text = 'a b c d e f g h i'
  assert samples.mask_words(text[:13], tokenizer) == 'a b c d e [MASK] g'
  assert samples.cut_spans(text, tokenizer) == 'a b c d e f <extra_id_0> i'
  assert (
    samples.mask_words('我们今天学习', tokenizer)
    == '我们今天学[MASK][MASK][MASK]'
  )
  spaced = tokenizer_lib.train('unigram', 700, [sentences(1, 300)])
  text = 'he said that for these two years'
  masked = samples.mask_words(text, spaced)
  count = len(spaced.encode(' two'))
  assert masked == f'he said that for these {"[MASK]" * count} years'
  assert len(prompts.encode(masked, spaced)) == len(spaced.encode(text))
  # The last of few words, and none of no word.
  assert samples.mask_words('Short', tokenizer) == '[MASK]' * 5
  assert samples.cut_spans('Short', tokenizer) == '<extra_id_0>'
  assert (
    samples.mask_words('', tokenizer) == samples.cut_spans('\n', tokenizer)[1:]
  )


@pytest.mark.parametrize('strategy', ['masks', 'unmasking', 'spans', 'target'])
def test_every_objective_has_samples_and_continuations_have_figures(
  config, workdir, strategy
):
  with open(workdir / 'held_out' / 'test.jsonl', 'a') as f:
    f.write(json.dumps({'text': 'A document about [MASK] by itself.'}) + '\n')
  config.data.sequence_length = 128
  attention = 'prefix' if strategy in ('spans', 'target') else 'bidirectional'
  run = make_run(
    config, attention=attention, generates=(strategy,), filling=layout.decoder
  )
  steps = {'steps': 2} if strategy == 'unmasking' else {}
  run = with_settings(run, samples=9, **steps)
  shown, figures = samples.write(run, workdir)
  # As it is: a sample can hold any end of a line.
  text = (workdir / 'samples.txt').read_bytes().decode('utf-8')
  assert text.startswith(f'=== step 0, sample 1 ===\n{shown}\n')
  assert text.count('=== step 0, sample ') == len(TEXTS)
  assert 'by itself' not in text
  assert ('[MASK]' in text) == (strategy == 'masks')
  assert ('<extra_id_0>' in text) == (strategy == 'spans')
  assert ('samples_count' in figures) == (strategy == 'unmasking')
  if strategy == 'unmasking':
    assert figures['samples_mean_tokens'] == 8
    assert figures['held_out_mean_tokens'] == pytest.approx((8 + 8 + 0 + 8) / 4)


def test_an_objective_that_generates_nothing_has_no_samples(config, workdir):
  assert samples.write(make_run(config, generates=()), workdir) == ('', {})
  assert not (workdir / 'samples.txt').exists()

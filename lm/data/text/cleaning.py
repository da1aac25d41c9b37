r"""Cleaning: small pure functions, document -> document or Dropped.

Thresholds that users change are fields of `data.cleaning`; those of Gopher's
tables (Rae et al. 2021, appendix A.1) are constants here. Rules that count
words do so in scripts that put blanks between them; in the others (Han, kana,
Thai, ...) they count characters, see `units.py`, since Gopher's word rules
alone would drop every Chinese document.

In the docstrings `text -> result` are worked examples under the default fields
with language='en' and scrub=True.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from lm import errors
from lm.data.text import (
  boilerplate,
  characters,
  markup,
  ngrams,
  personal,
  scripts,
  units,
)


@dataclasses.dataclass(frozen=True)
class Dropped:
  """The reason to drop a document: short, the same for all of its kind."""

  reason: str


Rule = Callable[[str], str | Dropped]

html_to_text = markup.html_to_text


def make(cfg, names: Sequence[str]) -> list[tuple[str, Rule]]:
  """The named rules, in the order of `RULES`; they can be pickled.

  Args:
    cfg: the section `config.data`; reads `language` and `cleaning`.
    names: names of rules, or several names joined by commas. `language` and
      `scrub` are left out if the fields that they need are not set.

  Raises:
    UserError: for an unknown rule or language.
  """
  names = [name.strip() for several in names for name in several.split(',')]
  for name in names:
    if name not in RULES:
      raise errors.UserError(
        f'data.cleaning.rules has an unknown rule {name!r}; choose from '
        f'{", ".join(RULES)}'
      )
  code = cfg.language
  if code and code not in scripts.LANGUAGES and code not in scripts.SCRIPTS:
    raise errors.UserError(
      f'unknown data.language={code!r}; choose a language from '
      f'{", ".join(scripts.LANGUAGES)}, or a script from '
      f'{", ".join(scripts.SCRIPTS)}'
    )
  off = {'language': not code, 'scrub': not cfg.cleaning.scrub}
  return [
    (name, maker(cfg))
    for name, maker in RULES.items()
    if name in names and not off.get(name)
  ]


def clean(
  rules: Sequence[tuple[str, Rule]], text: str
) -> tuple[str | Dropped, tuple[str, ...]]:
  """Applies rules in turn until one drops the document.

  Returns:
    (text or Dropped, names of the rules that changed the text). A text of which
    nothing is left is dropped, too.
  """
  changed = []
  for name, rule in rules:
    result = rule(text)
    if isinstance(result, Dropped):
      return result, tuple(changed)
    if result != text:
      changed.append(name)
      text = result
  if not text or text.isspace():
    return Dropped('empty'), tuple(changed)
  return text, tuple(changed)


def normalize_unicode(text: str) -> str | Dropped:
  r"""Unifies characters that look the same and removes invisible ones.

    'cafe\u0301\r\n\x00ok'       -> 'caf\u00e9\nok'
    '全角！\ufeff co\u00adop'     -> '全角！ coop'
    'क्\u200dष a\u200db'          -> 'क्\u200dष ab'
    'The caf\ufffd of M\ufffdnchen' -> Dropped('broken encoding')
    'La bÃ©ance est lÃ\xa0'       -> Dropped('broken encoding')

  NFC (Unicode Annex 15), not NFKC, which would replace full-width punctuation.
  Every line end, form feed included, becomes a line feed. Removed are control
  characters except line feed and tab, byte order marks, noncharacters, lone
  surrogates, soft hyphens, word joiners; and joiners and zero-width blanks,
  except where a script or emoji needs them.

  A document is dropped when more than 1 % of its characters are U+FFFD, C1
  controls or UTF-8 read as Latin-1, as Windows-1252 or as GBK.
  """
  if characters.broken_share(text) > _BROKEN:
    return Dropped('broken encoding')
  return characters.normalize(text)


def strip_html(text: str) -> str:
  r"""Replaces HTML by the text that a reader of the page sees.

    '<p>Salt &amp; iron.</p>\n<p>Coal.</p>' -> 'Salt & iron.\n\nCoal.'
    'Great film.<br /><br />Go.'            -> 'Great film.\n\nGo.'
    'if a < b > c: print("<b>&amp;")'       -> 'if a < b > c: print("<b>&amp;")'
    '房&#38388;很大'                         -> '房间很大'

  `markup.is_html` decides what is HTML. In other texts, only references to
  letters that are not Latin are decoded.
  """
  if markup.is_html(text):
    return markup.html_to_text(text)
  return markup.decode_letters(text)


def normalize_whitespace(text: str) -> str:
  r"""Removes blanks at line ends, and needless empty lines.

    '\n\n  if x:  \n\n\n\n    y()\t\n' -> '  if x:\n\n    y()'
    '　　北京。　\n　　上海　好。'        -> '北京。\n上海　好。'

  Blanks at the start of a line and within it are kept, for code and tables.
  Ideographic blanks at its start are removed: they only mark a paragraph.
  """
  text = '\n'.join(map(str.rstrip, text.split('\n')))
  if '\n\n\n' in text:
    text = re.sub('\n{3,}', '\n\n', text)
  if '\u3000' in text:
    text = _IDEOGRAPHIC_INDENT.sub('', text)
  return text.strip('\n')


def drop_boilerplate(text: str) -> str | Dropped:
  r"""Removes the lines that web pages put around their text.

    'News.\nThis site uses cookies.\nEnd.' -> 'News.\nEnd.'
    '新闻。\n责任编辑：王五\n版权所有 翻印必究'  -> '新闻。'
    'Lorem ipsum dolor sit amet.'          -> Dropped('boilerplate')

  C4 (Raffel et al. 2020, section 2.2) drops pages with "lorem ipsum", lines on
  terms of use, privacy and cookies by six phrases, and every line with the
  word JavaScript. Here that word alone is not enough, so that pages about
  programming stay whole, and a line of more than 200 characters is kept, since
  it is a paragraph about these things. The Chinese phrases are their
  counterparts on Chinese pages, in lines of at most 40 characters.
  """
  if boilerplate.has_placeholder(text):
    return Dropped('boilerplate')
  return boilerplate.without_lines(text)


def check_length(
  text: str, *, min_words: int, max_words: int, min_characters: int
) -> str | Dropped:
  r"""Drops texts that are too short, too long or of odd word length.

    'Too short to learn from.'      -> Dropped('too short')
    'we saw a dog and ' * 9         -> Dropped('too short')
    'we saw five dogs and ' * 10    -> 'we saw five dogs and ' * 10
    'x y zz ' * 20                  -> Dropped('odd word length')
    '我们今天去北京。' * 12           -> Dropped('too short')
    '我们今天去北京。' * 13           -> '我们今天去北京。' * 13

  The limits on words and on their mean length, 3 to 10 characters, are Gopher's
  (Rae et al. 2021, appendix A.1.1). Scripts without blanks are counted in
  characters, at most twice `max_words`, without a mean length. The mean length
  of Hangul is at least 1.5 characters, each of which is a syllable of two or
  three letters.
  """
  view = units.of(text)
  number = view.ids_L.size
  if number < (min_characters if view.unspaced else min_words):
    return Dropped('too short')
  if number > max_words * view.per_word:
    return Dropped('too long')
  lower, upper = _MEAN_WORD_LENGTH
  if view.counts.share(('Hangul',)) >= 0.5:
    lower /= 2
  mean = view.characters / max(1, number)
  if number and not view.unspaced and not lower <= mean <= upper:
    return Dropped('odd word length')
  return text


def check_symbols(
  text: str, *, max_digits: float, english: bool
) -> str | Dropped:
  r"""Drops menus, lists, teasers and tables of figures.

    'the end of # it # '                 -> Dropped('too many symbols')
    '- one the of\n- two to be\n'        -> Dropped('too many bullets')
    'the latest news of what they said is for you to read ...\n' * 2 \
      -> Dropped('too many ellipses')
    'the sum of 1 2 3 4'                 -> Dropped('too few letters')
    'the A380 and the B52s of 1999'      -> Dropped('too many digits')
    'Rindfleisch schmeckt nicht'         -> Dropped('no English')
    '北京……上海……'                        -> Dropped('too many symbols')

  Gopher (Rae et al. 2021, appendix A.1.1): at most 0.1 hash signs or ellipses
  a word, 90 % of lines with a bullet, 30 % that end in an ellipsis (one such
  line is always allowed); at least 80 % of words with a letter and, in English,
  two of its eight stop words. NeMo Curator's NumbersFilter: at most 15 % digits
  (`max_digits`), here of the characters that are not blank.

  In scripts without blanks two characters count as a word, twice as many digits
  are allowed, since other words need fewer characters, and at least 60 % of
  characters must be letters.
  """
  view = units.of(text)
  if not view.characters:
    return text
  words = view.ids_L.size / view.per_word
  ellipses = '...' in text or '…' in text
  number = len(_ELLIPSIS.findall(text)) if ellipses else 0
  if max(text.count('#'), number) > _SYMBOLS_PER_WORD * words:
    return Dropped('too many symbols')
  bullets = sum(line.startswith(_BULLETS) for line in view.lines)
  if bullets > max(1, _BULLET_LINES * len(view.lines)):
    return Dropped('too many bullets')
  open_ended = sum(line.endswith(('…', '...')) for line in view.lines)
  if open_ended > max(1, _ELLIPSIS_LINES * len(view.lines)):
    return Dropped('too many ellipses')
  least = _LETTERS_UNSPACED if view.unspaced else _WORDS_WITH_LETTERS
  if view.letter_share() < least:
    return Dropped('too few letters')
  if view.counts.digits > max_digits * view.per_word * view.characters:
    return Dropped('too many digits')
  if english and not view.unspaced:
    small = {word.lower() for word in view.distinct_words}
    if len(small & _STOP_WORDS) < 2:
      return Dropped('no English')
  return text


def check_repetition(text: str) -> str | Dropped:
  r"""Drops documents that repeat themselves.

    'one\ntwo\none\ntwo'                         -> Dropped('repeated lines')
    'a b\nc d e f g h\n\na b\nc d e f g h\n\ni j k l m n o p q\nr s t u v w' \
      -> Dropped('repeated lines')
    'buy now or buy now and buy now'             -> Dropped('repeated phrases')
    'no word of this occurs twice in all of it'  \
      -> 'no word of this occurs twice in all of it'
    '好好学习天天向上吧' * 3  -> Dropped('repeated phrases')

  Gopher (Rae et al. 2021, table A1) limits the share of lines, and of
  paragraphs, that occurred before (0.30), of characters in them (0.20), in the
  most frequent 2-, 3- and 4-gram (0.20, 0.18, 0.16), and in 5- to 10-grams that
  occurred before (0.15 down to 0.10). First occurrences do not count.

  In scripts without blanks an n-gram has 2n characters. Of the 2,776 People's
  Daily articles of January 1998 with 100 characters or more, the limits on 5-
  to 10-grams find 10 % with n characters and 1 % with 2n.
  """
  view = units.of(text)
  for name, parts in (
    ('lines', view.lines),
    ('paragraphs', _PARAGRAPH_END.split(text)),
  ):
    if _too_much_again([part.strip() for part in parts]):
      return Dropped(f'repeated {name}')
  for limits, find in (
    (_TOP_NGRAMS, ngrams.top_shares),
    (_REPEATED_NGRAMS, ngrams.repeated_shares),
  ):
    shares = find(
      view.ids_L,
      view.lengths_L,
      [n * view.per_word for n in limits],
      least=min(limits.values()),
    )
    for n, limit in limits.items():
      if shares.get(n * view.per_word, 0.0) > limit:
        return Dropped('repeated phrases')
  return text


def check_language(text: str, *, language: str, share: float) -> str | Dropped:
  r"""Drops documents that are not in the given language or script.

    'We the people'                   -> 'We the people'
    'Мы, народ'                       -> Dropped('another language')
    'Der Rat der Stadt und die Bürger haben das Gesetz über die Schulen ' \
    'beschlossen, das im nächsten Jahr für alle Kinder gelten soll, wenn ' \
    'die Regierung es nicht noch ändert.' -> Dropped('another language')

  See `scripts.is_language` for how languages are recognized. At least a share
  of `share` of all letters must be of the language's scripts, or of the script.
  """
  if language in scripts.SCRIPTS:
    fits = units.of(text).counts.share((language,)) >= share
  else:
    fits = scripts.is_language(text, language, share)
  return text if fits else Dropped('another language')


def scrub(text: str) -> str:
  r"""Masks e-mail addresses, telephone numbers and IP addresses.

    'Ask jo.doe@example.org or (212) 555-0123.' -> 'Ask <email> or <phone>.'
    '电话13812345678，或010-62345678'            -> '电话<phone>，或<phone>'
    'from 93.184.215.14 and 2606:4700:20::681a:be8' -> 'from <ip> and <ip>'
    'Python 3.11.7, 1.2.3.4, 1789-07-14, $1,234.56, x[1::2], 10:20:30' \
      -> 'Python 3.11.7, 1.2.3.4, 1789-07-14, $1,234.56, x[1::2], 10:20:30'
  """
  return personal.scrub(text)


# In the order in which they run: later rules judge the result of earlier ones.
RULES: dict[str, Callable] = {
  'unicode': lambda cfg: normalize_unicode,
  'html': lambda cfg: strip_html,
  'whitespace': lambda cfg: normalize_whitespace,
  'boilerplate': lambda cfg: drop_boilerplate,
  'length': lambda cfg: functools.partial(
    check_length,
    min_words=cfg.cleaning.min_words,
    max_words=cfg.cleaning.max_words,
    min_characters=cfg.cleaning.min_characters,
  ),
  'symbols': lambda cfg: functools.partial(
    check_symbols,
    max_digits=cfg.cleaning.max_digits,
    english=cfg.language == 'en',
  ),
  'repetition': lambda cfg: check_repetition,
  'language': lambda cfg: functools.partial(
    check_language, language=cfg.language, share=cfg.cleaning.language_share
  ),
  'scrub': lambda cfg: scrub,
}

# The only rules for the sides of a pair: they judge neither length nor content.
OF_PAIRS = ('unicode', 'html', 'whitespace', 'scrub')

# Fields of `data.cleaning` that rules read.
FIELDS = {
  'length': ('min_words', 'max_words', 'min_characters'),
  'symbols': ('max_digits',),
  'language': ('language_share',),
}

# Maximum share of broken characters.
_BROKEN = 0.01

# Rae et al. 2021, appendix A.1.1.
_MEAN_WORD_LENGTH = (3, 10)
_SYMBOLS_PER_WORD = 0.1
_BULLET_LINES = 0.9
_ELLIPSIS_LINES = 0.3
_WORDS_WITH_LETTERS = 0.8
_STOP_WORDS = frozenset(
  ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')
)
# Minimum share of characters that are letters; a fifth of Chinese is
# punctuation.
_LETTERS_UNSPACED = 0.6
_BULLETS = (*'•‣⁃◦●○▪▫■□▶◆◇·', '- ', '* ', '+ ', '– ')

# Rae et al. 2021, table A1: n -> maximum share of characters.
_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_REPEATED_PARTS, _REPEATED_PART_CHARACTERS = 0.30, 0.20

_IDEOGRAPHIC_INDENT = re.compile(r'^[^\S\n]*\u3000[^\S\n]*', re.MULTILINE)
_PARAGRAPH_END = re.compile(r'\n\s*\n')
_ELLIPSIS = re.compile(r'\.{3,}|…+')


def _too_much_again(parts: list[str]) -> bool:
  """Whether too many parts, or too much of the text, occurred before."""
  once = set(parts)
  if len(once) == len(parts):
    return False
  if len(parts) - len(once) > _REPEATED_PARTS * len(parts):
    return True
  total = sum(map(len, parts))
  again = total - sum(map(len, once))
  return again > _REPEATED_PART_CHARACTERS * total

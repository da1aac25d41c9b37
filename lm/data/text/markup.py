"""Detection of HTML, and its conversion to text."""

import html
import re

from resiliparse.extract import html2text

# Menus and hidden elements. Everything else is kept: extractors that guess the
# main content mistake lists of links for menus, wherever they stand.
_SKIPPED = (
  'nav',
  '[role=navigation]',
  '[role=contentinfo]',
  'body > footer',
  '[hidden]',
)

_KNOWN = """
  a abbr article aside b big blockquote body br button caption center cite code
  dd del details div dl dt em figcaption figure font footer form h1 h2 h3 h4 h5
  h6 head header hr html i iframe img input ins label li link main meta nav
  noscript ol option p pre q s script section select small span strike strong
  style sub summary sup table tbody td textarea tfoot th thead title tr tt u ul
"""
_KNOWN_NAMES = frozenset(_KNOWN.split())
_TAG = re.compile(
  r'</?([A-Za-z][A-Za-z0-9]*+)(?:\s++[A-Za-z][\w:-]*+'
  r'(?:\s*+=\s*+(?:"[^"<>]*+"|\'[^\'<>]*+\'|[^\s"\'<>=]++))?)*+\s*+/?>'
)
_IN_QUOTES = re.compile(r"""["'`]</?[A-Za-z]|>["'`]""")
# The beginning of a page, after an XML declaration and comments.
_PAGE = re.compile(
  # Atomic, else comments without a page after them are split in all ways.
  r'\s*+(?:<\?xml[^>]*>\s*+)?(?:(?><!--.*?-->)\s*+)*+'
  r'<(?:!doctype\s+html|html|head|body)\b[^>]*>',
  re.IGNORECASE | re.DOTALL,
)
_REFERENCE = re.compile(r'&#(?:[0-9]{3,6}|[xX][0-9A-Fa-f]{3,5});')
_SURROGATE = re.compile('[\ud800-\udfff]')


def is_html(text: str) -> bool:
  """Whether a text is HTML rather than a text that mentions some.

  A page begins with <!doctype html>, <html>, <head> or <body>. A part of a page
  has at least two tags; nine tenths of its tags are known to HTML, half of its
  lines that are not blank have one, and fewer than half of the tags touch
  quotes. Source code with tags in strings, Markdown with a few, 'a < b > c' and
  other XML fail one of these conditions.
  """
  if '<' not in text or '>' not in text:
    return False
  if _PAGE.match(text):
    return True
  lines = [line for line in text.split('\n') if line and not line.isspace()]
  tags = known = with_tags = in_quotes = 0
  for line in lines:
    if '<' not in line:
      continue
    names = _TAG.findall(line)
    tags += len(names)
    known += sum(name.lower() in _KNOWN_NAMES for name in names)
    with_tags += bool(names)
    in_quotes += len(_IN_QUOTES.findall(line))
  return (
    tags >= 2
    and known >= 0.9 * tags
    and with_tags >= 0.5 * len(lines)
    and in_quotes < 0.5 * tags
  )


def html_to_text(page: str) -> str:
  """The visible text of a page or a part of one.

    '<h1>Big &amp; old</h1><script>f()</script><p>Two<br>lines'
      ->  'Big & old\\n\\nTwo\\nlines'

  Blocks end lines, list items get bullets, <pre> keeps its blanks; scripts,
  styles, comments, form fields, alternative texts and menus are left out
  (resiliparse, Bevendorff et al. 2018).
  """
  if not page.isascii():
    # UTF-8 has no lone surrogates, so HTML has none either.
    page = _SURROGATE.sub('\ufffd', page)
  text = html2text.extract_plain_text(
    page,
    preserve_formatting=True,
    alt_texts=False,
    skip_elements=_SKIPPED,
  )
  # In HTML no-break blanks are layout.
  return text.replace('\xa0', ' ').strip('\n')


def decode_letters(text: str) -> str:
  """Decodes references to letters, like '&#25105;', in a text that is no HTML.

  Forms and old programs write letters that their encoding lacks in this way.
  References to Latin letters or to signs are kept: source code mentions them.
  """
  return _REFERENCE.sub(_letter, text) if '&#' in text else text


def _letter(match: re.Match) -> str:
  letter = html.unescape(match[0])
  return letter if letter >= '\u0370' and letter.isalpha() else match[0]

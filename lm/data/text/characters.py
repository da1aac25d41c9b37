"""One form for the characters of a text, and signs of a broken encoding."""

import re
import unicodedata


def normalize(text: str) -> str:
  """The text in NFC, with line feeds only, without invisible characters.

  Joiners and zero-width blanks that a script or emoji needs are kept.
  """
  if '\r' in text:
    text = text.replace('\r\n', '\n').replace('\r', '\n')
  if text.isascii():
    if _ASCII_CONTROL.search(text):
      text = _ASCII_CONTROL.sub('', _LINE_END.sub('\n', text))
    return text
  if _INVISIBLE.search(text):
    text = _LINE_END.sub('\n', text)
    text = _NEVER.sub('', text)
    text = _NEEDLESS.sub('', text)
  if len(text.encode('utf-16-le', 'surrogatepass')) > 2 * len(text):
    # Slow, and needed only with characters beyond the first plane.
    text = _NONCHARACTERS.sub('', text)
  return unicodedata.normalize('NFC', text)


def broken_share(text: str) -> float:
  """The share of characters that result from a wrong decoding.

  These are U+FFFD, C1 controls, UTF-8 read as Latin-1 or Windows-1252, and
  what U+FFFD and uninitialized memory become when read as GBK.
  """
  if text.isascii():
    return 0.0
  broken = text.count('\ufffd')
  if _C1.search(text):
    broken += len(_C1.findall(text))
  if _MAYBE_MISREAD.search(text):
    broken += sum(map(len, _MISREAD.findall(text)))
  for phrase in ('锟斤拷', '烫烫烫', '屯屯屯'):
    broken += len(phrase) * text.count(phrase)
  return broken / len(text)


# Searching is fast for a pattern that begins with a set of characters, if the
# set is in the Basic Multilingual Plane.
_ASCII_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]')
_LINE_END = re.compile('[\x0b\x0c\x85\u2028\u2029]')
_C1 = re.compile('[\x80-\x84\x86-\x9f]')
# Characters that Latin-1 and Windows-1252 show for the bytes that follow a
# leading byte of UTF-8. Sound text has some of these pairs, like 'é»', 'ß“' and
# 'à' with a no-break blank, so the second pattern is narrower.
_FOLLOWING = r'\xa1-\xaa\xac-\xba\xbc-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ‘•–—˜™š›œžŸ'
_MAYBE_MISREAD = re.compile(f'[Â-ï][{_FOLLOWING}\xa0«»’“”…]')
_MISREAD = re.compile(
  f'[ÂÃ][{_FOLLOWING}\xa0«»’“”…]|[Ä-Þ][{_FOLLOWING}]'
  f'|[â-ï][{_FOLLOWING}][{_FOLLOWING}\xa0«»’“”…]'
)
_ALWAYS_OUT = (
  '\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u2060\ufeff\ud800-\udfff'
  '\ufdd0-\ufdef\ufffe\uffff'
)
_NEVER = re.compile(f'[{_ALWAYS_OUT}]')
_INVISIBLE = re.compile(
  f'[{_ALWAYS_OUT}\x0b\x0c\x85\u2028\u2029\u200b\u200c\u200d]'
)
_NEEDLESS = re.compile(
  # Joiners make no difference after Latin, Greek, Cyrillic, Han and kana.
  '(?:^|(?<=[\\s\x21-\u052f\u3000-\u9fff]))[\u200c\u200d]+'
  # Thai, Lao, Myanmar and Khmer mark where words end.
  '|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b+'
)
_LAST_OF_PLANES = [
  chr(plane | last)
  for plane in range(0x10000, 0x110000, 0x10000)
  for last in (0xFFFE, 0xFFFF)
]
_NONCHARACTERS = re.compile(f'[{"".join(_LAST_OF_PLANES)}]')

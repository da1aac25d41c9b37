"""Placeholders for e-mail addresses, telephone numbers and IP addresses.

Dolma masks the same three kinds, by regular expressions, too (Soldaini et al.
2024). The patterns here are narrower: what could as well be a version, a date,
a price or an ISBN is kept.
"""

import ipaddress
import re

EMAIL, PHONE, ADDRESS = '<email>', '<phone>', '<ip>'

# ASCII only: an ideograph right before or after a number is no part of it.
_WORD = r'A-Za-z0-9_'
_EMAIL = re.compile(
  rf'(?<![{_WORD}.%+-])[A-Za-z0-9][A-Za-z0-9._%+-]*+@'
  r'(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}'
  rf'(?![{_WORD}(@-])'  # not a call: `a@b.reshape(2)`
)
_PHONE = re.compile(
  rf'(?<![{_WORD}.+/=#-])(?:'
  # North America: 212-555-0123, (212) 555-0123, +1 212-555-0123.
  r'(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}'
  # China: mobile 138 1234 5678, landline 010-62345678.
  r'|(?:\+?86[ -]?)?1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})'
  r'|(?:\(0\d{2,3}\) ?|0\d{2,3}-)\d{7,8}'
  # Elsewhere with a country code: +44 20 7946 0958, +493012345678.
  r'|\+[1-9]\d{0,2}(?:[ -]?\(?\d{1,4}\)?){2,6}'
  rf')(?![{_WORD}-]|[.,/]\d)',
  re.ASCII,
)
_IPV4 = re.compile(
  rf'(?<![{_WORD}.-])\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![{_WORD}-]|\.\w)', re.ASCII
)
_IPV6 = re.compile(
  rf'(?<![{_WORD}:.])[0-9A-Fa-f]{{0,4}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}'
  rf'(?![{_WORD}:])'
)
_MAYBE_NUMBER = re.compile(r'[+(\d][\d ().+-]{6}', re.ASCII)
_MAYBE_IPV6 = re.compile(r':[0-9A-Fa-f]{0,4}:')
_VERSION_BEFORE = re.compile(
  r'(?:\bv|version|ver\.|release|build|section|chapter|§|版本|第)[\s=:]*$',
  re.IGNORECASE,
)


def scrub(text: str) -> str:
  """Replaces what could reach a person, or their machine, by placeholders."""
  if '@' in text:
    text = _EMAIL.sub(EMAIL, text)
  if _MAYBE_NUMBER.search(text):
    text = '\n'.join(map(_scrub_numbers, text.split('\n')))
  if _MAYBE_IPV6.search(text):
    text = _IPV6.sub(_ipv6, text)
  return text


def _scrub_numbers(line: str) -> str:
  # The patterns that look behind are slow on lines without such numbers.
  if not _MAYBE_NUMBER.search(line):
    return line
  return _IPV4.sub(_ipv4, _PHONE.sub(_phone, line))


def _phone(match: re.Match) -> str:
  found = match[0]
  digits = sum(map(str.isdigit, found))
  # E.164 has at most 15 digits; +12345678 might be a sum.
  plain = found[1:].isdigit()
  return PHONE if (10 if plain else 8) <= digits <= 15 else found


def _ipv4(match: re.Match) -> str:
  """Replaces public addresses; 7.1.4.34 and `version 12.20.30.40` stay."""
  found = match[0]
  if sum(len(part) > 1 for part in found.split('.')) < 2:
    return found
  before = match.string[max(0, match.start() - 12) : match.start()]
  if _VERSION_BEFORE.search(before) or not _is_public(found):
    return found
  return ADDRESS


def _ipv6(match: re.Match) -> str:
  """Replaces public addresses; slices, times and `std::map` stay."""
  found = match[0]
  groups = [group for group in found.split(':') if group]
  written = len(groups) >= 3 and max(map(len, groups)) >= 3
  return ADDRESS if written and _is_public(found) else found


def _is_public(found: str) -> bool:
  try:
    return ipaddress.ip_address(found).is_global
  except ValueError:
    return False

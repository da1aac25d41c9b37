"""Lines that web pages put around their text."""

# C4 drops lines with one of these (Raffel et al. 2020, section 2.2).
_POLICIES = (
  'terms of use',
  'privacy policy',
  'cookie policy',
  'uses cookies',
  'use of cookies',
  'use cookies',
)
# C4 drops every line with the word; these leave pages about programming whole.
_JAVASCRIPT = (
  'enable javascript',
  'javascript is disabled',
  'javascript is required',
  'javascript must be enabled',
  'requires javascript',
)
# Further notices.
_NOTICES = (
  'all rights reserved',
  'accept all cookies',
  'skip to content',
  'skip to main content',
)
# Their counterparts on Chinese pages: copyright, editor, "click to see", codes
# to scan, reprinting, neighbouring articles, registration, privacy, terms.
_CHINESE = (
  '版权所有',
  '责任编辑',
  '点击查看',
  '扫码关注',
  '扫描二维码',
  '未经授权',
  '上一篇：',
  '下一篇：',
  'icp备',
  '公网安备',
  '隐私政策',
  '使用条款',
)
# Maximum lengths of dropped lines, in characters: a longer one is a paragraph
# about these things.
LONGEST = 200
LONGEST_CHINESE = 40
# Phrase -> maximum length of the lines that are dropped for it.
PHRASES = {
  **dict.fromkeys(_POLICIES + _JAVASCRIPT + _NOTICES, LONGEST),
  **dict.fromkeys(_CHINESE, LONGEST_CHINESE),
}

_PLACEHOLDERS = ('lorem ipsum', 'Lorem ipsum', 'Lorem Ipsum', 'LOREM IPSUM')


def has_placeholder(text: str) -> bool:
  """Whether a text has placeholder text (C4 drops such pages)."""
  return any(words in text for words in _PLACEHOLDERS)


def without_lines(text: str) -> str:
  """The text without short lines that contain one of PHRASES."""
  lines = text.split('\n')
  short = '\n'.join([line for line in lines if len(line) <= LONGEST]).lower()
  found = [phrase for phrase in PHRASES if phrase in short]
  if not found:
    return text

  def is_kept(line: str) -> bool:
    small = line.lower() if len(line) <= LONGEST else ''
    return not any(
      len(line) <= PHRASES[phrase] and phrase in small for phrase in found
    )

  return '\n'.join(filter(is_kept, lines))

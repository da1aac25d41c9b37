"""HTML: which texts are recognized as HTML, and the text in them."""

import re
import time

import pytest

from lm.data.text import cleaning

PAGE = """
<!DOCTYPE html>
<html><head><title>Title</title><style>p { color: red }</style></head>
<body><nav><a href="/">Home</a></nav><script>var x = '<p>no</p>';</script>
<h1>Caf&eacute; &lt;1&gt;</h1><!-- no comment -->
<p>First   line<br>second&nbsp;line</p><ul><li>one</li><li>two</li></ul>
<pre>def f():
    return 1</pre><img alt="no picture"><footer>no footer</footer></body></html>
"""


def test_html_gives_the_text_of_a_page():
  text = cleaning.html_to_text(PAGE)
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  assert lines[:3] == ['Café <1>', 'First line', 'second line']
  assert 'def f():\n    return 1' in text
  assert re.search(r'one\s*\n.*two', text)
  assert not re.search('no |red|Home|Title', text)
  assert cleaning.strip_html(PAGE) == text
  plain = '<HTML>\nOne line\nand another,\nwith no tags.\n'
  assert cleaning.strip_html(plain) == 'One line and another, with no tags.'
  assert cleaning.html_to_text('a\ud800b <b>c</b>') == 'a\ufffdb c'


@pytest.mark.parametrize(
  'text',
  [
    'Let a < b > c and x <y> z.',
    'std::vector<int> a;\nstd::map<Key, Value> b;\nFoo<A> c;\nBar<B> d;',
    '<note>\n<to>Ann</to>\n<body2>Hello</body2>\n</note>',
    '# Title\n\n<img src="a.png">\n\nText here.\n\n| a<br>b |\n\nMore text.\n',
    'def page(title):\n  """A page."""\n  body = "<p>" + title + "</p>"\n'
    '  return f"<html><body>{body}</body></html>"\n',
    "html = '''\n<p>one</p>\n'''\nassert x < y\nassert y > x\n",
    'One &amp; two &lt;three&gt; &#8217;',
  ],
)
def test_what_only_mentions_tags_is_left_alone(text):
  assert cleaning.strip_html(text) == text


def test_no_markup_is_slow():
  start = time.monotonic()
  for part in ('<!-- a -->', '<!--', '<a x="1" ', '<a ', ' x', '<p', '<p>'):
    cleaning.strip_html(f'<a{part * 30_000}')
    cleaning.strip_html(part * 30_000)
  assert time.monotonic() - start < 5

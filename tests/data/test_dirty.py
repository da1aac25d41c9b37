"""A folder as people have it: every file counted by hand against the manifest.

Two languages, six formats, broken files, pages, duplicates and near duplicates
across files and formats, boilerplate and spam.
"""

import gzip
import html
import json

import ml_collections
import pytest

from experiments import base
from lm import errors
from lm.config import resolve as config_lib
from lm.data import collect, encoding, prepare, tally

HARBOUR = """\
The harbour master counts the boats each morning before the tide has turned.
She writes their names into a ledger that her grandmother began, and beside
every name she notes what it carried: herring, salt, rope, once a piano for the
school on the hill. Nobody asks her to keep the ledger any more. The company
has a computer for that, which knows nothing of pianos.
"""
BREAD = """\
Bread needs four things, and the last of them is time. Flour, water and salt
are mixed within minutes; what follows cannot be hurried. In a cold kitchen the
dough may rest for a whole night, and it will taste of that night. Bakers who
sell by six in the morning have therefore always been people who work while
others dream, and who dream while others eat.
"""
RAILWAY = """\
When the railway reached our valley, my father was eleven years old. He walked
nine miles to see the engine, and he described it so often in later life that
I believe I was there myself. It was smaller than he had hoped. A stoker gave
him a lump of coal, still warm, which stood on our mantelpiece until the roof
was mended and somebody threw it out.
"""
MAPS = """\
A map that showed everything would be as large as the country. Good maps leave
out, and the skill lies in knowing what a traveller will not miss. Sailors need
depths and lights; walkers ask for slopes, springs and bad dogs. The oldest map
in our library marks neither road nor border, only wells, since whoever drew it
was thirsty before he was anything else.
"""
BEES = """\
Bees find their way by the sun, even when clouds hide it. A worker that comes
home with nectar dances on the comb, and the angle of her dance against the
vertical tells her sisters where to fly. Young bees get it wrong at first. They
learn, as all of us do, from watching others make mistakes in the dark, and by
the second week hardly one of them is lost.
"""
LETTERS = """\
Nobody in the village wrote letters as long as the schoolteacher did. She began
them in autumn and posted them in spring, so that a single page might hold snow,
the thaw, two funerals and the price of seed potatoes. Her brother in the city
answered with postcards. After her death they were found in a biscuit tin, all
forty of them, sorted not by date but by the colour of the stamp.
"""
CANAL = (
  '运河从城北流过，两岸种着柳树。每到春天，柳絮像雪一样落在水面上，孩子们划着小船去'
  '捞，捞上来的却只是一把湿漉漉的白毛。老人坐在桥头下棋，谁也不去看水。一盘棋可以从'
  '早晨下到傍晚，输的人要给大家泡茶。茶叶是自家山上采的，味道有些苦，喝惯了的人说，'
  '外面卖的再贵也不如这个香。'
)
MARKET = (
  '天还没有亮，菜市场里已经热闹起来了。卖鱼的把水桶摆成一排，卖豆腐的揭开木箱上的湿'
  '布，白汽一下子冒出来，什么也看不清楚。我跟在外婆后面，她只买三样东西：青菜、豆腐和'
  '一小块肉，可是每样都要问遍所有的摊子。回家的路上她告诉我，买东西不能着急，着急的人'
  '总是要多花钱。'
)
STARS = (
  '爷爷年轻的时候在气象站工作，夜里要每小时出去记录一次风向。他说那时的星星比现在多得'
  '多，低得好像伸手就能碰到。后来山下修了公路，又盖了工厂，天空一年比一年亮，星星也就'
  '一年比一年少。他退休以后仍然在半夜醒来，走到院子里抬头看看，然后对我说：今天吹的是'
  '东南风。'
)

PAGE = f"""<!doctype html>
<html><head><title>Maps</title><style>p {{ color: red }}</style>
<script>track("visitor");</script></head>
<body><p>{MAPS.replace('; walkers', ';&nbsp;walkers')}</p>
<p>This site uses cookies.</p></body></html>
"""
SPAM = 'Buy cheap watches here today and save.\n' * 40
TAGS = ' '.join(f'#word{i} is #trending' for i in range(40))


def near(text):
  """One word is another: a near duplicate of about 60 words."""
  for old, new in (('the', 'that'), ('天', '日')):
    if old in text:
      return text.replace(old, new, 1)
  raise ValueError(text)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('dirty')
  files = {
    'a/harbour.txt': HARBOUR.encode(),
    'a/bread.md': b'\xef\xbb\xbf' + BREAD.replace('\n', '\r\n').encode(),
    # The same except for blanks at line ends, which cleaning removes.
    'b/bread.txt': BREAD.replace('\n', ' \n').encode(),
    'a/canal.txt': CANAL.encode(),
    'b/page.html': PAGE.encode(),
    'b/broken.txt': 'Zürich ist eine Stadt.'.encode('latin-1'),
    'b/empty.txt': b'',
    'b/scrap.txt': b'To be continued.',
    'b/spam.txt': SPAM.encode(),
    'b/tags.txt': TAGS.encode(),
    'b/fragment.txt': '天气很好。'.encode(),
    'c/rows.jsonl.gz': gzip.compress(
      b''.join(
        json.dumps({'text': text}, ensure_ascii=False).encode() + b'\n'
        for text in (near(HARBOUR), RAILWAY, MARKET, near(MARKET), STARS)
      )
    ),
    'c/table.csv': (
      'id,text\n1,"' + near(MAPS) + '"\n2,"' + BEES + '"\n3,short,ragged\n'
    ).encode(),
    'c/torn.jsonl.gz': gzip.compress(b'{"text": "lost"}\n')[:20],
    'c/letters.tsv': ('text\n"' + LETTERS + '"\n').encode(),
    'c/photo.png': b'\x89PNG',
  }
  for name, content in files.items():
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(content)
  return root


# Reason -> the names of the documents dropped for it.
DROPPED = {
  'not UTF-8': {'b/broken.txt'},
  'empty': {'b/empty.txt'},
  'too short': {'b/scrap.txt', 'b/fragment.txt'},
  'repeated lines': {'b/spam.txt'},
  'too many symbols': {'b/tags.txt'},
  'broken gzip': {'c/torn.jsonl.gz'},
  'ragged row': {'c/table.csv:14'},
  'duplicate': {'b/bread.txt'},
  'near duplicate': {'c/rows.jsonl.gz:1', 'c/table.csv:2', 'c/rows.jsonl.gz:4'},
}
KEPT = {HARBOUR, BREAD, CANAL, MAPS, RAILWAY, MARKET, STARS, BEES, LETTERS}


def prepare_folder(folder, directory, **fields):
  config = base.get_config()
  config.data.update(
    source='files',
    path=str(folder),
    directory=str(directory),
    tokenizer='bytes',
    held_out_fraction=0.2,
    errors='skip',
  )
  config.data.update(fields)
  return prepare.prepare(config_lib.resolve(config).data)


@pytest.fixture(scope='module')
def prepared(folder, tmp_path_factory):
  return prepare_folder(folder, tmp_path_factory.mktemp('p') / 'prepared')


def texts_of(prepared):
  tokenizer, found = prepared.tokenizer(), []
  for name in prepare.SPLITS:
    split = prepared.train() if name == 'train' else prepared.held_out(name)
    found += [tokenizer.decode(split.read(d)[0]) for d in range(len(split))]
  return found


def test_what_is_kept_is_clean(prepared):
  found = texts_of(prepared)
  assert len(found) == len(KEPT)
  # Only the text of the page: no markup, no script, no notice on cookies.
  expected = {text.strip().replace('\n', ' ') for text in KEPT}
  assert {' '.join(text.split()) for text in found} == expected


def test_what_is_dropped_is_counted_by_reason_and_named(prepared):
  counts = prepared.manifest['sources']['files']
  found = {
    reason: {example['name'] for example in amount['examples']}
    for reason, amount in counts['dropped'].items()
  }
  assert found == DROPPED
  for reason, amount in counts['dropped'].items():
    assert amount['documents'] == len(DROPPED[reason])


def test_documents_bytes_and_characters_add_up(prepared):
  manifest = prepared.manifest
  counts = manifest['sources']['files']
  dropped = counts['dropped'].values()
  assert counts['kept']['documents'] == len(KEPT)
  assert counts['read']['documents'] == len(KEPT) + sum(
    map(len, DROPPED.values())
  )
  texts = texts_of(prepared)
  assert counts['kept']['bytes'] == sum(len(t.encode()) for t in texts)
  assert counts['kept']['characters'] == sum(map(len, texts))
  # What cleaning took out of documents that it did not drop, all in ASCII: line
  # ends of the last lines, what else ends the lines of both breads, and the
  # notice of the page.
  removed = 8 + 2 * BREAD.count('\n') + len('\nThis site uses cookies.')
  for unit in ('bytes', 'characters'):
    assert counts['kept'][unit] == sum(manifest[unit].values())
    gone = sum(amount[unit] for amount in dropped)
    assert counts['read'][unit] == counts['kept'][unit] + gone + removed
  by_hand = {
    'too short': 'To be continued.' + '天气很好。',
    'repeated lines': SPAM,
    'too many symbols': TAGS,
  }
  for reason, text in by_hand.items():
    assert counts['dropped'][reason]['bytes'] == len(text.encode())
    assert counts['dropped'][reason]['characters'] == len(text)


def test_a_near_duplicate_names_what_it_is_near_to(prepared):
  counts = prepared.manifest['sources']['files']
  twins = {
    example['name']: example['detail'].split(' like ')
    for example in counts['dropped']['near duplicate']['examples']
  }
  assert {name: other for name, (_, other) in twins.items()} == {
    'c/rows.jsonl.gz:1': 'a/harbour.txt',
    'c/table.csv:2': 'b/page.html',
    'c/rows.jsonl.gz:4': 'c/rows.jsonl.gz:3',
  }
  assert all(0.8 <= float(share) <= 1 for share, _ in twins.values())


def test_the_terminal_shows_the_counts_and_examples(prepared):
  text = prepare.describe(prepared)
  for reason, names in DROPPED.items():
    assert reason in text
    assert all(name in text for name in names)


def test_any_number_of_processes_prepares_the_same(
  folder, prepared, tmp_path, monkeypatch
):
  # Batches are made in this process.
  monkeypatch.setattr(collect, '_BATCH_DOCUMENTS', 2)
  monkeypatch.setattr(encoding, '_BATCH_BYTES', 256)
  other = prepare_folder(folder, tmp_path / 'p', processes=2)
  assert other.manifest == prepared.manifest
  assert texts_of(other) == texts_of(prepared)


def test_a_language_drops_the_other(folder, tmp_path):
  prepared = prepare_folder(folder, tmp_path / 'p', language='zh')
  texts = texts_of(prepared)
  assert sorted(texts) == sorted([CANAL, MARKET, STARS])
  dropped = prepared.manifest['sources']['files']['dropped']
  assert dropped['another language']['documents'] == 9


def test_nothing_is_changed_without_rules(folder, tmp_path):
  prepared = prepare_folder(
    folder,
    tmp_path / 'p',
    near_duplicates=0.0,
    cleaning=ml_collections.ConfigDict({'rules': ()}),
  )
  texts = texts_of(prepared)
  assert SPAM in texts
  assert BREAD.replace('\n', ' \n') in texts
  assert prepared.manifest['sources']['files']['changed'] == {}


def test_the_first_broken_file_ends_a_strict_preparation(folder, tmp_path):
  with pytest.raises(errors.UserError, match=r'b/broken\.txt:1 is not UTF-8'):
    prepare_folder(folder, tmp_path / 'p', errors='stop')
  assert not list(tmp_path.iterdir())


def test_a_page_that_shows_markup_keeps_it(tmp_path):
  shown = '<p>Salt &amp; iron.</p>\n<p>Coal.</p>'
  folder = tmp_path / 'pages'
  folder.mkdir()
  for number in range(3):
    page = (
      f'<html><body><pre>{number}\n{html.escape(shown)}</pre></body></html>'
    )
    (folder / f'{number}.html').write_text(page)
  prepared = prepare_folder(
    folder,
    tmp_path / 'p',
    near_duplicates=0.0,
    cleaning=ml_collections.ConfigDict({'rules': ('html',)}),
  )
  assert sorted(texts_of(prepared)) == [f'{n}\n{shown}' for n in range(3)]


def test_the_terminal_gets_nothing_that_it_obeys():
  counts = tally.Tally(['some'])
  text = tally.excerpt('a\x1b[2J\nb\x07 北京')
  assert text == 'a\ufffd[2J b\ufffd 北京'
  counts.drop('some', 'bad', 1, 1, {'name': '\x1b.txt', 'detail': '\x9b'})
  assert all(map(str.isprintable, tally.describe(counts.as_dict())))

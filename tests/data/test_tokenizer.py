"""Tokenizers lose nothing, emit no special ids, and train reproducibly."""

import pickle
import random
import re

import numpy as np
import pytest

from lm import errors
from lm.data import tokenizer, vocabulary
from lm.data.text import words

ENGLISH = (
  'It is a truth universally acknowledged, that a single man in possession of '
  'a good fortune, must be in want of a wife.\n'
  'However little known the feelings or views of such a man may be, this truth '
  "is so well fixed; he's their rightful property.\n"
)
CHINESE = (
  '我们即将以丰收的喜悦送走牛年，以昂扬的斗志迎来虎年。\n'
  '我们伟大祖国在新的征途上迈出坚实的步伐。 改革开放！\n'
)
TEXTS = [ENGLISH * 3, CHINESE * 3, 'def f(x):\n    return x\n' * 4]

PROBES = [
  *('', '\n', '\r\n', 'a\r\n\r\nb', '\t\t a', '   ', 'a    b ', ' \n '),
  *('▁', 'a▁b▁', '▁▁ ▁', '▅', '⁇', '\u00a0x\u3000y', 'ＡＢＣ１２'),
  *('，。！？、', '👩‍👩‍👧‍👦', 'e\u0301', '\u0301', '\x00', 'a\x00b', '\ufeffx'),
  *('<s>', '<0x41>', '<pad>[MASK]</s><unk><extra_id_0>', 'a' * 5000, ' ' * 999),
  *('שלום עולם', 'مرحبا', '\u202eabc', '\u0378\U000e0fff', '\ufffe\ufdd0'),
  *('한국어', '各族人民' * 50, '\U0010ffff', '\x7f\x85\u2028', 'ﬁ İ'),
  *(ENGLISH, CHINESE),
]


def random_texts(count):
  rng = random.Random(0)
  for _ in range(count):
    bound = rng.choice([128, 0x3000, 0x110000])
    codes = [rng.randrange(bound) for _ in range(rng.randrange(40))]
    yield ''.join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)


@pytest.fixture(scope='module', params=tokenizer.KINDS)
def tok(request):
  return tokenizer.train(request.param, 700, iter(TEXTS))


def test_decoding_undoes_encoding_and_byte_lengths_add_up(tok):
  texts = [*PROBES, *random_texts(300)]
  for text, ids in zip(texts, tok.encode_batch(texts), strict=True):
    assert ids.dtype == np.int32
    assert tok.decode(ids) == text
    assert tok.byte_lengths_V[ids].sum() == len(text.encode())
    assert np.all(ids >= tokenizer.NUM_SPECIAL)
    assert np.all(ids < len(tok.pieces))
    np.testing.assert_array_equal(ids, tok.encode(text))


def test_ids_are_laid_out_alike_for_every_kind(tok):
  assert tok.pieces[: tokenizer.NUM_SPECIAL] == (b'',) * 270
  first, end = tokenizer.FIRST_BYTE, tokenizer.FIRST_PIECE
  assert tok.pieces[first:end] == tuple(bytes([i]) for i in range(256))
  assert (first, end) == (270, 526)
  assert all(tok.pieces[end:])
  assert len(set(tok.pieces[end:])) == len(tok.pieces[end:])
  assert len(tok.pieces) <= tok.vocab_size == 700
  assert tok.byte_lengths_V.shape == (700,)
  assert not tok.byte_lengths_V[len(tok.pieces) :].any()
  assert not tok.byte_lengths_V[: tokenizer.NUM_SPECIAL].any()


def test_special_ids_follow_their_names():
  ids = [tokenizer.PAD, tokenizer.BOS, tokenizer.EOS, tokenizer.UNK]
  assert ids == [0, 1, 2, 3]
  assert [tokenizer.MASK, tokenizer.SEP, tokenizer.CLS] == [4, 5, 6]
  assert list(tokenizer.SENTINELS) == list(range(7, 263))
  assert (tokenizer.FIM_PREFIX, tokenizer.FIM_END) == (263, 266)
  assert (tokenizer.MODE_R, tokenizer.MODE_X) == (267, 269)
  assert len(set(tokenizer.SPECIAL_NAMES)) == tokenizer.NUM_SPECIAL == 270
  assert tokenizer.SPECIAL_NAMES[tokenizer.MODE_X] == '[NLG]'


def test_special_and_unused_ids_are_no_text(tok):
  ids = tok.encode('ab').tolist()
  mixed = [tokenizer.BOS, ids[0], tokenizer.UNK, *ids[1:], 9999, -1, 699]
  expected = 'ab' + tok.decode([699])
  assert tok.decode(mixed) == expected


def test_lone_surrogates_are_refused(tok):
  with pytest.raises(UnicodeEncodeError):
    tok.encode('a\ud800')


def test_saved_is_loaded_the_same(tok, tmp_path):
  tok.save(tmp_path / 'saved')
  loaded = tokenizer.load(tmp_path / 'saved')
  assert loaded == tok
  assert loaded.digest == tok.digest
  np.testing.assert_array_equal(loaded.encode(ENGLISH), tok.encode(ENGLISH))
  assert not list(tmp_path.rglob('*.tmp'))


def test_a_pickled_copy_encodes_the_same(tok):
  tok.encode('warm the cached processor')
  copy = pickle.loads(pickle.dumps(tok))
  np.testing.assert_array_equal(copy.encode(CHINESE), tok.encode(CHINESE))


def test_training_twice_gives_the_same_digest(tok):
  assert tokenizer.train(tok.kind, 700, TEXTS).digest == tok.digest
  if tok.kind != 'bytes':
    assert tokenizer.train(tok.kind, 690, TEXTS).digest != tok.digest


@pytest.mark.parametrize('kind', ['unigram', 'bpe', 'word', 'char'])
@pytest.mark.parametrize('vocab_size', [528, 529, 560, 600])
def test_small_vocabularies_leave_the_rarest_characters_to_bytes(
  kind, vocab_size
):
  rng = random.Random(1)
  letters = [chr(0x4E00 + i) for i in range(2000)]  # Many counts are equal.
  text = ''.join(letters) + ''.join(rng.choices(letters[:200], k=3000))
  tok = tokenizer.train(kind, vocab_size, [text])
  assert tok.decode(tok.encode(text + ' x')) == text + ' x'
  single = [p for p in tok.pieces[526:] if len(p.decode()) == 1]
  limit = vocab_size - 526
  assert len(single) <= (limit if kind == 'char' else limit // 2)
  assert len(tok.pieces) <= vocab_size
  if kind == 'char':
    assert len(single) == limit


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_a_blank_is_a_piece_where_it_is_too_rare_to_count(kind):
  tok = tokenizer.train(kind, 560, ['我们的' * 50])
  assert b' ' in tok.pieces
  assert tok.decode(tok.encode('我们 的')) == '我们 的'


@pytest.mark.parametrize('kind', ['unigram', 'bpe', 'word', 'char'])
@pytest.mark.parametrize('text', ['Hello, world.', 'a', 'aaaa', '中', '<s>'])
def test_tiny_corpora_are_enough(kind, text):
  tok = tokenizer.train(kind, 40000, [text])
  assert tok.vocab_size == 40000
  assert tok.decode(tok.encode(text + ' \n')) == text + ' \n'


@pytest.mark.parametrize('texts', [[], [''], ['  \n\t'], ['▁']])
@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_no_text_is_an_error_of_one_line(kind, texts):
  with pytest.raises(
    errors.UserError, match=f"data.tokenizer='{kind}'"
  ) as info:
    tokenizer.train(kind, 600, texts)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_too_small_a_vocabulary_is_an_error(kind):
  with pytest.raises(errors.UserError, match=r'data\.vocab_size=525'):
    tokenizer.train(kind, 525, TEXTS)


def test_an_unknown_kind_lists_the_choices():
  with pytest.raises(errors.UserError, match='unigram, bpe, word, char, bytes'):
    tokenizer.train('spam', 600, TEXTS)


def test_loading_what_is_no_tokenizer_is_an_error(tmp_path):
  def broken(match):
    with pytest.raises(errors.UserError, match=match) as info:
      tokenizer.load(tmp_path)
    assert '\n' not in str(info.value)
    assert str(tmp_path) in str(info.value)

  broken('no readable tokenizer.json')
  (tmp_path / 'tokenizer.json').write_text('{"half":')
  broken('not JSON')
  (tmp_path / 'tokenizer.json').write_text('{"model": {"type": "BPE"}}')
  broken('not written here')
  tokenizer.train('bpe', 600, TEXTS).save(tmp_path)
  model = tmp_path / 'sentencepiece.model'
  model.write_bytes(model.read_bytes()[:-1])
  broken('damaged')
  model.unlink()
  broken('damaged')


def test_cut_lines_are_the_text_in_characters():
  texts = ['word ' * 50, '我们' * 40, 'a' * 100, ' ' * 50, '', *PROBES]
  for text in texts:
    lines = list(vocabulary.cut(text, 16))
    assert ''.join(lines) == text
    assert all(0 < len(line.encode()) <= 16 for line in lines)
  for limit in (7, 8, 9):
    assert list(vocabulary.cut('one two three', limit)) == ['one two', ' three']


def test_ties_are_broken_by_code_point():
  assert vocabulary.learn_characters(['cab cab'], 2) == ['a', 'b']
  assert vocabulary.learn_words(['cc\nbb\naa'], 2) == ['aa', 'bb']


def test_a_stream_of_bytes_is_decoded_by_whole_characters():
  tok = tokenizer.train('bytes', 526, [])
  stream = tokenizer.StreamDecoder(tok)
  parts = [stream.feed([i]) for i in tok.encode('é中😀!')]
  assert parts == ['', 'é', '', '', '中', '', '', '', '😀', '!']
  assert (stream.flush(), stream.dropped_bytes) == ('', 0)


def test_bytes_that_form_no_character_are_dropped_and_counted():
  tok = tokenizer.train('bytes', 526, [])
  first, second, third = tok.encode('中').tolist()
  a = int(tok.encode('a')[0])
  stream = tokenizer.StreamDecoder(tok)
  assert stream.feed([first, second]) == ''
  assert stream.dropped_bytes == 0
  assert stream.feed([a]) == 'a'
  assert stream.dropped_bytes == 2
  assert stream.feed([270 + 0xFF, third]) == ''
  assert stream.dropped_bytes == 4
  assert stream.feed([first, tokenizer.PAD, second]) == ''
  assert stream.feed([tokenizer.EOS, third]) == '中'
  assert stream.feed([first]) == ''
  assert stream.flush() == ''
  assert stream.dropped_bytes == 5


def test_the_stream_is_the_decoded_text_for_any_ids(tok):
  rng = np.random.default_rng(0)
  for _ in range(50):
    ids = rng.integers(0, tok.vocab_size, 60)
    stream = tokenizer.StreamDecoder(tok)
    text = ''.join(stream.feed(part) for part in np.array_split(ids, 7))
    text += stream.flush()
    assert text == tok.decode(ids)
    size = tok.byte_lengths_V[ids].sum()
    assert stream.dropped_bytes == size - len(text.encode())


def test_word_index_example():
  # The example of the docstring.
  starts = np.array([0, 1, 3, 4, 6, 8, 9, 10, 11, 12, 13])
  index = words.word_index('Big dogs,\n我们', starts)
  assert index.dtype == np.int32
  assert index.tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 4, 4, 5]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', []),
    ("don't  stop", ['don', "'", 't', '  stop']),
    ('a_b2 (c)... ', ['a_b2', ' (', 'c', ')...', ' ']),
    ('x \n\n\ty', ['x', ' \n\n', '\ty']),
    ('我 们abc。ひ1カ', ['我', ' 们', 'abc', '。', 'ひ', '1', 'カ']),
    ('한국어 말', ['한국어', ' 말']),
    ('cafe\u0301s हिन्दी', ['cafe\u0301s', ' हिन्दी']),
    ('👩‍👩‍👧!', ['👩‍👩‍👧!']),
    ('\u0301a', ['\u0301a']),
    ('กี่ 葛\U000e0100x', ['กี่', ' 葛\U000e0100', 'x']),
    ('می\u200cخواهم', ['می\u200cخواهم']),
  ],
)
def test_words(text, expected):
  assert words.split(text) == expected


def test_words_agree_with_a_regular_expression():
  # The slow twin, for text without marks and scripts without blanks.
  end = r'\n\r\x0b\x0c\x85\u2028\u2029'
  word = re.compile(
    rf'[^\S{end}]*(?:[{end}]+|\w+|[^\w\s]+)|[^\S{end}]+', re.ASCII
  )
  rng = random.Random(2)
  for _ in range(300):
    text = ''.join(rng.choices('ab1_ .,\t\n-', k=rng.randrange(60)))
    assert words.split(text) == word.findall(text)
    starts = np.arange(len(text))
    slow = [i for i, w in enumerate(word.findall(text)) for _ in w]
    assert words.word_index(text, starts).tolist() == slow


def test_tokens_of_every_kind_find_their_words(tok):
  ids = tok.encode(ENGLISH + CHINESE)
  lengths = tok.byte_lengths_V[ids]
  index = words.word_index(ENGLISH + CHINESE, np.cumsum(lengths) - lengths)
  assert index[0] == 0
  assert np.all(np.diff(index) >= 0)
  assert index[-1] == len(words.split(ENGLISH + CHINESE)) - 1

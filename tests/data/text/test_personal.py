"""Scrubbing: contact data are replaced, other numbers are kept."""

import pytest

from lm.data.text import personal


@pytest.mark.parametrize(
  ('text', 'scrubbed'),
  [
    ('Jo <jo.o-x+y@mail.example.co.uk>, ok', 'Jo <<email>>, ok'),
    ('邮箱abc@example.com。', '邮箱<email>。'),
    ('call 212-555-0123 or 212.555.0123!', 'call <phone> or <phone>!'),
    ('(+1 212-555-0123)', '(<phone>)'),
    ('+44 20 7946 0958, +49 (30) 1234567', '<phone>, <phone>'),
    ('+493012345678', '<phone>'),
    ('手机：138 1234 5678', '手机：<phone>'),
    ('+86 13812345678', '<phone>'),
    ('(010) 62345678', '<phone>'),
    ('at 93.184.215.14:80.', 'at <ip>:80.'),
    ('a\n2606:4700:4700::1111\nb', 'a\n<ip>\nb'),
  ],
)
def test_personal_data_is_scrubbed(text, scrubbed):
  assert personal.scrub(text) == scrubbed


@pytest.mark.parametrize(
  'text',
  [
    'in 1789, 1861-1865 and 2024-01-15, 15.01.2024 10:20:30.123',
    'ISBN 978-0-306-40615-7, 0-306-40615-2, 9780306406157, ISSN 0378-5955',
    '$1,234,567.89, 1 234 567 890, 13,800,000,000, 13812345678.50',
    'Python 3.11.7, 1.2.3.4, v12.34.56.78, version 12.34.56.78, 7.1.4.34',
    '127.0.0.1 192.168.10.20 256.300.10.10 1.3.6.1.4.1.311 12.34.56.78.90',
    'x[1::2] a::b std::map 00:1A:2B:3C:4D:5E fe80::1234:5678:abcd ::1',
    '@decorator user@host pkg@1.2.3 W@x.reshape(2) git@',
    'id 138123456789, order-13812345678, /13812345678, +12345, a+35236450.6',
    'pages 212-555, 555-0123, score 100-99-1234, UUID 1234-5678-9012-3456',
  ],
)
def test_numbers_of_other_kinds_stay(text):
  assert personal.scrub(text) == text

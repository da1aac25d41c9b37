"""Texts that are drawn from a seed, in two languages."""

import random

_ENGLISH = (
  'the of to and a in that is was he for it with as his on be at by had not '
  'are but from or have an they which one you were her all she there would '
  'their we him been has when who will more no if out so said what up its '
  'about into than them can only other new some could time these two may then '
  'do first any my now such like our over man me even most made after also '
  'did many before must through years where much your way well down should '
  'because each just those people how too little state good very make world'
).split()
_CHINESE = (
  '我们 中国 人民 今天 工作 学习 天气 北京 上海 喜欢 可以 因为 所以 已经 开始 '
  '经济 发展 社会 问题 研究 大学 老师 学生 朋友 时间 地方 觉得 知道 非常 重要 '
  '龘 靐 齉 爩 鱻 麤 灪 麣 鸾 籲'
).split()


def sentences(seed: int, count: int) -> str:
  """Text of common words, the same for the same arguments."""
  rng = random.Random(seed)
  weights = [1 / (i + 1) for i in range(len(_ENGLISH))]
  parts = []
  for _ in range(count):
    words = rng.choices(_ENGLISH, weights, k=rng.randint(4, 14))
    parts.append(' '.join(words).capitalize() + '.')
    parts.append('\n\n' if rng.random() < 0.2 else ' ')
  return ''.join(parts)


def chinese(seed: int, count: int) -> str:
  """Sentences of made-up order."""
  rng = random.Random(seed)
  weights = [1 / (i + 1) for i in range(len(_CHINESE))]
  parts = []
  for _ in range(count):
    parts += rng.choices(_CHINESE, weights, k=rng.randint(3, 9))
    parts.append(rng.choice(['。', '，', '！', '。\n']))
  return ''.join(parts)

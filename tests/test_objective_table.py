"""The table of all objectives: its cells, and how many steps a text takes."""

import pytest

from lm import objective_table, objectives
from lm.config import resolve as config_lib
from lm.data import packing, prepare

LINES = [
  {'split': 'train', 'step': 1, 'loss': 8.5, 'loss/a': 8.5, 'loss/b': 3.0},
  {
    'split': 'train',
    'step': 9,
    'loss': 6.25,
    'loss/a': 6.25,
    'loss/b': 1.0,
    'padding_share': 0.125,
  },
  {'split': 'final', 'step': 9, 'suffix_scorer': 'none'},
]
MEASURED = {'tokens_per_second': 12345.6, 'peak_memory_bytes': 3 << 20}


def test_cells_hold_each_term_before_and_after():
  cells = objective_table.cells('name', 'decoder', 9, LINES, MEASURED)
  assert cells == [
    *('name', 'decoder', '9', 'a 8.50, 6.25, b 3.00, 1.00'),
    *('-', 'none', '12,346', '3', '12.5%'),
  ]
  final = {**LINES[-1], 'suffix_bits_per_byte': 1.5, 'suffix_scorer': 'exact'}
  cells = objective_table.cells(
    'name', 'decoder', 9, [*LINES[:2], final], MEASURED
  )
  assert cells[4:6] == ['1.500', 'exact']


@pytest.mark.parametrize('name', ['causal', 'span'])
def test_steps_read_so_many_tokens(config, name):
  config.objective.name = name
  config = config_lib.resolve(config)
  tokens = 20_000
  steps = objective_table.steps_for(config, tokens)
  prepared = prepare.prepare(config.data)
  objective = objectives.make(config, prepared.tokenizer())
  split = prepared.train()
  rows = packing.training_rows(config, split, objective)
  # Passes over the split, and the tokens of each.
  read = rows.epochs(steps * config.data.batch_size) * split.lengths.sum()
  assert read == pytest.approx(tokens, rel=0.05)

"""Prints a table of all objectives, trained on the same number of raw tokens.

python -m lm.objective_table [--directory=runs/objectives] [--tokens=100000]

Trains the `:smoke` variant of the experiment named after each objective, and
prints a table in Markdown. Raw tokens are the tokens of the text itself; an
objective whose rows hold fewer of them trains for more steps. Losses of
different objectives are not comparable; each is shown with its value before the
first step. The suffix columns are comparable.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys
from typing import Any

from lm import objectives
from lm.config import resolve as config_lib
from lm.data import packing, prepare
from lm.training import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
_HEAD = (
  *('objective', 'architecture', 'steps', 'loss: untrained, trained'),
  *('suffix bits/byte', 'scorer', 'tokens/s', 'memory, MiB', 'padding'),
)


def main():
  """Trains the missing runs, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--directory', default='runs/objectives')
  parser.add_argument('--tokens', type=int, default=100_000)
  parser.add_argument(
    '--objectives', nargs='*', choices=objectives.OBJECTIVES, default=[]
  )
  given = parser.parse_args()
  rows = [
    _row(name, pathlib.Path(given.directory) / name, given.tokens)
    for name in given.objectives or objectives.OBJECTIVES
  ]
  for cells in (_HEAD, ['---'] * len(_HEAD), *rows):
    print('| ' + ' | '.join(cells) + ' |')


def steps_for(config, tokens: int) -> int:
  """Returns the number of steps that read about `tokens` tokens of text.

  Estimated from the rows of the first epoch, which hold all of the training
  split that fits them.

  Args:
    config: resolved config.
    tokens: number of raw tokens.
  """
  prepared = prepare.prepare(config.data)
  objective = objectives.make(config, prepared.tokenizer())
  rows = packing.training_rows(config, prepared.train(), objective)
  tokens_per_row = rows.tokens / rows.rows_in_first_epoch(2**62)
  return max(1, round(tokens / (tokens_per_row * config.data.batch_size)))


def _row(name: str, workdir: pathlib.Path, tokens: int) -> list[str]:
  """Trains and measures an objective; returns its row of the table."""
  experiment = importlib.import_module(f'experiments.{name}')
  config = config_lib.resolve(experiment.get_config('smoke'))
  steps = steps_for(config, tokens)
  flags = [
    f'--config={ROOT / "experiments" / name}.py:smoke',
    f'--config.train.steps={steps}',
  ]
  _run(*flags, f'--workdir={workdir}')
  measured = json.loads(_run(*flags, '--mode=benchmark').splitlines()[-1])
  return cells(
    name,
    config.model.architecture,
    steps,
    metrics.read(workdir),
    measured,
  )


def cells(
  name: str,
  architecture: str,
  steps: int,
  lines: list[dict[str, Any]],
  measured: dict[str, Any],
) -> list[str]:
  """Builds a row of the table from metrics.jsonl and benchmark figures."""
  last = {line['split']: line for line in lines}
  untrained = next(line for line in lines if line['split'] == 'train')
  suffix = last['final'].get('suffix_bits_per_byte')
  return [
    name,
    architecture,
    str(steps),
    ', '.join(
      f'{term.removeprefix("loss/")} {value:.2f}, {last["train"][term]:.2f}'
      for term, value in untrained.items()
      if term.startswith('loss/')
    ),
    '-' if suffix is None else f'{suffix:.3f}',
    last['final']['suffix_scorer'],
    f'{measured["tokens_per_second"]:,.0f}',
    f'{measured["peak_memory_bytes"] / 2**20:,.0f}',
    f'{last["train"]["padding_share"]:.1%}',
  ]


def _run(*flags: str) -> str:
  command = [sys.executable, str(ROOT / 'run.py'), *flags]
  return subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True
  ).stdout


if __name__ == '__main__':
  main()

"""All objectives, trained on the same number of raw tokens, in one table.

python -m lm.objective_table [--directory=runs/objectives] [--tokens=100000]

Trains the `:smoke` variant of each objective's experiment, whose file has its
name, and prints a table in Markdown. Raw tokens are those of the text itself:
an objective whose rows hold fewer of them makes more steps. Each objective's
loss is its own and compares with no other's; it is beside its own value before
the first step. What may be compared is in the columns for the suffix.
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
  """Trains what is not there yet, and prints the table."""
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
  """Steps of a resolved config that read about so many tokens of text.

  From the rows of its first epoch, which hold all of the training split that
  fits them.
  """
  prepared = prepare.prepare(config.data)
  objective = objectives.make(config, prepared.tokenizer())
  rows = packing.training_rows(config, prepared.train(), objective)
  of_a_row = rows.tokens / rows.rows_in_first_epoch(2**62)
  return max(1, round(tokens / (of_a_row * config.data.batch_size)))


def _row(name: str, workdir: pathlib.Path, tokens: int) -> list[str]:
  """Trains and measures an objective; its cells."""
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
  """A row of the table from metrics.jsonl and a benchmark's figures."""
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

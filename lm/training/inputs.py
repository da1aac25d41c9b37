"""The data that a run reads: prepared once, by one process, and packed."""

import pathlib
from collections.abc import Callable

from lm import errors, types
from lm.data import packing, prepare
from lm.runtime import hosts
from lm.training import provenance


def find_prepared(
  preparing: Callable[[], prepare.Prepared],
) -> prepare.Prepared:
  """The prepared data; the first process prepares it while the others wait.

  Raises:
    UserError: processes do not share the folder.
  """
  directory = hosts.decide(lambda: str(preparing().directory))
  prepared = prepare.load(pathlib.Path(directory))
  if prepared is None:
    raise errors.UserError(
      f'the data prepared in {directory} is not there for every process; '
      'give a data.directory on a file system that all hosts share'
    )
  return prepared


def prepare_for(
  workdir: pathlib.Path, data, *, resumed: bool
) -> prepare.Prepared:
  """The prepared data of a run.

  Args:
    data: section of the config.
    resumed: whether the run is continued.

  Raises:
    UserError: a continued run was trained on other data.
  """
  if not resumed:
    return prepare.prepare(data, report=print)
  known = provenance.read(workdir)
  directory = pathlib.Path(data.directory or known['data_directory'])
  prepared = prepare.load(directory) or prepare.prepare(data, report=print)
  if prepared.hash != known['data_hash']:
    raise errors.UserError(
      f'the run in {workdir} was trained on data with hash '
      f'{known["data_hash"]}, not {prepared.hash} ({prepared.directory}); '
      'restore the text it was made from, or give another --workdir'
    )
  return prepared


def make_rows(
  config, prepared: prepare.Prepared, objective: types.Objective
) -> packing.Rows:
  """The rows of the training text; prints which pairs do not fit.

  Raises:
    UserError: they do not fill a batch.
  """
  data = config.data
  rows = packing.training_rows(config, prepared.train(), objective)
  if text := rows.left_out('training'):
    print(text)
  found = rows.rows_in_first_epoch(data.batch_size)
  if found < data.batch_size:
    raise errors.UserError(
      f'the training text fills {found} row(s) of data.sequence_length='
      f'{data.sequence_length} positions, less than one batch of '
      f'data.batch_size={data.batch_size}; give more text, or lower one'
    )
  return rows

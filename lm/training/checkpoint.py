"""Checkpoints: the train state and the progress beside it. Orbax stays here."""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import shutil
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec as P
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm import errors
from lm.runtime import hosts, parameter_rules
from lm.training import step


class Checkpoints:
  """The checkpoints of a run folder: asynchronous, the last N and the best.

  Orbax writes into a temporary folder and renames it when it is complete, so
  a killed save leaves no step behind. Each checkpoint also stores a digest of
  each array's bits: damage by disks or copies is noticed when it is read.

  Several processes make every call together, and read the same folder.
  """

  def __init__(
    self, workdir: pathlib.Path, *, keep: int = 1, writes: bool = False
  ):
    """Opens the checkpoints; `writes` is for the run that trains alone.

    Others move and remove nothing, since another process may be saving.
    """
    self._writes = writes
    self._directory = workdir.absolute() / 'checkpoints'
    # Orbax's own metrics are not used: it cannot open a folder in which one of
    # their files is damaged.
    self._losses: dict[int, float] = {}
    policies = preservation_policy.AnyPreservationPolicy(
      [preservation_policy.LatestN(keep), _Best(self._losses)]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies,
        enable_async_checkpointing=True,
        create=writes,
        # Removes what a killed save has left.
        cleanup_tmp_directories=writes,
      ),
      item_names=('state', 'progress', 'config'),
    )
    self._reader = _make_reader()
    if writes:  # readers remove nothing, so they need not know the best
      for number, loss in hosts.decide(self._stored_losses):
        self._note_loss(number, loss)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, latest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def save(
    self,
    state: step.TrainState,
    progress: dict[str, Any],
    config: dict[str, Any],
    *,
    validation_loss: float | None = None,
  ):
    """Starts saving; returns when the state has been copied from the device.

    Raises:
      UserError: the disk is full, or was during the save before.
    """
    number = int(state.step)
    if hosts.decide(lambda: number in self._manager.all_steps()):
      return
    progress = {
      **progress,
      'digest': _digest(state),
      'validation_loss': validation_loss,
    }
    progress['checksum'] = _checksum(progress)
    self._note_loss(number, validation_loss)
    try:
      self._manager.save(
        number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_as_dict(state)),
          progress=ocp.args.JsonSave(progress),
          config=ocp.args.JsonSave(config),
        ),
      )
    except Exception as error:
      self._explain(error)
      raise

  def wait(self):
    """Waits until every save has ended.

    Raises:
      UserError: the disk is full.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._explain(error)
      raise

  def restore_latest(
    self, abstract_state: step.TrainState
  ) -> tuple[step.TrainState, dict[str, Any]] | None:
    """The latest checkpoint that can be read, as (state, progress).

    Warns of a damaged one and tries the one before it. With `writes` it is
    moved aside, to WORKDIR/damaged/STEP, once another has been read: when none
    can be read, the fault may be elsewhere, and nothing is moved.

    Args:
      abstract_state: shapes, dtypes and shardings to restore to, which need
        not be those of the run that saved. A leaf `...` is neither read nor
        checked, and is returned as it is.

    Returns:
      None when there is no checkpoint.

    Raises:
      UserError: there are checkpoints and none can be read, or one has a
        position table of another length.
    """
    failed: dict[int, Exception] = {}
    while steps := [s for s in hosts.decide(self.steps) if s not in failed]:
      try:
        restored = self._restore(steps[0], abstract_state)
      except Exception as error:
        self._check_positions(steps[0], abstract_state)
        failed[steps[0]] = error
        self._manager.reload()  # a run that is training may have removed it
        continue
      hosts.decide(lambda: self._set_aside(failed))
      self._manager.reload()
      return restored
    if failed:
      first = failed[max(failed)]
      raise errors.UserError(
        f'no checkpoint in {self._directory} can be read (step {max(failed)}: '
        f'{_one_line(first)}); restore one, or start anew in another --workdir'
      ) from first
    return None

  def restore_params(self, abstract_state: step.TrainState) -> tuple[Any, int]:
    """Evaluated parameters of the latest readable checkpoint and its step.

    Nothing else of the state is read, so that damage there does not matter.

    Args:
      abstract_state: the whole state, as for `restore_latest`.

    Raises:
      UserError: there is no checkpoint, or none can be read.
    """
    restored = self.restore_latest(_only_evaluated(abstract_state))
    if restored is None:
      raise errors.UserError(
        f'{self._directory} holds no checkpoint; train the run first '
        '(--mode=train)'
      )
    state, _ = restored
    return state.evaluated, int(state.step)

  def close(self):
    """Waits for saves and frees Orbax's threads."""
    self._manager.close()
    self._reader.close()

  def _restore(self, number: int, abstract_state: step.TrainState):
    """A checkpoint, if every process can read its part of it."""
    items = _as_dict(abstract_state)
    restored = hosts.attempt(
      lambda: self._read(
        number,
        # StandardRestore does not accept placeholders.
        state=ocp.args.PyTreeRestore(
          items,
          restore_args=ocp.checkpoint_utils.construct_restore_args(items),
        ),
        progress=ocp.args.JsonRestore(),
      )
    )
    state = step.TrainState(**restored.state)
    # Every process has read it; the first one's copy keeps what follows alike.
    progress = hosts.decide(lambda: restored.progress)
    if _checksum(progress) != progress['checksum']:
      raise ValueError('the progress does not match its checksum')
    _check_digest(state, progress['digest'])
    return state, progress

  def _check_positions(self, number: int, abstract_state: step.TrainState):
    """Raises UserError if the checkpoint's position table has other rows.

    Encoder-decoders of older versions have as many as their longer side.
    """
    wanted = _position_rows(_as_dict(abstract_state))
    stored = hosts.decide(lambda: self._stored_position_rows(number))
    if wanted and stored and wanted != stored:
      raise errors.UserError(
        f'{self._directory / str(number)} has {stored} learned positions, but '
        f"model.position='learned' needs data.sequence_length={wanted}; older "
        'encoder-decoders cannot be loaded: train this one anew in another '
        '--workdir'
      )

  def _stored_position_rows(self, number: int) -> int | None:
    try:
      handler = ocp.PyTreeCheckpointHandler()
      stored = handler.metadata(self._directory / str(number) / 'state')
      return _position_rows(stored.tree)
    except Exception:  # damaged, which the caller reports
      return None

  def _read(self, number: int, **items):
    return self._reader.restore(
      self._directory / str(number), args=ocp.args.Composite(**items)
    )

  def _note_loss(self, number: int, validation_loss: float | None):
    self._losses.pop(number, None)
    if validation_loss is not None:
      self._losses[number] = validation_loss

  def _stored_losses(self) -> list[tuple[int, float | None]]:
    return [(n, self._stored_loss(n)) for n in self._manager.all_steps()]

  def _stored_loss(self, number: int) -> float | None:
    try:
      restored = self._read(number, progress=ocp.args.JsonRestore())
      return restored.progress['validation_loss']
    except Exception:  # damaged, which restoring will report
      return None

  def _set_aside(self, failed: dict[int, Exception]):
    for number, error in failed.items():
      path = self._directory / str(number)
      if not path.exists():  # removed by a run that is training
        continue
      aside = self._directory.parent / 'damaged' / str(number)
      logging.warning(
        'checkpoint %d is damaged (%s)%s; trying the one before',
        number,
        _one_line(error),
        f', moved to {aside}' if self._writes else '',
      )
      if not self._writes:
        continue
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      shutil.move(path, aside)

  def _explain(self, error: Exception):
    if errors.is_disk_full(error):
      raise errors.UserError(
        f'no space left on the disk of {self._directory}; free some and run '
        'the same command again: it continues from the last checkpoint, step '
        f'{max(self._manager.all_steps(read=True), default=0)}'
      ) from error


@dataclasses.dataclass
class _Best(preservation_policy.PreservationPolicy):
  """Keeps the checkpoint with the lowest validation loss."""

  losses: dict[int, float]

  def should_preserve(self, checkpoints, *, context):
    del context
    evaluated = [x.step for x in checkpoints if x.step in self.losses]
    best = min(evaluated, key=self.losses.__getitem__, default=None)
    return [x.step == best for x in checkpoints]


def _make_reader() -> ocp.Checkpointer:
  """A reader of this process's part, which waits for no other process.

  The reader of Orbax's manager ends in a barrier, where a process that could
  read its part would wait for one that could not.
  """
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
  )
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _as_dict(state: step.TrainState) -> dict[str, Any]:
  """The state's parts by name, without an empty average.

  Checkpoints from before there were averages then have the same parts.
  """
  items = {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
  }
  if not state.average:
    del items['average']
  return items


def _only_evaluated(abstract_state: step.TrainState) -> step.TrainState:
  """The state with placeholders for all but the step and what is evaluated."""
  used = abstract_state.step, abstract_state.evaluated
  return step.TrainState(
    **{
      name: part
      if any(part is x for x in used)
      else jax.tree.map(lambda _: ocp.PLACEHOLDER, part)
      for name, part in _as_dict(abstract_state).items()
    }
  )


def _position_rows(state: dict[str, Any]) -> int | None:
  """Rows of the learned position table in a state's shapes, if there is one."""
  # Not of its slots, whose shapes may differ from the table's.
  evaluated = {name: state.get(name) for name in ('params', 'average')}
  leaves, _ = jax.tree_util.tree_flatten_with_path(evaluated)
  for path, leaf in leaves:
    name = parameter_rules.path_name(path)
    if name.endswith('/position/embedding') and leaf is not ocp.PLACEHOLDER:
      return leaf.shape[0]
  return None


def _leaf_digests(leaves):
  """For each leaf, the sums of its words and of word times place, mod 2^32.

  Integer sums do not depend on their order, and so not on the mesh.
  """

  def digest(leaf):
    bits = f'uint{8 * leaf.dtype.itemsize}'
    words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
    # Row-major, axis by axis: flattening would gather a sharded leaf.
    place = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):
      stride = 2 * math.prod(words.shape[axis + 1 :]) % 2**32
      iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
      place = place + iota * jnp.uint32(stride)
    return jnp.stack([jnp.sum(words), jnp.sum(words * place)])

  return jnp.stack([digest(leaf) for leaf in leaves])


@functools.lru_cache(maxsize=1)
def _compiled_digests(place):
  return jax.jit(_leaf_digests, out_shardings=place)


def _digest(state: step.TrainState) -> str:
  """One word for each leaf, in the order of `jax.tree.leaves`."""
  return ' '.join(_digest_words(jax.tree.leaves(state)))


def _digest_words(leaves: Sequence[jax.Array]) -> list[str]:
  place = leaves[0].sharding
  if isinstance(place, NamedSharding):
    # Replicated: every process reads the sums, whichever shards it holds.
    place = NamedSharding(place.mesh, P())
  sums = np.asarray(_compiled_digests(place)(leaves))
  return [f'{a:08x}{b:08x}' for a, b in sums.tolist()]


def _check_digest(state: step.TrainState, digest: str):
  """Raises a ValueError that names the first leaf with other bits, if any.

  Skips placeholders.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  words = digest.split()
  if len(words) != len(leaves):
    raise ValueError('the checkpoint holds another number of arrays')
  # Leaves match by position, since Orbax has compared all names.
  read = [
    (path, leaf, word)
    for (path, leaf), word in zip(leaves, words, strict=True)
    if leaf is not ocp.PLACEHOLDER
  ]
  found = _digest_words([leaf for _, leaf, _ in read])
  for (path, _, word), other in zip(read, found, strict=True):
    if word != other:
      raise ValueError(
        f'{parameter_rules.path_name(path)} does not match its digest'
      )


def _checksum(progress: dict[str, Any]) -> int:
  """Checksum of everything else; a round trip through JSON keeps it."""
  rest = {k: v for k, v in progress.items() if k != 'checksum'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _one_line(error: Exception) -> str:
  return f'{type(error).__name__}: {errors.one_line(error)[:200]}'

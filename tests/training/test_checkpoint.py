"""A checkpoint gives back what was saved, or is noticed and passed over."""

import dataclasses
import errno
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import small_state
from helpers.environment import ROOT

from lm import errors, models, objectives
from lm.config import resolve as config_lib
from lm.runtime import sharding, signals
from lm.training import checkpoint, optimizer, step

RULES = models.FAMILIES['transformer'].rules


# TensorStore leaves coroutines behind when a read fails.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture
def opened():
  """Opens run folders; closes what is still open."""
  every = []

  def open_(workdir: pathlib.Path, **settings) -> checkpoint.Checkpoints:
    settings = {'writes': True, **settings}
    every.append(checkpoint.Checkpoints(workdir, **settings))
    return every[-1]

  yield open_
  for checkpoints in every:
    checkpoints.close()


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory) -> pathlib.Path:
  """A run folder with the checkpoints 1 and 2; tests must copy it."""
  workdir = tmp_path_factory.mktemp('two_steps')
  checkpoints = checkpoint.Checkpoints(workdir, keep=2, writes=True)
  small_state.save(checkpoints, 1, 2.0)
  small_state.save(checkpoints, 2, 1.0)
  checkpoints.close()
  return workdir


def _truncate(path: pathlib.Path):
  os.truncate(path, path.stat().st_size // 2)


def _flip(path: pathlib.Path):
  content = bytearray(path.read_bytes())
  for place in {len(content) // 3, len(content) // 2, len(content) - 5}:
    content[max(0, place)] ^= 0x41
  path.write_bytes(content)


def _delete(path: pathlib.Path):
  path.unlink()


def _turn_digits(path: pathlib.Path):
  """Another number where JSON has one: still JSON."""
  content = path.read_bytes()
  path.write_bytes(
    content.replace(b': 1002', b': 1003').replace(b'0.2', b'0.3')
  )


def test_comes_back_bit_identical(tmp_path, opened):
  small_state.save(opened(tmp_path), 3)
  state, progress = opened(tmp_path).restore_latest(small_state.abstract())
  assert small_state.same(state, small_state.make(3))
  assert {
    k: progress[k] for k in small_state.progress(3)
  } == small_state.progress(3)


def test_an_empty_folder_holds_none(tmp_path, opened):
  checkpoints = opened(tmp_path)
  assert checkpoints.restore_latest(small_state.abstract()) is None
  with pytest.raises(errors.UserError, match='holds no checkpoint'):
    checkpoints.restore_params(small_state.abstract())


def test_keeps_the_last_and_the_best(tmp_path, opened):
  checkpoints = opened(tmp_path, keep=2)
  for number, loss in enumerate([3.0, 1.0, 2.0, 5.0, None], 1):
    small_state.save(checkpoints, number, loss)
  assert checkpoints.steps() == [5, 4, 2]
  checkpoints.close()
  # Also after a restart, which must know the losses of before.
  checkpoints = opened(tmp_path, keep=2)
  small_state.save(checkpoints, 6, 4.0)
  assert checkpoints.steps() == [6, 5, 2]
  small_state.save(checkpoints, 7, 0.5)
  assert checkpoints.steps() == [7, 6]
  assert small_state.same(
    checkpoints.restore_latest(small_state.abstract())[0], small_state.make(7)
  )


def test_saving_a_step_twice_is_saving_it_once(tmp_path, opened):
  checkpoints = opened(tmp_path)
  small_state.save(checkpoints, 1)
  small_state.save(checkpoints, 1)
  assert checkpoints.steps() == [1]


@pytest.mark.parametrize('damage', [_truncate, _flip, _delete, _turn_digits])
def test_no_damage_passes_unnoticed(
  two_steps, tmp_path, opened, caplog, damage
):
  """Whatever file is hit: the saved bits, or the checkpoint before."""
  latest = two_steps / 'checkpoints' / '2'
  names = [p.relative_to(latest) for p in latest.rglob('*') if p.is_file()]
  # Tiny, or not needed: losing them may pass when the bits are right.
  assert len(names) > 8
  skipped = []
  for number, name in enumerate(names):
    workdir = tmp_path / str(number)
    shutil.copytree(two_steps, workdir)
    path = workdir / 'checkpoints' / '2' / name
    if not path.stat().st_size and damage is not _delete:
      continue
    damage(path)
    caplog.clear()
    checkpoints = opened(workdir)
    with caplog.at_level(logging.WARNING):
      # First, since the other moves what is damaged.
      params, number = checkpoints.restore_params(small_state.abstract())
      state, progress = checkpoints.restore_latest(small_state.abstract())
    assert small_state.same(params, small_state.make(number).params), name
    restored = int(state.step)
    assert small_state.same(state, small_state.make(restored)), name
    assert {
      k: progress[k] for k in small_state.progress(0)
    } == small_state.progress(restored), name
    if restored == 1:
      skipped.append(str(name))
  assert any('progress' in name for name in skipped)
  if damage is not _turn_digits:
    assert any('state' in name and '/d/' in name for name in skipped)


def test_a_damaged_checkpoint_is_moved_aside(
  two_steps, tmp_path, opened, caplog
):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)
  _damage_data(workdir / 'checkpoints' / '2')
  checkpoints = opened(workdir, keep=2)
  with caplog.at_level(logging.WARNING):
    state, progress = checkpoints.restore_latest(small_state.abstract())
  assert small_state.same(state, small_state.make(1))
  assert progress['position'] == 1
  warnings = [r.getMessage() for r in caplog.records if r.name == 'root']
  assert len(warnings) == 1
  assert 'checkpoint 2 is damaged' in warnings[0]
  assert str(workdir / 'damaged' / '2') in warnings[0]
  assert '\n' not in warnings[0]
  assert (workdir / 'damaged' / '2' / 'state').is_dir()
  assert not (workdir / 'checkpoints' / '2').exists()
  # The run comes to the same step again, and it may be damaged again.
  small_state.save(checkpoints, 2)
  assert checkpoints.steps() == [2, 1]
  _damage_data(workdir / 'checkpoints' / '2')
  assert small_state.same(
    opened(workdir).restore_latest(small_state.abstract())[0],
    small_state.make(1),
  )


def test_a_reader_passes_damage_over_and_moves_nothing(
  two_steps, tmp_path, opened
):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)
  _delete(workdir / 'checkpoints' / '2' / 'progress' / 'metadata')
  before = sorted(workdir.rglob('*'))
  state, _ = opened(workdir, writes=False).restore_latest(
    small_state.abstract()
  )
  assert small_state.same(state, small_state.make(1))
  assert sorted(workdir.rglob('*')) == before


def test_a_reader_of_a_folder_without_checkpoints_is_reported(tmp_path, opened):
  reader = opened(tmp_path, writes=False)
  with pytest.raises(errors.UserError, match='holds no checkpoint'):
    reader.restore_params(small_state.abstract())
  assert not list(tmp_path.iterdir())


def test_lack_of_memory_is_not_taken_for_damage(
  two_steps, tmp_path, opened, monkeypatch
):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)

  def fails(*arguments):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(checkpoint.Checkpoints, '_restore', fails)
  with pytest.raises(errors.UserError, match='out of memory'):
    opened(workdir).restore_latest(small_state.abstract())
  assert not (workdir / 'damaged').exists()


def test_only_damaged_checkpoints_are_an_error(two_steps, tmp_path, opened):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)
  for number in (1, 2):
    _damage_data(workdir / 'checkpoints' / str(number))
  # The second time, too: the fault may be elsewhere, so nothing is moved.
  for _ in range(2):
    with pytest.raises(errors.UserError, match='can be read') as caught:
      opened(workdir).restore_latest(small_state.abstract())
    assert '\n' not in str(caught.value)
    assert '(step 2: ' in str(caught.value)
    assert not (workdir / 'damaged').exists()


def _unreadable(content: bytearray, place: int):
  """Reading the array whose bytes begin at `place` fails."""
  start = content.rindex(b'\x28\xb5\x2f\xfd', 0, place)  # of a Zstandard frame
  content[start : start + 4] = bytes(4)


def _other_bits(content: bytearray, place: int):
  """Reading it gives other bits and no error; only the digest tells."""
  content[place + 8] ^= 1


@pytest.mark.parametrize('damage', [_unreadable, _other_bits])
@pytest.mark.parametrize('averaged', [False, True])
def test_parameters_are_read_alone(tmp_path, opened, caplog, averaged, damage):
  """Damage to the slots does not matter to them, and to them it does."""

  def random(seed):
    # Not to be compressed: the file then holds these very bytes.
    rng = np.random.default_rng(seed)
    return {'kernel': jnp.asarray(rng.integers(0, 2**32, (64, 64), np.uint32))}

  def make(number):
    return step.TrainState(
      step=jnp.int32(number),
      params=random(number),
      opt_state=(random(number + 10), {}, random(number + 20)),
      key=jax.random.PRNGKey(number),
      average=random(number + 30) if averaged else {},
    )

  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make(0)
  )
  saved = tmp_path / 'saved'
  trainer = opened(saved, keep=2)
  for number in (1, 2):
    trainer.save(make(number), small_state.progress(number), {})
  trainer.wait()
  hit = make(2)
  cases = {
    'params': (hit.params, averaged),
    'first slots': (hit.opt_state[0], True),
    'last slots': (hit.opt_state[2], True),
    'average': (hit.average, False),
  }
  for name, (tree, harmless) in cases.items():
    if not tree:
      continue
    workdir = shutil.copytree(saved, tmp_path / name)
    _damage_array(workdir / 'checkpoints' / '2', tree['kernel'], damage)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      params, number = opened(workdir, writes=False).restore_params(abstract)
    assert number == (2 if harmless else 1), name
    assert small_state.same(params, make(number).evaluated), name
    warnings = [r.getMessage() for r in caplog.records if r.name == 'root']
    assert len(warnings) == (not harmless), name
    assert all('checkpoint 2 is damaged' in x for x in warnings)
    # Who trains goes on from all of it.
    state, _ = opened(workdir).restore_latest(abstract)
    assert small_state.same(state, make(1)), name


def _damage_array(folder: pathlib.Path, array: jax.Array, damage):
  begins = np.asarray(array).tobytes()[:64]
  for path in (folder / 'state').rglob('d/*'):
    content = bytearray(path.read_bytes())
    if begins in content:
      damage(content, content.index(begins))
      path.write_bytes(content)
      return
  raise AssertionError('no file holds the array')


def test_other_slots_than_those_saved_are_noticed(tmp_path, opened):
  """Digests have no names: places count only in the structure saved."""
  small_state.save(opened(tmp_path), 3)
  slot = small_state.abstract().opt_state['slot']
  for slots in ({}, {'other': slot}, {'other': slot, 'slot': slot}):
    wanted = dataclasses.replace(small_state.abstract(), opt_state=slots)
    with pytest.raises(errors.UserError, match='can be read'):
      opened(tmp_path, writes=False).restore_params(wanted)


def test_a_position_table_of_another_length_is_refused(
  config, tmp_path, opened, caplog
):
  """Older encoder-decoders have one; it is no damage."""
  config.objective.name = 'prefix'
  config.model.architecture = 'encoder_decoder'
  config.model.position = 'learned'
  config = config_lib.resolve(config)
  model = models.make(config, objectives.make(config))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    jax.eval_shape(model.init, jax.random.PRNGKey(0)),
  )
  abstract = dataclasses.replace(small_state.abstract(), params=params)
  state = dataclasses.replace(
    small_state.make(3),
    params=jax.tree.map(lambda x: jnp.zeros(x.shape), params),
  )
  table = state.params['trunk']['embeddings']['position']
  table['embedding'] = table['embedding'][:18]
  checkpoints = opened(tmp_path)
  checkpoints.save(state, small_state.progress(3), {})
  checkpoints.wait()
  for restore in (checkpoints.restore_latest, checkpoints.restore_params):
    with pytest.raises(errors.UserError) as caught:
      restore(abstract)
    message = str(caught.value)
    assert '3 has 18 learned positions' in message
    assert "model.position='learned' needs data.sequence_length=32" in message
    assert '\n' not in message
  assert not [r for r in caplog.records if 'damaged' in r.getMessage()]
  assert not (tmp_path / 'damaged').exists()


def test_a_reader_passes_over_what_the_trainer_removes(
  two_steps, tmp_path, opened
):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)
  reader = opened(workdir)
  assert reader.steps() == [2, 1]
  shutil.rmtree(workdir / 'checkpoints' / '2')
  assert small_state.same(
    reader.restore_latest(small_state.abstract())[0], small_state.make(1)
  )
  assert not (workdir / 'damaged').exists()


def _damage_data(folder: pathlib.Path):
  """Truncates the largest file, where the arrays are."""
  files = [p for p in (folder / 'state').rglob('*') if p.is_file()]
  _truncate(max(files, key=lambda p: p.stat().st_size))


def test_digests_stay_as_they_are():
  """Checkpoints that are on disks were written with these."""
  state = small_state.make(1)
  state = dataclasses.replace(state, average=state.params)
  kernel, slot = state.params['trunk']['kernel'], state.opt_state['slot']
  expected = []
  for leaf in (state.step, kernel, slot, state.key, kernel):
    words = np.asarray(leaf).view(np.uint32).ravel()
    places = 1 + 2 * np.arange(words.size, dtype=np.uint32)
    sums = words.sum(dtype=np.uint32), (words * places).sum(dtype=np.uint32)
    expected.append('{:08x}{:08x}'.format(*sums))
  assert checkpoint._digest(state) == ' '.join(expected)


def test_a_flipped_bit_of_any_leaf_changes_the_digest():
  state = small_state.make(1)
  digest = checkpoint._digest(state)
  leaves, structure = jax.tree.flatten(state)
  for number, leaf in enumerate(leaves):
    for bit in (0, 31):
      words = np.array(leaf).view(np.uint32)
      words.reshape(-1)[-1] ^= np.uint32(1 << bit)
      other = [*leaves]
      other[number] = jnp.asarray(words.view(leaf.dtype))
      assert checkpoint._digest(structure.unflatten(other)) != digest


_KILLED_SAVE = """
import os, signal, sys, pathlib
sys.path[:0] = [{root!r}, {tests!r}]
from helpers import small_state
from lm.training import checkpoint

workdir = pathlib.Path({workdir!r})
checkpoints = checkpoint.Checkpoints(workdir, keep=2, writes=True)
small_state.save(checkpoints, 1)
rename = os.rename

def rename_or_die(source, target, *args, **kwargs):
  if str(target).endswith({target!r}):
    os.kill(os.getpid(), signal.SIGKILL)
  return rename(source, target, *args, **kwargs)

os.rename = rename_or_die
small_state.save(checkpoints, 2)
"""


# The moment before the arrays are complete, and before the whole is.
@pytest.mark.parametrize('target', ['/state', '/2'])
def test_a_killed_save_leaves_nothing_that_is_trusted(tmp_path, opened, target):
  code = _KILLED_SAVE.format(
    root=str(ROOT),
    tests=str(ROOT / 'tests'),
    workdir=str(tmp_path),
    target=target,
  )
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=600
  )
  assert process.returncode == -signal.SIGKILL, process.stderr
  left = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert '2' not in left
  assert len(left) == 2  # the first, and what the second left behind
  checkpoints = opened(tmp_path, keep=2)
  assert checkpoints.steps() == [1]
  assert small_state.same(
    checkpoints.restore_latest(small_state.abstract())[0], small_state.make(1)
  )
  # The run comes to the same step again.
  small_state.save(checkpoints, 2)
  assert small_state.same(
    opened(tmp_path).restore_latest(small_state.abstract())[0],
    small_state.make(2),
  )


def test_moves_between_meshes_bit_identically(config, tmp_path, opened):
  """Eight devices to one, and back to another split of eight."""
  meshes = {
    'eight': (8, {'data': 1, 'fsdp': 2, 'tensor': 4}),
    'one': (1, {'data': 1, 'fsdp': 1, 'tensor': 1}),
    'again': (8, {'data': 2, 'fsdp': 4, 'tensor': 1}),
  }
  config = ml_collections.ConfigDict(config_lib.resolve(config))
  model = models.make(config, objectives.make(config))
  transform = optimizer.make(config)

  def abstract(name):
    count, shape = meshes[name]
    config.mesh.update(shape)
    mesh = sharding.make_mesh(config, jax.devices()[:count])
    return step.abstract_state(model, transform, mesh, RULES.sharding)

  rng = np.random.default_rng(0)
  first = state = jax.tree.map(
    lambda x: jax.device_put(
      rng.integers(0, 100, x.shape).astype(x.dtype) / 7
      if x.dtype == np.float32
      else np.full(x.shape, 3, x.dtype),
      x.sharding,
    ),
    abstract('eight'),
  )
  for name in ('one', 'again'):
    workdir = tmp_path / name
    checkpoints = opened(workdir)
    checkpoints.save(state, small_state.progress(0), {})
    checkpoints.wait()
    state, _ = opened(workdir).restore_latest(abstract(name))
    assert small_state.same(state, first)
    params, number = opened(workdir).restore_params(abstract(name))
    assert number == int(first.step)
    assert small_state.same(params, first.params)
    places = jax.tree.map(
      lambda x, y: x.sharding == y.sharding,
      (state, params),
      (abstract(name), abstract(name).params),
    )
    assert all(jax.tree.leaves(places))


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_every_optimizer_comes_back_bit_identically(
  config, tmp_path, opened, name
):
  """Also its average, on another mesh, and with the same types of slots."""
  config.optimizer.name = name
  config = ml_collections.ConfigDict(config_lib.resolve(config))
  model = models.make(config, objectives.make(config))
  transform = optimizer.make(config)

  def abstract(shape):
    config.mesh.update(shape)
    mesh = sharding.make_mesh(config)
    return step.abstract_state(
      model, transform, mesh, RULES.sharding, average=True
    )

  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jax.device_put(
      rng.integers(0, 100, x.shape).astype(x.dtype), x.sharding
    ),
    abstract({'data': 2, 'fsdp': 2, 'tensor': 2}),
  )
  checkpoints = opened(tmp_path)
  checkpoints.save(state, small_state.progress(0), {})
  checkpoints.wait()
  target = abstract({'data': 1, 'fsdp': 4, 'tensor': 2})
  restored, _ = opened(tmp_path).restore_latest(target)
  assert small_state.same(restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for leaf, place in zip(
    *map(jax.tree.leaves, (restored, target)), strict=True
  ):
    assert leaf.sharding == place.sharding
  params, number = opened(tmp_path).restore_params(target)
  assert number == int(state.step)
  assert small_state.same(params, state.average)
  for leaf, place in zip(
    *map(jax.tree.leaves, (params, target.average)), strict=True
  ):
    assert leaf.sharding == place.sharding


def test_a_checkpoint_from_before_averages_is_read(tmp_path, opened):
  """It has no such item, and neither has a new one of a run without any."""
  state = small_state.make(3)
  items = {
    'step': state.step,
    'params': state.params,
    'opt_state': state.opt_state,
    'key': state.key,
  }
  progress = {**small_state.progress(3), 'digest': checkpoint._digest(state)}
  progress['validation_loss'] = None
  progress['checksum'] = checkpoint._checksum(progress)
  arguments = ocp.args.Composite(
    state=ocp.args.StandardSave(items),
    progress=ocp.args.JsonSave(progress),
    config=ocp.args.JsonSave({}),
  )
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  folder = tmp_path / 'checkpoints'
  with ocp.CheckpointManager(folder, options=options) as manager:
    manager.save(3, args=arguments)
  checkpoints = opened(tmp_path)
  restored, _ = checkpoints.restore_latest(small_state.abstract())
  assert small_state.same(restored, state)
  assert restored.average == {}
  assert small_state.same(
    checkpoints.restore_params(small_state.abstract())[0], state.params
  )


def test_an_average_that_is_missing_is_no_average(tmp_path, opened):
  """A run cannot begin to average on the way."""
  small_state.save(opened(tmp_path), 3)
  wanted = dataclasses.replace(
    small_state.abstract(), average=small_state.abstract().params
  )
  with pytest.raises(errors.UserError, match='can be read'):
    opened(tmp_path).restore_latest(wanted)


@pytest.mark.parametrize('call', ['save', 'wait_until_finished'])
def test_a_full_disk_is_reported_with_the_step_to_go_on_from(
  two_steps, tmp_path, opened, monkeypatch, call
):
  workdir = tmp_path / 'run'
  shutil.copytree(two_steps, workdir)
  checkpoints = opened(workdir)

  def full(*arguments, **settings):
    # As TensorStore says it, in its own words.
    raise ValueError('Error writing "d/0": No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._manager, call, full)
    with pytest.raises(errors.UserError, match='no space left') as caught:
      small_state.save(checkpoints, 3)
  assert 'from the last checkpoint, step 2' in str(caught.value)


def test_other_errors_of_a_save_are_not_hidden(tmp_path, opened, monkeypatch):
  checkpoints = opened(tmp_path)

  def fails(*arguments, **settings):
    raise ValueError('something else')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._manager, 'save', fails)
    patch.setattr(checkpoints._manager, 'wait_until_finished', fails)
    for call in (lambda: small_state.save(checkpoints, 1), checkpoints.wait):
      with pytest.raises(ValueError, match='something else') as caught:
        call()
      assert caught.value.__cause__ is None


def test_causes_in_a_circle_are_no_full_disk():
  one, two = ValueError('one'), ValueError('two')
  one.__cause__, two.__cause__ = two, one
  assert not errors.is_disk_full(one)
  two.__context__ = OSError(errno.ENOSPC, 'full')
  two.__cause__ = None
  assert errors.is_disk_full(one)


def test_an_interruption_is_not_taken_for_damage(
  two_steps, tmp_path, opened, monkeypatch
):
  workdir = shutil.copytree(two_steps, tmp_path / 'run')
  checkpoints = opened(workdir)

  def stopped(*arguments, **items):
    raise signals.Interrupted('stopped', signal.SIGTERM)

  monkeypatch.setattr(checkpoints, '_read', stopped)
  with pytest.raises(signals.Interrupted):
    checkpoints.restore_latest(small_state.abstract())
  assert checkpoints.steps() == [2, 1]
  assert not (workdir / 'damaged').exists()

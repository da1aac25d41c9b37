"""Imports run downward through the floors of the house, and form no circle."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the ground; what stands in one entry may import from one another only
# where a circle test below finds none.
FLOORS = (
  ('lm/types', 'lm/field', 'lm/errors'),
  ('lm/runtime',),
  ('lm/data/text',),
  ('lm/data/sources',),
  ('lm/data', 'lm/models'),
  ('lm/objectives',),
  ('lm/training',),
  ('lm/generation',),
  ('lm/evaluation',),
  ('experiments',),
  ('lm/config', 'lm/report'),
  ('lm/load_run',),
  (
    *('lm/train', 'lm/evaluate', 'lm/evaluate_text', 'lm/generate'),
    *('lm/show', 'lm/benchmark', 'lm/objective_table'),
  ),
  ('run',),
)
PLACES = [place for floor in FLOORS for place in floor]


def place_of(path: str) -> str:
  """The longest entry of FLOORS that a file or module path lies in."""
  found = [
    place for place in PLACES if path == place or path.startswith(f'{place}/')
  ]
  assert found, f'{path} stands on no floor of DESIGN, section 5'
  return max(found, key=len)


def imports(path: pathlib.Path) -> set[str]:
  """Modules of the project that a file imports, as paths without suffix."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      found |= {name.name.replace('.', '/') for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import'
      package = node.module.replace('.', '/')
      for name in node.names:
        module = f'{package}/{name.name}'
        is_module = (ROOT / f'{module}.py').exists() or (ROOT / module).is_dir()
        found.add(module if is_module else package)
  return {
    name for name in found if name.split('/')[0] in ('lm', 'experiments', 'run')
  } - {'lm'}


def edges(files) -> set[tuple[str, str]]:
  """(place, imported place) of all imports in {path: imported paths}."""
  pairs = {
    (place_of(path), place_of(name))
    for path, names in files.items()
    for name in names
  }
  return {(a, b) for a, b in pairs if a != b}


def upward(pairs) -> list[tuple[str, str]]:
  """Imports of a higher floor, or of another place on the same one in turn."""
  level = {place: i for i, floor in enumerate(FLOORS) for place in floor}
  return sorted(
    (a, b)
    for a, b in pairs
    if level[a] < level[b] or (level[a] == level[b] and (b, a) in pairs)
  )


def circle(pairs) -> list[str]:
  """Places of a circle of imports; [] where there is none."""
  graph = {}
  for a, b in pairs:
    graph.setdefault(a, set()).add(b)
  done: set[str] = set()

  def visit(place, path):
    if place in path:
      return [*path[path.index(place) :], place]
    if place in done:
      return []
    for following in sorted(graph.get(place, ())):
      if found := visit(following, [*path, place]):
        return found
    done.add(place)
    return []

  for place in sorted(graph):
    if found := visit(place, []):
      return found
  return []


@pytest.fixture(scope='module')
def files():
  paths = [
    path
    for folder in ('lm', 'experiments')
    for path in (ROOT / folder).rglob('*.py')
    if path != ROOT / 'lm' / '__init__.py'
  ]
  names = {
    path: str(path.relative_to(ROOT).with_suffix('')).removesuffix('/__init__')
    for path in [*paths, ROOT / 'run.py']
  }
  return {name: imports(path) for path, name in names.items()}


def test_no_import_runs_upward_and_folders_form_no_circle(files):
  pairs = edges(files)
  assert len(pairs) > 40
  assert upward(pairs) == []
  assert circle(pairs) == []


def test_an_import_upward_and_a_circle_are_found():
  down, up = ('lm/training', 'lm/data'), ('lm/data', 'lm/training')
  assert upward({down}) == []
  assert upward({up}) == [up]
  assert circle({down}) == []
  assert circle({down, up}) == ['lm/data', 'lm/training', 'lm/data']
  same = {('lm/data', 'lm/models'), ('lm/models', 'lm/data')}
  assert len(upward(same)) == 2


def test_lm_holds_at_most_eleven_files(files):
  own = [name for name in files if name.count('/') == 1 and name[:3] == 'lm/']
  own = [name for name in own if (ROOT / f'{name}.py').exists()]
  assert len(own) <= 11, own


def test_no_folder_has_fewer_than_three_files():
  for folder in (ROOT / 'lm').rglob('*'):
    if folder.is_dir() and folder.name != '__pycache__':
      assert len(list(folder.glob('*.py'))) > 2, folder

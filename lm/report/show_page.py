"""`show.html`: examples of objectives, and their attention masks, on one page.

The page is self-contained and makes no requests. The drawn cells are the
attention mask; the script reads them to highlight what a token sees.
"""

import base64
import hashlib
import pathlib

import markupsafe
import numpy as np

from lm.report import charts, template, views
from lm.runtime import files

# Pixels: height and width of a cell, height of the labels above the cells, and
# side of the square in which the mask of a packed row is drawn.
_ROW, _COLUMN, _HEAD, _SQUARE = 18, 10, 90, 460


def write(workdir: pathlib.Path, shown: views.Shown) -> pathlib.Path:
  """Writes WORKDIR/show.html atomically and returns its path."""
  page = render(shown, workdir.resolve().name)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'show.html'
  files.write(path, page)
  return path


def render(shown: views.Shown, name: str) -> str:
  """Builds the page."""
  script = (template.FOLDER / 'show.js').read_text('utf-8')
  digest = hashlib.sha256(script.encode()).digest()
  return template.render(
    'show.html.jinja',
    name=name,
    shown=shown,
    style=markupsafe.Markup(charts.STYLE),
    script=markupsafe.Markup(script),
    # No other script on the page can run, whatever the texts contain.
    script_hash=base64.b64encode(digest).decode(),
    drawings=drawings,
    row_height=_ROW,
    head_height=_HEAD,
    square=_SQUARE,
  )


def drawings(view: views.View, *, of: str | None = None) -> list[dict]:
  """SVG attributes of a view's masks; if `of` is given, of that query stack."""
  stacks = {stack.name: stack for stack in view.stacks}
  drawn = []
  for mask in view.masks():
    if of not in (None, mask.query):
      continue
    L, M = mask.mask_LxM.shape
    filled_LxM = np.logical_or.outer(
      stacks[mask.query].segment_L > 0, stacks[mask.key].segment_L > 0
    )
    drawn.append(
      {
        'query': mask.query,
        'key': mask.key,
        'rows': L,
        'columns': M,
        'width': M * _COLUMN,
        'height': L * _ROW + _HEAD,
        'labels': [
          {'x': j * _COLUMN + _COLUMN - 2, 'text': text}
          for j, text in enumerate(stacks[mask.key].reads)
        ],
        'transform': f'translate(0 {_HEAD}) scale({_COLUMN} {_ROW})',
        'cells': path(mask.mask_LxM & filled_LxM),
        'padding': path(mask.mask_LxM & ~filled_LxM),
      }
    )
  return drawn


def path(mask_LxM: np.ndarray) -> str:
  """Runs of true cells as an SVG path; a cell has the size 1.

  mask  1 1 0     M0 0h2v1h-2zM0 1h1v1h-1zM2 1h1v1h-1z
        1 0 1
  """
  parts = []
  for y, row_M in enumerate(mask_LxM):
    edges = np.flatnonzero(np.diff(np.pad(row_M.astype(np.int8), 1)))
    for start, stop in edges.reshape(-1, 2).tolist():
      n = stop - start
      parts.append(f'M{start} {y}h{n}v1h-{n}z')
  return ''.join(parts)

"""Renders HTML pages from the templates in this folder, with escaping."""

import pathlib
import re

import jinja2

FOLDER = pathlib.Path(__file__).parent
# Characters that HTML forbids, even escaped.
_FORBIDDEN = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]')


def render(name: str, /, **values) -> str:
  """Renders the template `name`; all `values` except markup are escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    # Jinja enables it by file name only for names that end in .html.
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template(name).render(**values)
  return _FORBIDDEN.sub('\ufffd', page)

"""The charts of a run's report, drawn from its lines of metrics.jsonl."""

from lm.report import charts as charts_lib, values

_MAX_PARTS = 6


def draw(lines):
  """Returns all charts as SVG; [] if the run has no train line."""
  train = [line for line in lines if line.get('split') == 'train']
  validation = [line for line in lines if line.get('split') == 'validation']
  if not train:
    return []
  charts = [
    _chart(
      'Loss',
      'nats per token',
      {'training': (train, 'loss'), 'validation': (validation, 'loss')},
    )
  ]
  names = {name: None for line in train for name in line}
  parts = [name for name in names if name.startswith('loss/')]
  if len(parts) > 1:
    sources = {
      name.removeprefix('loss/'): (train, name) for name in parts[:_MAX_PARTS]
    }
    charts.append(_chart('Parts of the training loss', 'nats', sources))
  charts += [
    chart
    for chart in (
      _binned_chart(
        validation,
        'bits_by_position',
        'Bits by position, on validation',
        x_label='position as share of the row, percent',
        y_label='bits per predicted token',
      ),
      _binned_chart(
        validation,
        'loss_by_masking_ratio',
        'Loss by masking ratio, on validation',
        x_label='predicted share of the text, percent',
        y_label='nats per predicted token',
      ),
    )
    if chart
  ]
  for name, title, unit in (
    ('learning_rate', 'Learning rate', 'step size of the optimizer'),
    ('gradient_norm', 'Gradient norm', 'global norm before clipping'),
    ('tokens_per_second', 'Training speed', 'tokens per second'),
  ):
    sources = {'training': (train, name)}
    charts.append(_chart(title, unit, sources, from_zero=True))
  return charts


def note(lines):
  """Says how many lines the curves are drawn from."""
  count = sum(line.get('split') == 'train' for line in lines)
  if count == 1:
    return 'Only one train line so far: each curve is a single point.'
  return (
    f'Drawn from {charts_lib.number_text(count)} train lines; each is the mean '
    'since the previous line.'
  )


def _chart(title, unit, sources, *, from_zero=False):
  """Draws a chart of {name of the curve: (lines, name of the figure)}."""
  series = []
  for label, (lines, name) in sources.items():
    points = [
      (values.to_float(line['step']), values.to_float(line[name]))
      for line in lines
      if values.is_number(line.get('step')) and values.is_number(line.get(name))
    ]
    series.append(
      charts_lib.Series(label, [x for x, _ in points], [y for _, y in points])
    )
  # Curves without values are skipped, such as those of a run without
  # validation.
  series = [one for one in series if one.x] or series[:1]
  return charts_lib.line_chart(
    series, title=title, x_label='step', y_label=unit, from_zero=from_zero
  )


def _binned_chart(lines, name, title, *, x_label, y_label):
  """Draws lists of means over equal bins, from the first and the last line."""
  lines = [x for x in lines if isinstance(x.get(name), list) and x[name]]
  series = []
  for line in [*lines[:1], *lines[1:][-1:]]:
    count = len(line[name])
    middles = [100 * (i + 0.5) / count for i in range(count)]
    points = [
      (x, values.to_float(y))
      for x, y in zip(middles, line[name], strict=True)
      if values.is_number(y)
    ]
    label = f'step {values.display(line.get("step"))}'
    series.append(
      charts_lib.Series(label, [x for x, _ in points], [y for _, y in points])
    )
  if not any(one.x for one in series):
    return ''
  return charts_lib.line_chart(
    series, title=title, x_label=x_label, y_label=y_label
  )

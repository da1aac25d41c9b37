"""Line and bar charts as inline SVG, without libraries, scripts or requests.

A chart is a string for an HTML page that also contains `STYLE`, with colours
for light and dark mode. All texts passed by a caller are escaped. A chart is
380 pixels wide, so that its text stays readable on a phone of 360 pixels.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --surface: #ffffff; --raised: #f3f5f8; --ink: #1b1f24; --muted: #57606a;
  --grid: #d8dee4; --bar: #77818c;
  --series-0: #1d5fbf; --series-1: #b04a00; --series-2: #1a7433;
  --series-3: #8038c8; --series-4: #c01f2c; --series-5: #08727a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --surface: #14171c; --raised: #1f242b; --ink: #e8ebef; --muted: #a3adb8;
    --grid: #38404a; --bar: #77818c;
    --series-0: #6cb0ff; --series-1: #f5a453; --series-2: #5fd07a;
    --series-3: #c69bff; --series-4: #ff8b85; --series-5: #4fd1d9;
  }
}
.chart { width: 100%; height: auto; display: block; overflow: visible;
  font: 12px system-ui, sans-serif; }
.chart text { fill: var(--muted); }
.chart .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
.chart .value { fill: var(--ink); }
.chart .grid { stroke: var(--grid); fill: none; }
.chart .axis { stroke: var(--muted); fill: none; }
.chart .line { stroke: var(--color); fill: none; stroke-width: 1.75;
  stroke-linejoin: round; stroke-linecap: round; }
.chart .dot { fill: var(--color); stroke: var(--surface); }
.chart .hover { fill: var(--ink); fill-opacity: 0; }
.chart .hover:hover { fill-opacity: 0.12; }
.chart .bar { fill: var(--bar); }
.chart .bar.ours { fill: var(--series-0); }
.chart .ours-text { font-weight: 600; }
"""

_COLORS = 6
_WIDTH = 380
_PLOT_HEIGHT = 170
_ROW_HEIGHT = 17
# Upper bound for system fonts, since the width of a text cannot be measured.
_CHARACTER_WIDTH = 7.4
# Curves of at most this many points have dots, so that a single one is visible.
_DOTTED = 40
_HOVER_BANDS = 60
# Larger values are not drawn, since the difference of two could overflow.
_LARGEST = 1e300
# Smaller ranges count as empty: their logarithm and inverse would fail.
_SMALLEST = 1e-250


@dataclasses.dataclass(frozen=True)
class Series:
  """A named curve; `y` may hold None and values that are not finite."""

  name: str
  x: Sequence[float]
  y: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Bar:
  """A named value, None where it was not measured; `ours` is highlighted."""

  name: str
  value: float | None
  ours: bool = False


def line_chart(
  series: Sequence[Series],
  *,
  title: str,
  x_label: str,
  y_label: str,
  from_zero: bool = False,
  max_points: int = 500,
) -> str:
  """Draws curves over one pair of axes.

  Values that are not finite are skipped, and a line below the chart counts
  them. Hovering over the plot shows the values nearest to the pointer.

  Args:
    series: curves to draw.
    title: title of the chart.
    x_label: label of the x axis, which includes 0.
    y_label: unit of the y axis.
    from_zero: whether the y axis includes 0.
    max_points: maximum number of points of a curve; longer ones are thinned,
      and keep their extremes.

  Raises:
    ValueError: `x` and `y` of a series differ in length.
  """
  curves = [_finite_points(one) for one in series]
  dropped = sum(
    len(one.x) - len(points) for one, points in zip(series, curves, strict=True)
  )
  parts = [_text(0, 14, title, 'title')]
  y = 14
  if any(curves):
    legend, y = _legend([one.name for one in series], y + _ROW_HEIGHT)
    plot, y = _plot(
      [(one.name, points) for one, points in zip(series, curves, strict=True)],
      top=y + _ROW_HEIGHT,
      x_label=x_label,
      y_label=y_label,
      from_zero=from_zero,
      max_points=max_points,
    )
    parts += [*legend, *plot]
  else:
    y += 2 * _ROW_HEIGHT
    parts.append(_text(0, y, 'Nothing to draw: no value was logged.'))
  if dropped:
    y += _ROW_HEIGHT
    parts.append(_text(0, y, f'Values skipped, not finite: {dropped}.'))
  return _svg(parts, height=y + 6, label=title)


def bar_chart(
  bars: Sequence[Bar], *, title: str, unit: str, decimals: int = 3
) -> str:
  """Draws horizontal bars from 0, with their names and values.

  A value that is None, negative or not finite is shown as a dash without a bar.
  """
  parts = [_text(0, 14, title, 'title')]
  largest = max((bar.value for bar in bars if _drawable(bar.value)), default=0)
  y = 14
  for bar in bars:
    y += 2 * _ROW_HEIGHT - 6
    emphasis = 'ours-text' if bar.ours else ''
    parts.append(_text(0, y, bar.name, f'value {emphasis}'.rstrip()))
    value = f'{bar.value:.{decimals}f}' if _drawable(bar.value) else '–'
    max_width = _WIDTH - _CHARACTER_WIDTH * len(value) - 10
    width = 0.0
    if _drawable(bar.value) and largest > 0:
      width = max_width * (bar.value / largest)
    hover = html.escape(f'{bar.name}: {value} {unit}')
    kind = 'bar ours' if bar.ours else 'bar'
    parts.append(
      f'<rect class="{kind}" x="0" y="{y + 5}" width="{width:.1f}" '
      f'height="14" rx="2"><title>{hover}</title></rect>'
    )
    parts.append(_text(width + 6, y + 16, value, f'value {emphasis}'.rstrip()))
    y += 16
  y += _ROW_HEIGHT + 2
  parts.append(_text(0, y, unit))
  return _svg(parts, height=y + 6, label=title)


def number_text(value: float) -> str:
  """Formats a number: 12,346 · 1.235 · 0.001 · 1.2e-5 · nan."""
  if not isinstance(value, int) and not math.isfinite(value):
    return str(value)
  magnitude = abs(value)
  if magnitude >= 10**12:
    # Via a string, since an int may be too large for a float.
    digits = str(round(magnitude)) if isinstance(value, int) else ''
    if len(digits) > 300:
      return f'{"-" if value < 0 else ""}{digits[0]}e{len(digits) - 1}'
    return _short_exponent(f'{value:.4g}')
  if isinstance(value, int) or magnitude >= 10_000:
    return f'{value:,.0f}'
  if magnitude >= 1e-4 or value == 0:
    return f'{value:.4g}'
  return _short_exponent(f'{value:.3g}')


def thin(
  points: Sequence[tuple[float, float]], max_points: int
) -> list[tuple[float, float]]:
  """Keeps at most `max_points` (at least 4) points of a curve.

  Keeps the first and the last point, and the lowest and highest point of each
  of several equal runs between them, so that a spike of one step is not lost.
  """
  if len(points) <= max_points:
    return list(points)
  inner = points[1:-1]
  runs = max(1, (max_points - 2) // 2)
  kept = {0, len(points) - 1}
  for run in range(runs):
    start = run * len(inner) // runs
    stop = (run + 1) * len(inner) // runs
    indices = range(start + 1, stop + 1)
    kept.add(min(indices, key=lambda i: points[i][1]))
    kept.add(max(indices, key=lambda i: points[i][1]))
  return [points[i] for i in sorted(kept)]


def ticks(
  low: float, high: float, *, count: int = 7, whole: bool = False
) -> list[float]:
  """Returns up to `count` + 1 multiples of {1, 2, 5} x 10^n in [low, high].

  ticks(0, 600) = [0, 100, 200, 300, 400, 500, 600]

  Args:
    low, high: ends of the axis.
    count: maximum number of intervals.
    whole: whether all ticks must be integers.

  Raises:
    ValueError: `high` is not above `low`.
  """
  if not high > low:
    raise ValueError(f'high={high!r} must be above low={low!r}')
  power = 10.0 ** math.floor(math.log10((high - low) / count))
  step = next(
    (m * power for m in (1, 2, 5) if (high - low) / (m * power) <= count),
    10 * power,
  )
  if whole:
    step = max(1.0, step)
  # A range of a few rounding errors would otherwise give a tick twice.
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _plot(curves, *, top, x_label, y_label, from_zero, max_points):
  """Draws axes, curves and hover bands; returns the parts and the lowest y."""
  xs = sorted({x for _, points in curves for x, _ in points})
  ys = [y for _, points in curves for _, y in points]
  whole = all(float(x).is_integer() for x in xs)
  x_low, x_high = _range(xs, from_zero=True)
  y_low, y_high = _range(ys, from_zero=from_zero)
  # Keeps the curves away from the frame.
  margin = 0.05 * (y_high - y_low)
  y_low, y_high = y_low - (0 if from_zero else margin), y_high + margin
  x_ticks = ticks(x_low, x_high, whole=whole)
  y_ticks = ticks(y_low, y_high)
  x_names, y_names = _tick_labels(x_ticks), _tick_labels(y_ticks)
  left = max(map(len, y_names)) * _CHARACTER_WIDTH + 8
  right = _WIDTH - max(8.0, len(x_names[-1]) * _CHARACTER_WIDTH / 2)
  upper = top + 10
  bottom = upper + _PLOT_HEIGHT

  def across(x):
    return left + (right - left) * ((x - x_low) / (x_high - x_low))

  def down(y):
    return bottom - _PLOT_HEIGHT * ((y - y_low) / (y_high - y_low))

  parts = [_text(0, top, y_label)]
  for value, name in zip(y_ticks, y_names, strict=True):
    y = down(value)
    parts.append(
      f'<path class="grid" d="M{left:.1f},{y:.1f}H{right:.1f}"/>'
      + _text(left - 6, y + 4, name, anchor='end')
    )
  for value, name in zip(x_ticks, x_names, strict=True):
    x = across(value)
    parts.append(
      f'<path class="axis" d="M{x:.1f},{bottom}v4"/>'
      + _text(x, bottom + 16, name, anchor='middle')
    )
  parts.append(f'<path class="axis" d="M{left:.1f},{bottom}H{right:.1f}"/>')
  parts.append(_text(right, bottom + 32, x_label, anchor='end'))
  for i, (_, points) in enumerate(curves):
    parts += _curve(thin(points, max_points), across, down, i)
  parts += _hover_bands(curves, xs, across, (upper, bottom), x_label)
  return parts, bottom + 32


def _curve(points, across, down, index):
  """Draws a path and, if there are few points, their dots."""
  if not points:
    return []
  places = [f'{across(x):.1f},{down(y):.1f}' for x, y in points]
  color = f'style="--color:var(--series-{index % _COLORS})"'
  parts = [f'<path class="line" {color} d="M{"L".join(places)}"/>']
  if len(points) <= _DOTTED:
    for place in places:
      x, y = place.split(',')
      parts.append(f'<circle class="dot" {color} cx="{x}" cy="{y}" r="3"/>')
  return parts


def _hover_bands(curves, xs, across, rows, x_label):
  """Draws transparent strips over the plot; their titles show the values."""
  if len(xs) > _HOVER_BANDS:
    last = len(xs) - 1
    centres = [xs[i * last // (_HOVER_BANDS - 1)] for i in range(_HOVER_BANDS)]
  else:
    centres = xs
  middles = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
  low = [-math.inf, *middles]
  high = [*middles, math.inf]
  # One pass over each curve, which assigns its points to bands.
  nearest = [{} for _ in centres]
  for name_index, (_, points) in enumerate(curves):
    band = 0
    for x, y in sorted(points):
      while x >= high[band]:
        band += 1
      best = nearest[band].get(name_index)
      centre = centres[band]
      if best is None or abs(x - centre) <= abs(best[0] - centre):
        nearest[band][name_index] = (x, y)
  parts = []
  upper, bottom = rows
  left_end, right_end = across(xs[0]) - 8, across(xs[-1]) + 8
  for a, b, found in zip(low, high, nearest, strict=True):
    lines = [
      f'{x_label} {number_text(_as_int(x))}: {curves[i][0]} {number_text(y)}'
      for i, (x, y) in sorted(found.items())
    ]
    start = left_end if math.isinf(a) else across(a)
    stop = right_end if math.isinf(b) else across(b)
    parts.append(
      f'<rect class="hover" x="{start:.1f}" y="{upper}" '
      f'width="{max(0.0, stop - start):.1f}" height="{bottom - upper}">'
      f'<title>{html.escape(chr(10).join(lines))}</title></rect>'
    )
  return parts


def _legend(names, y):
  """Draws swatches and names in rows; returns the parts and the last y."""
  parts, x = [], 0.0
  for i, name in enumerate(names):
    width = 24 + _CHARACTER_WIDTH * len(name) + 14
    if x > 0 and x + width > _WIDTH:
      x, y = 0.0, y + _ROW_HEIGHT
    color = f'style="--color:var(--series-{i % _COLORS})"'
    parts.append(
      f'<path class="line" {color} d="M{x + 2:.1f},{y - 4}h16"/>'
      f'<circle class="dot" {color} cx="{x + 10:.1f}" cy="{y - 4}" r="3"/>'
      + _text(x + 24, y, name)
    )
    x += width
  return parts, y


def _range(values, *, from_zero):
  """Ends of an axis, which are distinct for any values."""
  low, high = min(values), max(values)
  if from_zero:
    low, high = min(0.0, low), max(0.0, high)
  size = max(abs(low), abs(high))
  if high - low <= max(1e-9 * size, _SMALLEST):
    half = 0.1 * size if size > _SMALLEST else 1.0
    return low - half, high + half
  return low, high


def _tick_labels(values):
  """Formats labels with a common number of decimals, or a common suffix."""
  largest = max(map(abs, values))
  step = values[1] - values[0] if len(values) > 1 else largest or 1.0
  for unit, suffix in ((1e9, 'G'), (1e6, 'M')):
    if unit <= largest < 1e15 and step >= unit / 100:
      return [f'{v / unit:.6g}{suffix}' if v else '0' for v in values]
  if largest >= 1e9 or step < 1e-6:
    return [_short_exponent(f'{v:.4g}') for v in values]
  decimals = max(0, -math.floor(math.log10(step) + 1e-9))
  return [f'{v:,.{decimals}f}' if v else '0' for v in values]


def _finite_points(series):
  return [
    (float(x), float(y))
    for x, y in zip(series.x, series.y, strict=True)
    if _is_finite(x) and _is_finite(y)
  ]


def _is_finite(value):
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and abs(value) <= _LARGEST
  )


def _drawable(value):
  return _is_finite(value) and value >= 0


def _as_int(x):
  return int(x) if float(x).is_integer() else x


def _short_exponent(text):
  """1.2e-05 → 1.2e-5, 1e+20 → 1e20."""
  mantissa, e, exponent = text.partition('e')
  return f'{mantissa}{e}{int(exponent)}' if e else text


def _text(x, y, text, kind='', *, anchor=''):
  attributes = f' class="{kind}"' if kind else ''
  if anchor:
    attributes += f' text-anchor="{anchor}"'
  return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{html.escape(text)}</text>'


def _svg(parts, *, height, label):
  return (
    f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
    f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )

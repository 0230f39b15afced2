"""The charts of the report page: inline SVG by pygal, without scripts, in the page's colours.

Each comes with what it says in a sentence and as numbers, for those who cannot see it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pygal
from pygal.style import Style

from runner.results import CheckResult, RunResult, Sample
from runner.words import duration, number, plural, rate, size

__all__ = ["Chart", "charts_of"]

# pygal leaves an import hook of a kind that Python 3.12 ignores and 3.11 warns about on
# every later import of anything.  It only serves map plug-ins.
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "pygal"]

_WIDTH, _HEIGHT = 480, 280
_BINS = 10
_MOST_POINTS = 120
_PERCENTILES = (50, 90, 95, 99)

# The page's own custom properties: one chart serves light, dark and paper.
_STYLE = {
    "background": "transparent",
    "plot_background": "transparent",
    "foreground": "var(--soft)",
    "foreground_strong": "var(--ink)",
    "foreground_subtle": "var(--line)",
    "guide_stroke_color": "var(--line)",
    "major_guide_stroke_color": "var(--line)",
    "guide_stroke_dasharray": "none",
    "major_guide_stroke_dasharray": "none",
    "font_family": "inherit",
    "label_font_size": 13,
    "major_label_font_size": 13,
    "legend_font_size": 14,
    "title_font_size": 14,
    "opacity": "1",
    "stroke_opacity": "1",
    "stroke_width": "2",
    "transition": "0s",
}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: What it shows.
        svg: An ``<svg>`` element, safe to stand in a page as it is.
        says: The same in a sentence.
        head, rows: The same as a table.
    """

    title: str
    svg: str
    says: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def charts_of(result: RunResult) -> dict[str, list[Chart]]:
    """The charts that *result* has numbers for, under the name of their check, or ``copy``."""
    found: dict[str, list[Chart]] = {}
    for check in result.checks:
        if check.name.partition(":")[0] == "queries":
            charts = [_recall(check), _latency(check)]
            found[check.name] = [each for each in charts if each is not None]
    throughput = _throughput(result.throughput)
    if throughput is not None:
        found["copy"] = [throughput]
    return found


def _recall(check: CheckResult) -> Chart | None:
    series = _numbers(check.evidence, "recall_source", "recall_target")
    if not series:
        return None
    k = check.evidence.get("k")
    # one bar for each number of neighbours found, unless these are too many
    bins = k if isinstance(k, int) and 1 <= k <= _BINS else _BINS
    labels = [f"{100 * each / bins:.0f} %" for each in range(bins + 1)]
    counts = {
        side: np.bincount(np.clip(np.round(values * bins), 0, bins).astype(int), minlength=bins + 1)
        for side, values in series.items()
    }
    whole = len(next(iter(series.values())))
    means = " and ".join(f"{values.mean():.3f} in the {side}" for side, values in series.items())
    title = f"Recall@{k} of {plural(whole, 'query', 'queries')}"
    chart = _bars(title, labels, counts, x="share of the true neighbours found", y="queries")
    return Chart(
        title=title,
        svg=chart,
        says=f"The mean recall is {means}.",
        head=("neighbours found", *series),
        rows=tuple(
            (label, *(number(int(each[at])) for each in counts.values()))
            for at, label in enumerate(labels)
            if any(each[at] for each in counts.values())
        ),
    )


def _latency(check: CheckResult) -> Chart | None:
    series = _numbers(check.evidence, "latency_source_ms", "latency_target_ms")
    if not series:
        return None
    levels = {side: np.percentile(values, _PERCENTILES) for side, values in series.items()}
    labels = ["median", *(f"{each} %" for each in _PERCENTILES[1:])]
    says = " and ".join(f"{each[0]:.3g} ms in the {side}" for side, each in levels.items())
    return Chart(
        title="Time to answer one query",
        svg=_bars("Time to answer one query", labels, levels, x="of the queries within", y="ms"),
        says=f"Half of the queries took at most {says}.",
        head=("queries answered within", *levels),
        rows=tuple(
            (label, *(f"{each[at]:.3g} ms" for each in levels.values()))
            for at, label in enumerate(labels)
        ),
    )


def _throughput(samples: Sequence[Sample]) -> Chart | None:
    points = [(0.0, 0, 0), *((each.at_s, each.records, each.size_bytes) for each in samples)]
    every = max(1, -(-len(points) // _MOST_POINTS))
    points = [*points[:-1][::every], points[-1]]
    if len(points) > 2 and 2 * (points[-1][0] - points[-2][0]) < points[-1][0] / len(points):
        del points[-2]  # the copy's end falls just behind a point: too short for a rate
    steps = [
        (after[0], (after[1] - before[1]) / (after[0] - before[0]))
        for before, after in pairwise(points)
        if after[0] > before[0]
    ]
    if len(steps) < 2:
        return None
    at_s, records, size_bytes = points[-1]
    chart = _chart(
        pygal.XY,
        "Records a second",
        ["target"],
        show_dots=False,
        show_legend=False,
        x_title="seconds of copying",
    )
    chart.range = (0, max(each for _, each in steps) * 1.05 or 1)
    chart.value_formatter = _short
    chart.x_value_formatter = lambda seconds: f"{seconds:g}"
    chart.add("records a second", steps)
    return Chart(
        title="Records a second",
        svg=_svg(chart),
        says=(
            f"{number(records)} records and {size(size_bytes)} in {duration(at_s)}: "
            f"{rate(records / at_s)} on average, between {rate(min(each for _, each in steps))} "
            f"and {rate(max(each for _, each in steps))}."
        ),
        head=("after", "records a second"),
        rows=tuple(
            (duration(at), rate(each)) for at, each in steps[:: max(1, -(-len(steps) // 12))]
        ),
    )


def _bars(title: str, labels: Sequence[str], series: Mapping[str, Any], *, x: str, y: str) -> str:
    chart = _chart(pygal.Bar, title, list(series), x_title=x, y_title=y)
    chart.x_labels = list(labels)
    if len(labels) > 6:
        chart.x_labels_major_every = 2
        chart.show_minor_x_labels = False
    chart.value_formatter = _short
    for side, values in series.items():
        chart.add(side, [float(each) for each in values])
    return _svg(chart)


def _chart(kind: Any, title: str, sides: Sequence[str], **settings: Any) -> Any:
    colors = tuple(f"var(--{side})" for side in sides)
    chart = kind(
        width=_WIDTH,
        height=_HEIGHT,
        style=Style(**{**_STYLE, "colors": colors}),
        js=[],
        disable_xml_declaration=True,
        legend_at_bottom=True,
        min_scale=3,
        max_scale=6,
        truncate_label=-1,
        margin=8,
        **settings,
    )
    # pygal names a chart's style rules by this; a random one would change each report
    chart.uuid = "-".join(re.findall(r"[a-z]+", title.lower()))
    chart.add_xml_filter(lambda root: _bare(root, title))
    return chart


def _bare(root: Any, title: str) -> Any:
    """pygal's tree without its scripts and comments, named for screen readers."""
    for parent in list(root.iter()):
        for child in list(parent):
            # comments have a function for a tag
            if not isinstance(child.tag, str) or child.tag.endswith("script"):
                parent.remove(child)
    for child in list(root):
        if child.tag.endswith("title"):
            child.text = title
    root.set("role", "img")
    root.set("aria-label", title)
    return root


def _svg(chart: Any) -> str:
    text: str = chart.render(is_unicode=True)
    return text


def _numbers(evidence: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """``source`` and ``target`` → their numbers; a side that has none is left out."""
    found = {}
    for side, key in (("source", source), ("target", target)):
        values = np.asarray(evidence.get(key, ()), dtype=np.float64)
        values = values[np.isfinite(values)] if values.ndim == 1 else values[:0]
        if len(values):
            found[side] = values
    return found


def _short(value: float) -> str:
    return f"{value / 1000:,.3g}k" if value >= 10_000 else f"{value:,.4g}"

"""The report as one HTML page: no network, no script, light and dark, screen and paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from runner.report.charts import Chart, charts_of
from runner.results import RunResult, Side, Verdict
from runner.words import (
    brief,
    clean,
    duration,
    in_namespaces,
    moment,
    number,
    plural,
    rate,
    share,
    shortened,
    size,
    words_of,
)

__all__ = ["to_html"]

_MOST_BYTES = 1_000_000
# How many rows of a table, and characters of a text, are shown: the first that fits.
_BOUNDS = ((300, 300), (100, 150), (30, 80), (10, 40))


def to_html(result: RunResult) -> str:
    """*result* as one self-contained page of at most one megabyte."""
    charts = _charts(result)
    page = ""
    for most, longest in _BOUNDS:
        page = _page(result, charts, most, longest)
        if len(page.encode("utf-8", "replace")) <= _MOST_BYTES:
            break
    return page


def _charts(result: RunResult) -> dict[str, list[Chart]]:
    charts: dict[str, list[Chart]] = {"copy": [], **{each.name: [] for each in result.checks}}
    charts.update(charts_of(result))
    return charts


def _page(result: RunResult, charts: dict[str, list[Chart]], most: int, longest: int) -> str:
    def short(text: str) -> str:
        return brief(text, longest)

    return _template().render(
        r=result,
        word=result.headline,
        most=most,
        longest=longest,
        failed=[each for each in result.checks if each.verdict is Verdict.FAILED],
        facts=_facts(result),
        ends=[("from", *_end(result.source, short)), ("to", *_end(result.target, short))],
        charts=charts,
        losses=[
            (
                short(row.field),
                short(row.what),
                "" if row.records is None
                else f"{number(row.records)} of {number(row.looked_at)}",
                short(row.policy),
                "restored" if row.reversible else "not restored",
            )
            for row in result.losses[:most]
        ],
        fields=[
            (
                short(row.name),
                short(", ".join(row.kinds)),
                short(row.becomes),
                share(row.records, row.looked_at),
                short(row.note),
            )
            for row in result.fields[:most]
        ],
        hazards=[
            (short(row.name), short(row.why), short(row.allowed_by) or "nobody")
            for row in result.hazards[:most]
        ],
        steps=[
            (
                str(row.number),
                short(row.kind),
                short(row.text) + "".join(f" [{short(each)}]" for each in row.hazards),
                "" if row.seconds is None else duration(row.seconds),
            )
            for row in result.steps[:most]
        ],
        plan=clean(shortened(result.plan_text, 300 * longest), keep="\n"),
        evidence=[
            ("plan", result.fingerprint),
            ("target digest", result.target_digest),
            ("last hash of the audit", result.audit_head),
            *((short(name), short(each)) for name, each in list(result.versions.items())[:most]),
        ],
    )  # fmt: skip


def _facts(result: RunResult) -> list[tuple[str, str]]:
    found = [
        ("records", number(result.records)),
        ("size", size(result.size_bytes)),
        ("time", duration(result.seconds)),
    ]
    if result.throughput and result.throughput[-1].at_s > 0:
        last = result.throughput[-1]
        found.append(("copied at", rate(last.records / last.at_s)))
    found.append(("set aside", number(result.dead_letters)))
    found.append(("retries", number(result.retries)))
    return found


def _end(side: Side, short: Callable[[str], str]) -> tuple[str, ...]:
    return (
        short(side.store),
        short(side.place),
        "" if side.records is None else number(side.records) + in_namespaces(side.namespaces),
        "" if side.dim is None else number(side.dim),
        short(side.metric),
        short(side.index),
        "" if side.storage_bytes is None else size(side.storage_bytes),
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Any] = {
        "clean": brief,
        "moment": moment,
        "number": number,
        "plural": plural,
        "words": lambda text: words_of(text).capitalize(),
    }
    environment.filters.update(filters)
    page = files("runner.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(page)

"""Results as Markdown, for pull requests: GitHub's dialect, safe whatever a field is called."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import assert_never

from runner.results import (
    CheckResult,
    DryRunResult,
    FieldRow,
    HazardRow,
    InspectedSide,
    InspectResult,
    LossRow,
    Remark,
    RollbackResult,
    RunResult,
    SeveralResult,
    Side,
    StatusResult,
    StepRow,
    Verdict,
)
from runner.words import (
    about,
    brief,
    clean,
    clock,
    duration,
    in_namespaces,
    moment,
    number,
    plural,
    rate,
    share,
    shown_list,
    size,
    words_of,
)

__all__ = ["to_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]#+!|~$])")
_MENTION = re.compile(r"(?<!\w)@(?=\w)")
_BACKTICKS = re.compile(r"`+")
_LONGEST = 500
_ROWS = 200
_FAILURES = 20


Result = DryRunResult | RunResult | InspectResult | StatusResult | RollbackResult | SeveralResult


def to_markdown(result: Result) -> str:
    """*result* as one Markdown document that ends with a line break."""
    match result:
        case DryRunResult():
            parts = _dry_run(result)
        case RunResult():
            parts = _run(result)
        case InspectResult():
            parts = _inspect(result)
        case StatusResult():
            parts = _status(result)
        case RollbackResult():
            parts = _rollback(result)
        case SeveralResult():
            parts = _several(result)
        case _:
            assert_never(result)
    return "\n\n".join(part for part in parts if part) + "\n"


def _dry_run(result: DryRunResult) -> list[str]:
    estimate = result.estimate
    amounts = [
        plural(estimate.records, "record"),
        size(estimate.size_bytes),
        plural(estimate.batches, "batch", "batches"),
    ]
    if estimate.seconds is not None:
        amounts.append(f"about {about(estimate.seconds)}")
    if estimate.read_per_s is not None:
        amounts.append(f"read {rate(estimate.read_per_s)} measured")
    if estimate.write_per_s is not None:
        amounts.append(f"write {rate(estimate.write_per_s)} {_text(estimate.write_source)}")
    stands = (
        "**This plan would not run.** Solve what is named below, then dry-run again."
        if result.exit_code or result.problems
        else f"**Nothing would begin anew:** {_text(' '.join(result.instead.split()))}."
        if result.instead
        else "**Ready to run.**"
    )
    return [
        f"## {_text(result.name)}: dry run, nothing is written",
        _text(result.description),
        stands,
        _remarks(result.problems, "Problems"),
        _remarks(result.warnings, "Warnings"),
        _remarks(result.notes, "Notes"),
        _ends(result.source, result.target),
        f"**Estimate** ({_text(words_of(result.strategy))}): {' · '.join(amounts)}",
        _steps(result.steps),
        _fields(result.fields),
        _losses(result.losses),
        _hazards(result.hazards),
        _section("Judged by", _bullets(_text(each) for each in result.thresholds)),
        f"Fingerprint {_code(result.fingerprint)} · {plural(result.sampled, 'record')} sampled",
    ]


def _run(result: RunResult) -> list[str]:
    facts = [plural(result.records, "record"), size(result.size_bytes), duration(result.seconds)]
    if result.resumed:
        facts.append(f"resumed {plural(result.resumed, 'time')}")
    if result.dead_letters:
        facts.append(f"{number(result.dead_letters)} set aside")
    if result.retries:
        facts.append(plural(result.retries, "retry", "retries"))
    return [
        f"## {_SIGNS[result.verdict]} {_text(result.headline)}: {_text(result.name)}",
        _text(result.description),
        f"{_text(words_of(result.command)).capitalize()} {_code(result.run_id)} · "
        f"begun {_text(moment(result.started_at))} · " + " · ".join(facts),
        f"Finished {_text(moment(result.finished_at))}; nothing was done now."
        if result.repeated
        else "",
        _section(
            "Checks",
            _table(
                ("check", "verdict", "evidence", "coverage", "asked"),
                [
                    (
                        _text(each.name),
                        _verdict(each.verdict),
                        _text(each.summary),
                        _text(each.coverage),
                        _text(each.threshold),
                    )
                    for each in result.checks
                ],
            ),
        ),
        *(_failed_check(each) for each in result.checks if each.verdict is Verdict.FAILED),
        _remarks(result.warnings, "Warnings"),
        _ends(result.source, result.target),
        _fields(result.fields),
        _losses(result.losses),
        _hazards(result.hazards),
        _steps(result.steps),
        _section("Next", _bullets(_text(each) for each in result.next)),
        _folded("The plan", _fenced(result.plan_text, "yaml")),
        _folded(
            "Fingerprints and versions",
            _bullets(
                [
                    f"plan {_code(result.fingerprint)}",
                    f"target digest {_code(result.target_digest)}",
                    f"last hash of the audit {_code(result.audit_head)}",
                    *(f"{_text(name)} {_text(each)}" for name, each in result.versions.items()),
                ]
            ),
        ),
    ]


def _failed_check(check: CheckResult) -> str:
    values = check.values or [""] * len(check.failures)
    rows = [
        _text(each) + (f": {_code(value)}" if value else "")
        for each, value in list(zip(check.failures, values, strict=True))[:_FAILURES]
    ]
    if len(check.failures) > _FAILURES:
        rows.append(f"and {number(len(check.failures) - _FAILURES)} more in the report")
    parts = [_section(f"{_text(check.name)} failed", _bullets(rows) or _text(check.summary))]
    if check.advice:
        parts.append(f"Likely: {_text(check.advice)}")
    return "\n\n".join(parts)


def _inspect(result: InspectResult) -> list[str]:
    parts = [f"## {_text(result.name)}: what is there"]
    for side in result.sides:
        parts += _inspected(side)
    if result.next:
        parts.append(_section("Next", _bullets(_text(each) for each in result.next)))
    return parts


def _inspected(found: InspectedSide) -> list[str]:
    about_ = found.about
    head = f"### {_text(found.side)}: {_text(about_.store)} {_code(about_.place)}"
    remarks = _remarks(found.remarks, "Remarks")
    if about_.records is None:
        return [head, _text(about_.state) or "does not exist", remarks]
    records = plural(about_.records, "record") + in_namespaces(about_.namespaces)
    facts = [f"{records}, about {size(found.average_record_bytes)} each"]
    facts += [f"vector {_code(name)}: {_text(text)}" for name, text in found.vectors.items()]
    if about_.index:
        facts.append(f"index: {_text(about_.index)}")
    kinds = ", ".join(f"{_text(kind)} ({number(n)})" for kind, n in found.id_kinds.items())
    if kinds:
        facts.append(f"ids: {kinds}, longest {plural(found.longest_id_bytes, 'byte')}")
    if found.looked_at:
        facts.append(
            f"documents: {share(found.documents, found.looked_at)}, "
            f"longest {plural(found.longest_document, 'character')}"
        )
    if about_.storage_bytes is not None:
        facts.append(f"storage: {size(about_.storage_bytes)}")
    fields = _table(
        ("field", "kinds", "in records", "null", "distinct"),
        [
            (
                _code(row.name, in_table=True),
                _text(", ".join(row.kinds)),
                share(row.records, row.looked_at),
                share(row.nulls, row.records) if row.nulls else "",
                "over 1,000" if row.distinct is None else number(row.distinct),
            )
            for row in found.fields
        ],
    )
    looked = f"Fields of {plural(found.looked_at, 'record')} looked at:" if fields else ""
    return [head, _bullets(facts), looked, fields, remarks]


def _status(result: StatusResult) -> list[str]:
    running = ", running now" if result.running else ""
    facts = []
    if result.run_id:
        whole = "" if result.total is None else f" of {number(result.total)}"
        facts = [
            f"run {_code(result.run_id)}, begun {_text(moment(result.started_at))}, at work for "
            f"{duration(result.seconds)}, last sign {_text(moment(result.updated_at))}"
            + ("" if result.silent_s is None else f", {about(result.silent_s)} ago"),
            f"{number(result.records)}{whole} records · {size(result.size_bytes)}"
            + (f" · {rate(result.rate_per_s)}" if result.rate_per_s else "")
            + ("" if result.eta_s is None else f" · {clock(result.eta_s)} left"),
            f"{number(result.dead_letters)} set aside · "
            + plural(result.retries, "retry", "retries"),
        ]
        if result.verdict is not None:
            facts.insert(0, _verdict(result.verdict))
    return [
        f"## {_text(result.name)}: {_text(result.phase)}{running}",
        _bullets(facts),
        _section("Next", _bullets(_text(each) for each in result.next)),
    ]


def _rollback(result: RollbackResult) -> list[str]:
    state = "rolled back" if result.done else "rollback, nothing has been removed yet"
    of_this_run = " of this run"
    if result.command == "finalise":
        state = "finalised" if result.done else "finalise, nothing has been dropped yet"
        of_this_run = " that were replaced"
    facts = [
        f"target: {_text(result.target.store)} {_code(result.target.place)}",
        f"{'did' if result.done else 'does'}: {_text(result.action)}, "
        f"{plural(result.removed, 'record')}{of_this_run}",
    ]
    for reason, (count, ids) in result.kept.items():
        examples = f": {_text(shown_list(ids, most=10))}" if ids else ""
        facts.append(f"keeps {plural(count, 'record')}, {_text(reason)}{examples}")
    if result.cannot_tell:
        facts.append(f"cannot be seen: {_text(result.cannot_tell)}")
    return [
        f"## {_text(result.name)}: {state}",
        _bullets(facts),
        _section("Next", _bullets(_text(each) for each in result.next)),
    ]


def _several(result: SeveralResult) -> list[str]:
    """Each source's document below what is true of all."""
    verdict = [] if result.verdict is None else [_verdict(result.verdict)]
    return [
        f"# {_text(result.name)}: {result.command}, {plural(len(result.parts), 'source')}",
        *verdict,
        _remarks(result.problems, "Problems"),
        *(f"# {_text(each.source)}\n\n{to_markdown(each.result)}" for each in result.parts),
        _section("Next", _bullets(_text(each) for each in result.next)),
    ]


# pieces that several documents share


def _ends(source: Side, target: Side) -> str:
    return _table(
        ("", "store", "place", "records", "dims", "metric", "index", "storage", "state"),
        [
            (
                word,
                _text(side.store),
                _code(side.place, in_table=True),
                ""
                if side.records is None
                else number(side.records) + in_namespaces(side.namespaces),
                "" if side.dim is None else number(side.dim),
                _text(side.metric),
                _text(side.index),
                "" if side.storage_bytes is None else size(side.storage_bytes),
                _text(side.state),
            )
            for word, side in (("from", source), ("to", target))
        ],
    )


def _fields(rows: Sequence[FieldRow]) -> str:
    return _section(
        "Fields",
        _table(
            ("field", "kinds", "becomes", "in records", ""),
            [
                (
                    _code(row.name, in_table=True) if row.name else "",
                    _text(", ".join(row.kinds)),
                    _code(row.becomes, in_table=True) if row.becomes else "",
                    share(row.records, row.looked_at),
                    _text(row.note),
                )
                for row in rows
            ],
        )
        or "No metadata.",
    )


def _losses(rows: Sequence[LossRow]) -> str:
    return _section(
        "Loss report",
        _table(
            ("field", "what happens", "records", "policy", "on the way back"),
            [
                (
                    _code(row.field, in_table=True),
                    _text(row.what),
                    "" if row.records is None
                    else f"{number(row.records)} of {number(row.looked_at)}",
                    _text(row.policy),
                    "restored" if row.reversible else "**not restored**",
                )
                for row in rows
            ],
        )
        or "Nothing is lost.",
    )  # fmt: skip


def _hazards(rows: Sequence[HazardRow]) -> str:
    return _section(
        "Hazards",
        _table(
            ("hazard", "why", "allowed by"),
            [
                (
                    _code(row.name, in_table=True),
                    _text(row.why),
                    _text(row.allowed_by) or "**not allowed**",
                )
                for row in rows
            ],
        )
        or "None.",
    )


def _steps(rows: Sequence[StepRow]) -> str:
    timed = any(row.seconds is not None for row in rows)
    return _section(
        "Steps",
        _table(
            ("", "step", "what", "hazards", *(["took"] if timed else [])),
            [
                (
                    str(row.number),
                    _text(row.kind),
                    _text(row.text),
                    _text(", ".join(row.hazards)),
                    *([duration(row.seconds) if row.seconds is not None else ""] if timed else []),
                )
                for row in rows
            ],
        ),
    )


def _remarks(rows: Sequence[Remark], title: str) -> str:
    found = []
    for each in rows:
        place = f"{_code(each.place)}: " if each.place else ""
        hint = f"  \n  Hint: {_text(each.hint)}" if each.hint else ""
        found.append(f"{place}{_text(each.what)}{hint}")
    return _section(title, _bullets(found)) if found else ""


def _section(title: str, body: str) -> str:
    return f"### {title}\n\n{body}" if body else ""


def _bullets(rows: Iterable[str]) -> str:
    return "\n".join(f"- {row}" for row in rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows[:_ROWS])]
    table = "\n".join(lines)
    more = len(rows) - _ROWS
    return f"{table}\n\nand {number(more)} more" if more > 0 else table


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(verdict: Verdict) -> str:
    word = "FAILED" if verdict is Verdict.FAILED else verdict.value
    return f"{_SIGNS[verdict]} {word}"


_SIGNS = {Verdict.PASSED: "✅", Verdict.FAILED: "❌", Verdict.SKIPPED: "⚪"}


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def _fenced(text: str, language: str) -> str:
    """A code block that *text* cannot end."""
    if not text:
        return ""
    longest = max((len(each) for each in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{clean(text, keep=chr(10)).rstrip(chr(10))}\n{fence}"


def _text(text: str) -> str:
    """*text* as prose: nothing in it is markup, a line break or a mention of somebody."""
    escaped = _SPECIAL.sub(r"\\\1", brief(text, _LONGEST))
    # as an entity: a backslash does not keep a backtick from ending a code span
    escaped = html.escape(escaped, quote=False).replace("\\`", "&#96;")
    # bare addresses would become links
    escaped = escaped.replace("://", ":<span></span>//")
    return _MENTION.sub("@<span></span>", escaped)


def _code(text: str, *, in_table: bool = False) -> str:
    """*text* as a code span, whatever backticks and pipes it holds."""
    text = brief(text, _LONGEST)
    if not text.strip():
        return "(empty)" if not text else "(blanks)"
    longest = max((len(each) for each in _BACKTICKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    if in_table:
        text = text.replace("|", "\\|")
    return f"{fence}{pad}{text}{pad}{fence}"

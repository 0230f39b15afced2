"""Results on a terminal: 80 columns first, the verdict or the next act first or last.

Everything is printed as plain `Text`, so that nothing a store says is taken for
markup; colours only repeat what a word says.  No line ends in blanks, and none is wider
than the screen, but for words that are: paths and addresses stay whole, to be copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import assert_never

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.errors import PausedError, PlanError, RunnerError, StoppedError
from runner.results import (
    CheckResult,
    DryRunResult,
    Estimate,
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

__all__ = ["Result", "failure", "problems", "render"]

Result = DryRunResult | RunResult | InspectResult | StatusResult | RollbackResult | SeveralResult

_STYLES = {Verdict.PASSED: "bold green", Verdict.FAILED: "bold red", Verdict.SKIPPED: "yellow"}
_LONGEST_NAME = 40
_FAILURES = 3
_FIELDS = 40
_LABEL = 9
_NARROWEST = 20
_WIDEST = 100
"""Beyond this the two ends of a line are too far apart to be read as one."""

_LABELS = {"dead letters": "set aside"}
"""What checks are called here, where their own name is too long for the column."""

Line = Text | str


def render(result: Result, console: Console, verbose: bool = False) -> None:
    """Print *result*; with *verbose* also what only some people want to know."""
    match result:
        case DryRunResult():
            _dry_run(result, console, verbose)
        case RunResult():
            _run(result, console, verbose)
        case InspectResult():
            _inspect(result, console, verbose)
        case StatusResult():
            _status(result, console, verbose)
        case RollbackResult():
            _rollback(result, console, verbose)
        case SeveralResult():
            _several(result, console, verbose)
        case _:
            assert_never(result)


def problems(error: PlanError, console: Console) -> None:
    """Print every problem of a refused plan, and that nothing has happened."""
    for each in error.problems:
        place = clean(each.file)
        if each.line:
            place += f":{each.line}:{each.column}"
        line = Text(f"{place}: ", style="bold")
        line.append(f"{clean(each.path)}: " if each.path else "", style="not bold")
        line.append(clean(each.what), style="not bold")
        _whole(console, line)
        _hint(console, each.hint)
    if not error.problems:
        _whole(console, clean(error.what, "\n"))
        _hint(console, error.hint)
    count = len(error.problems) or 1
    _whole(console, Text(f"{plural(count, 'problem')}; nothing was read or written", "bold red"))


def failure(error: RunnerError, console: Console) -> None:
    """Print why a command ended without a result: what, and what to do next."""
    if isinstance(error, PlanError) and error.problems:
        problems(error, console)
        return
    calm = isinstance(error, StoppedError | PausedError)
    first, _, rest = clean(error.what, "\n").partition("\n")
    _whole(console, Text(first, style="bold yellow" if calm else "bold red"))
    if rest:
        _whole(console, rest)
    _hint(console, error.hint)


# dry run


def _dry_run(result: DryRunResult, console: Console, verbose: bool) -> None:
    strategy = words_of(result.strategy)
    _title(console, result.name, f"{strategy} · dry run, nothing is written", result.description)
    _ends(console, result.source, result.target)
    _fields(console, result.fields, everything=verbose)
    _losses(console, result.losses)
    _steps(console, result.steps)
    console.print()
    amounts, rates = _estimate(result.estimate)
    summary: list[tuple[str, Line]] = [("Estimate", amounts), ("", rates)]
    summary = [row for row in summary if row[1]] + [("Hazards", _hazards(result.hazards))]
    _labelled(console, summary, indent=0)
    for row in result.hazards:
        _paragraph(console, _hazard(row))
    if verbose:
        rows: list[tuple[str, Line]] = [
            ("Sample", f"{plural(result.sampled, 'record')} of the source were tried"),
            ("Plan", f"fingerprint {result.fingerprint}"),
        ]
        _labelled(console, rows, indent=0)
    _remarks(console, result.warnings, "warning", "yellow")
    _remarks(console, result.notes, "note", "")
    _remarks(console, result.problems, "problem", "bold red")
    console.print()
    if result.exit_code or result.problems:
        _whole(
            console,
            Text("This plan would not run", style="bold red").append(
                ": solve what is named above, then dry-run again", style="not bold default"
            ),
        )
    else:
        _next(
            console,
            (result.instead or "the same command without --dry-run runs these steps",),
        )


def _estimate(found: Estimate) -> tuple[str, str]:
    """What it takes, and the rates that this rests on."""
    text = f"{plural(found.records, 'record')} · {size(found.size_bytes)} · "
    text += plural(found.batches, "batch", "batches")
    if found.seconds is not None:
        text += f" · about {about(found.seconds)}"
    rates = []
    if found.read_per_s is not None:
        rates.append(f"read {rate(found.read_per_s)} measured")
    if found.write_per_s is not None:
        rates.append(f"write {rate(found.write_per_s)} {clean(found.write_source)}")
    return text, ", ".join(rates)


def _hazards(rows: Sequence[HazardRow]) -> Line:
    if not rows:
        return "none"
    refused = [row for row in rows if not row.allowed_by]
    if refused:
        return Text(f"{plural(len(refused), 'hazard')} not allowed", style="bold red")
    return Text("all allowed", style="yellow")


def _hazard(row: HazardRow) -> Text:
    line = Text(f"{clean(row.name)}: ", style="yellow")
    line.append(clean(row.why), style="default")
    if row.allowed_by:
        return line.append(f" · allowed by {clean(row.allowed_by)}", style="default")
    line.append(" · NOT ALLOWED", style="bold red")
    return line.append(f": --allow {clean(row.name)} if you mean it", style="default")


# run, resume, verify


def _run(result: RunResult, console: Console, verbose: bool) -> None:
    headline = Text(f"{result.headline}  ", style=_STYLES[result.verdict])
    facts = [
        clean(result.name),
        plural(result.records, "record"),
        *([size(result.size_bytes)] if verbose else []),
        duration(result.seconds),
    ]
    if result.command != "run":
        facts.insert(1, words_of(result.command))
    if result.resumed:
        facts.append(f"resumed {_times(result.resumed)}")
    headline.append(" · ".join(facts), style="default not bold")
    _paragraph(console, headline, indent=0)
    if result.repeated:
        _paragraph(
            console, Text(f"finished {moment(result.finished_at)}; nothing was done now"), indent=2
        )
    for check in sorted(result.checks, key=lambda each: each.verdict is not Verdict.FAILED):
        _check(console, check, verbose)
    if not result.checks:
        _labelled(console, [("checks", "none; the plan asks for none")])
    rows: list[tuple[str, Line]] = []
    if result.retries:
        rows.append(("retries", f"{number(result.retries)} after transient errors"))
    if result.losses:
        rows.append(("changed", _losses_in_short(result.losses)))
    _labelled(console, rows)
    if result.report_path:
        _whole(console, f"  {'report':<{_LABEL}}  {clean(result.report_path)}")
    if verbose:
        _ends(console, result.source, result.target)
        _fields(console, result.fields, everything=True)
        _losses(console, result.losses)
        _steps(console, result.steps)
        _versions(console, result)
    _remarks(console, result.warnings, "warning", "yellow")
    if verbose or result.warnings:
        console.print()
    _next(console, result.next)


def _check(console: Console, check: CheckResult, verbose: bool) -> None:
    name, _, vector = check.name.partition(": ")
    summary = Text()
    if vector:
        summary.append(f"{brief(vector, _LONGEST_NAME)}  ")
    if check.verdict is not Verdict.PASSED:
        summary.append(f"{_verdict_word(check.verdict)}  ", style=_STYLES[check.verdict])
    summary.append(clean(check.summary))
    row = _grid(expand=True)
    row.add_column(min_width=_LABEL, no_wrap=True)
    row.add_column(ratio=1, overflow="fold")
    width = min(console.width, _WIDEST)
    row.add_column(justify="right", max_width=max(24, width // 3), overflow="fold")
    # "all compared" beside "skipped" would be a contradiction in terms
    coverage = "" if check.verdict is Verdict.SKIPPED else clean(check.coverage)
    row.add_row(clean(_LABELS.get(name, name)), summary, Text(coverage, style="dim"))
    _put(console, row, width=width)
    if check.verdict is not Verdict.FAILED and not verbose:
        return
    rows: list[tuple[str, Line]] = []
    if check.threshold:
        rows.append(("asked", clean(check.threshold)))
    most = len(check.failures) if verbose else _FAILURES
    for place, each in enumerate(check.failures[:most]):
        rows.append(("wrong" if place == 0 else "", brief(each, 300)))
        if check.values and check.values[place]:
            rows.append(("", f"  {brief(check.values[place], 300)}"))
    if len(check.failures) > most:
        rows.append(("", f"and {plural(len(check.failures) - most, 'more', 'more')} in the report"))
    if check.advice:
        rows.append(("likely", clean(check.advice)))
    _labelled(console, rows, indent=4, width=7)


def _losses_in_short(rows: Sequence[LossRow]) -> str:
    names = [brief(row.field, _LONGEST_NAME) for row in rows]
    names = list(dict.fromkeys(names))
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lost = [row for row in rows if not row.reversible]
    return f"{text}: " + ("some of it for good; see the report" if lost else "can all be undone")


def _versions(console: Console, result: RunResult) -> None:
    _heading(console, "Evidence")
    _labelled(
        console,
        [
            ("run", f"{clean(result.run_id)}, begun {clean(result.started_at)}"),
            ("plan", f"fingerprint {result.fingerprint}"),
            ("target", f"digest {result.target_digest}"),
            ("audit", f"last hash {result.audit_head}"),
            ("versions", ", ".join(f"{clean(k)} {clean(v)}" for k, v in result.versions.items())),
        ],
    )


# inspect


def _inspect(result: InspectResult, console: Console, verbose: bool) -> None:
    title = Text(clean(result.name), style="bold").append(" · what is there", "not bold")
    _paragraph(console, title, indent=0)
    for side in result.sides:
        console.print()
        _inspected(side, console, verbose)
    if result.next:
        console.print()
        _next(console, result.next)


def _inspected(found: InspectedSide, console: Console, verbose: bool) -> None:
    about = found.about
    title = Text(clean(found.side), style="bold")
    _whole(console, title.append(f"  {clean(about.store)}  {clean(about.place)}", "not bold"))
    if about.records is None:
        _paragraph(console, clean(about.state) or "does not exist")
        _remarks(console, found.remarks, "remark", "yellow")
        return
    rows: list[tuple[str, Line]] = [("records", _records_line(found))]
    for name, text in found.vectors.items():
        rows.append(("vector", f"{clean(name)}  {clean(text)}"))
    if about.index:
        rows.append(("index", clean(about.index)))
    if found.id_kinds:
        kinds = ", ".join(
            f"{clean(kind)} ({number(count)})" for kind, count in found.id_kinds.items()
        )
        rows.append(("ids", f"{kinds} · longest {plural(found.longest_id_bytes, 'byte')}"))
    documents = f"{share(found.documents, found.looked_at) or 'none'} of the records have one"
    if found.documents:
        documents += f" · longest {plural(found.longest_document, 'character')}"
    rows.append(("documents", documents))
    if about.storage_bytes is not None:
        rows.append(("storage", size(about.storage_bytes)))
    _labelled(console, rows)
    _schema(console, found, everything=verbose)
    _remarks(console, found.remarks, "remark", "yellow")


def _records_line(found: InspectedSide) -> str:
    text = number(found.about.records) + in_namespaces(found.about.namespaces)
    if found.average_record_bytes:
        text += f" · about {size(found.average_record_bytes)} each"
    return text


def _schema(console: Console, found: InspectedSide, *, everything: bool) -> None:
    if not found.fields:
        _labelled(console, [("fields", "no metadata")])
        return
    _heading(console, f"Fields  in {plural(found.looked_at, 'record')} looked at")
    table = _grid()
    table.add_column(max_width=_LONGEST_NAME, overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = found.fields if everything else found.fields[:_FIELDS]
    for row in rows:
        distinct = "over 1,000" if row.distinct is None else number(row.distinct)
        nulls = f"{share(row.nulls, row.records)} null" if row.nulls else ""
        more = " · ".join(each for each in (nulls, clean(row.note)) if each)
        table.add_row(
            _name(row.name),
            Text(clean(", ".join(row.kinds))),
            Text(share(row.records, row.looked_at)),
            Text(f"{distinct} distinct"),
            Text(more),
        )
    _put(console, table)
    _more(console, len(found.fields) - len(rows))


# status and rollback


def _status(result: StatusResult, console: Console, verbose: bool) -> None:
    title = Text(clean(result.name), style="bold")
    title.append(" · ", "not bold")
    title.append(clean(result.phase), "bold")
    if result.running:
        title.append(", running now", "bold green")
    elif result.verdict is None and result.run_id and result.phase != "rolled back":
        title.append(", not running", "bold yellow")
    _paragraph(console, title, indent=0)
    if not result.run_id:
        _next(console, result.next)
        return
    rows: list[tuple[str, Line]] = []
    if result.verdict is not None:
        skipped = result.verdict is Verdict.SKIPPED
        word = "nothing was checked" if skipped else _verdict_word(result.verdict)
        rows.append(("verdict", Text(word, _STYLES[result.verdict])))
    rows.append(("copied", _copied(result)))
    if result.rate_per_s:
        left = f" · {clock(result.eta_s)} left" if result.eta_s is not None else ""
        rows.append(("rate", rate(result.rate_per_s) + left))
    if result.dead_letters:
        rows.append(("set aside", plural(result.dead_letters, "record")))
    if result.retries:
        rows.append(("retries", f"{number(result.retries)} after transient errors"))
    rows.append(("begun", f"{moment(result.started_at)} · at work for {duration(result.seconds)}"))
    ago = "" if result.silent_s is None else f" · {about(result.silent_s)} ago"
    rows.append(("last sign", moment(result.updated_at) + ago))
    rows.append(("run", clean(result.run_id)))
    older = [each for each in result.history if each != result.run_id]
    if older and verbose:
        rows.append(("earlier", ", ".join(clean(each) for each in older)))
    elif older:
        rows.append(("earlier", plural(len(older), "run")))
    _labelled(console, rows)
    _next(console, result.next)


def _copied(result: StatusResult) -> str:
    if result.total is None:
        text = plural(result.records, "record")
    else:
        text = f"{number(result.records)} of {plural(result.total, 'record')}"
        done = share(result.records, result.total)
        text += f" ({done})" if done else ""
    return f"{text} · {size(result.size_bytes)}"


def _rollback(result: RollbackResult, console: Console, verbose: bool) -> None:
    state = "rolled back" if result.done else "rollback, nothing has been removed yet"
    if result.command == "finalise":
        state = "finalised" if result.done else "finalise, nothing has been dropped yet"
    title = Text(clean(result.name), style="bold").append(f" · {state}", "not bold")
    _paragraph(console, title, indent=0)
    rows: list[tuple[str, Line]] = [
        ("target", f"{clean(result.target.store)}  {clean(result.target.place)}"),
        ("does" if not result.done else "did", _action(result)),
    ]
    for reason, (count, ids) in result.kept.items():
        text = f"{plural(count, 'record')}: {clean(reason)}"
        if ids:
            text += f", e.g. {shown_list(ids, most=len(ids) if verbose else 3)}"
        rows.append(("keeps", text))
    if result.cannot_tell:
        rows.append(("unseen", clean(result.cannot_tell)))
    if verbose:
        rows.append(("run", clean(result.run_id)))
    _labelled(console, rows)
    _next(console, result.next)


def _action(result: RollbackResult) -> str:
    count = plural(result.removed, "record")
    words = {
        "drop": ("drop the collection that this run created, with its ", "dropped", count),
        "delete": ("delete ", "deleted", f"{count} of this run"),
        "swap back": ("put the former collection back in place; removes ", "swapped back", count),
        "unmark": ("take this run's mark off the target; removes ", "unmarked", count),
        "nothing": ("nothing: there is nothing of this run to remove", "nothing", ""),
    }
    found = words.get(result.action)
    if result.command == "finalise" and result.action == "drop":
        found = ("drop the replaced collection for good, with its ", "dropped for good", count)
    if found is None:
        return f"{clean(result.action)}: {count}"
    if not result.done:
        return found[0] + found[2]
    return f"{found[1]}: {found[2]}" if found[2] else "nothing: there was nothing to remove"


# several sources


def _several(result: SeveralResult, console: Console, verbose: bool) -> None:
    """One line a source; of a dry run and an inspection each source's own screen."""
    for part in result.parts:
        if isinstance(part.result, DryRunResult | InspectResult):
            render(part.result, console, verbose)
            console.print()
    words = plural(len(result.parts), "source")
    if result.verdict is not None:
        run = result.verdict is Verdict.SKIPPED
        word = "DONE, nothing was checked" if run else result.verdict.value.upper()
        title = Text(f"{word}  ", style=_STYLES[result.verdict])
        facts = [clean(result.name), *([result.command] if result.command != "run" else []), words]
        title.append(" · ".join(facts), "default not bold")
    else:
        title = Text(clean(result.name), style="bold").append(
            f" · {result.command} · {words}", "not bold"
        )
    _paragraph(console, title, indent=0)
    _labelled(console, [(clean(part.source), _in_short(part.result)) for part in result.parts])
    for part in result.parts:
        if isinstance(part.result, RunResult):
            for check in part.result.checks:
                if check.verdict is Verdict.FAILED:
                    _heading(console, clean(part.source))
                    _check(console, check, verbose)
    _remarks(console, result.problems, "problem", "red")
    _next(console, result.next)


def _in_short(result: Result) -> Line:
    match result:
        case RunResult():
            line = Text(result.verdict.value, _STYLES[result.verdict])
            facts = [plural(result.records, "record"), duration(result.seconds)]
            if result.dead_letters:
                facts.append(f"{number(result.dead_letters)} set aside")
            if result.repeated:
                facts.append("nothing was done now")
            return line.append("".join(f" · {each}" for each in facts), "default not bold")
        case StatusResult():
            running = ", running now" if result.running else ""
            copied = f" · {_copied(result)}" if result.run_id else ""
            return f"{clean(result.phase)}{running}{copied}"
        case RollbackResult():
            kept = sum(count for count, _ in result.kept.values())
            return _action(result) + (f"; keeps {plural(kept, 'record')}" if kept else "")
        case DryRunResult():
            found = f"{number(result.source.records)} records"
            return f"{found} · {plural(len(result.problems), 'problem')}"
        case InspectResult():
            return ", ".join(
                f"{each.side}: {number(each.about.records)} records" for each in result.sides
            )
        case SeveralResult():
            return plural(len(result.parts), "source")


# pieces that several screens share


def _title(console: Console, name: str, state: str, description: str) -> None:
    title = Text(clean(name), style="bold").append(f" · {state}", "not bold")
    _paragraph(console, title, indent=0)
    if description:
        _paragraph(console, Text(clean(description), style="dim"), indent=0)


def _ends(console: Console, source: Side, target: Side) -> None:
    """Both ends, a line each; where a place leaves no room for it, what is there stands below."""
    sides = (("from", source), ("to", target))
    stores = max(cell_len(clean(side.store)) for _, side in sides)
    places = max(cell_len(clean(side.place)) for _, side in sides)
    facts = max(cell_len(_side_facts(side)) for _, side in sides)
    before = 2 + 4 + 2 + stores + 2
    fits = before + places + 2 + facts <= console.width
    console.print()
    for word, side in sides:
        line = Text(f"  {word:<4}", style="dim").append(
            f"  {clean(side.store):<{stores}}  {clean(side.place)}", "not dim"
        )
        if fits:
            blanks = " " * (before + places + 2 - line.cell_len)
            line.append(blanks + _side_facts(side), "not dim")
        line.rstrip()
        _whole(console, line)
        if not fits:
            _paragraph(console, _side_facts(side), indent=before)


def _side_facts(side: Side) -> str:
    facts = []
    if side.records is not None:
        facts.append(plural(side.records, "record") + in_namespaces(side.namespaces))
        if side.dim:
            facts.append(plural(side.dim, "dim"))
        if side.metric:
            facts.append(clean(side.metric))
    if side.state and (side.records is None or side.state != "exists"):
        facts.append(clean(side.state))
    if side.storage_bytes is not None:
        facts.append(size(side.storage_bytes))
    return " · ".join(facts)


def _fields(console: Console, fields: Sequence[FieldRow], *, everything: bool) -> None:
    _heading(console, "Fields")
    if not fields:
        _paragraph(console, "no metadata")
        return
    table = _grid()
    table.add_column(max_width=_LONGEST_NAME, overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    rows = fields if everything else fields[:_FIELDS]
    for row in rows:
        kinds = clean(", ".join(row.kinds))
        if row.becomes and row.name:
            kinds = f"{kinds} → {brief(row.becomes, _LONGEST_NAME)}".lstrip()
        name = _name(row.name or row.becomes)
        share_of = share(row.records, row.looked_at)
        table.add_row(name, Text(kinds), Text(share_of), Text(clean(row.note)))
    _put(console, table)
    _more(console, len(fields) - len(rows))


def _losses(console: Console, losses: Sequence[LossRow]) -> None:
    _heading(console, "Loss report")
    if not losses:
        _paragraph(console, "nothing is lost")
        return
    table = _grid()
    table.add_column(max_width=_LONGEST_NAME, overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in losses:
        undone = Text("can be undone") if row.reversible else Text("for good", style="yellow")
        count = "" if row.records is None else f"{_count_of(row)} · "
        end = Text(count).append(undone).append(f" · {clean(row.policy)}")
        table.add_row(_name(row.field), Text(clean(row.what)), end)
    _put(console, table)


def _count_of(row: LossRow) -> str:
    if row.records == row.looked_at:
        return f"all {number(row.records)}"
    return f"{number(row.records)} of {number(row.looked_at)}"


def _steps(console: Console, steps: Sequence[StepRow]) -> None:
    _heading(console, "Steps")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for row in steps:
        text = Text(clean(row.text))
        if row.hazards:
            text.append(f" [{clean(', '.join(row.hazards))}]", style="bold yellow")
        took = "" if row.seconds is None else f" {duration(row.seconds)}"
        table.add_row(str(row.number), Text(clean(row.kind)), text, Text(took))
    _put(console, table)


def _remarks(console: Console, remarks: Sequence[Remark], word: str, style: str) -> None:
    if not remarks:
        return
    console.print()
    console.print(Text(plural(len(remarks), word), style=style))
    for each in remarks:
        place = f"{clean(each.place)}: " if each.place else ""
        _paragraph(console, Text(place, style="bold").append(clean(each.what), "not bold"))
        for line in each.hint.splitlines():
            _paragraph(console, Text(clean(line), style="cyan"), indent=4)


def _next(console: Console, acts: Iterable[str]) -> None:
    """What to do next, a line each; what a command does stands in a column of its own."""
    pairs = [clean(each).partition("    ") for each in acts]
    commands = max((cell_len(command) for command, _, does in pairs if does), default=0)
    for place, (command, _, does) in enumerate(pairs):
        line = Text("next  " if place == 0 else "      ", style="bold")
        line.append(command, "not bold")
        if does:
            line.append(" " * (commands - cell_len(command)) + f"    {does.strip()}", "not bold")
        _whole(console, line)


def _hint(console: Console, hint: str) -> None:
    for line in hint.splitlines():
        _whole(console, Text(f"  {clean(line)}", style="cyan"))


def _heading(console: Console, words: str) -> None:
    console.print()
    console.print(Text(words, style="bold"))


def _labelled(
    console: Console, rows: Sequence[tuple[str, Line]], indent: int = 2, width: int = _LABEL
) -> None:
    width = max([width, *(cell_len(label) for label, _ in rows)])
    for label, text in rows:
        before = f"{' ' * indent}{label}{' ' * (width - cell_len(label))}  "
        _paragraph(console, text, first=before, indent=len(before))


def _grid(*, expand: bool = False) -> Table:
    return Table.grid(padding=(0, 2, 0, 0), expand=expand)


def _put(console: Console, table: Table, width: int | None = None) -> None:
    """Print a table, two columns in, without the blanks that fill it up."""
    options = console.options.update_width((width or console.width) - 2)
    for segments in console.render_lines(table, options, pad=False):
        line = Text("  ")
        for each in segments:
            line.append(each.text, each.style)
        line.rstrip()
        _whole(console, line)


def _paragraph(console: Console, text: Line, first: str = "", indent: int = 2) -> None:
    """Print *text* indented, broken between words only; *first* stands before its first line."""
    lines = _wrapped(Text(text) if isinstance(text, str) else text, console.width - indent)
    for place, line in enumerate(lines):
        before = first if first and place == 0 else " " * indent
        _whole(console, Text(before).append_text(line))


def _wrapped(text: Text, width: int) -> list[Text]:
    """*text* in lines of at most *width* columns; a word that is longer stays whole."""
    cuts = []
    used = 0
    for found in re.finditer(r"\s*\S+\s*", text.plain):
        word = found.group()
        if used and used + cell_len(word.rstrip()) > max(width, _NARROWEST):
            cuts.append(found.start())
            used = 0
        used += cell_len(word)
    lines = list(text.divide(cuts))
    for line in lines:
        line.rstrip()
    return lines


def _whole(console: Console, text: Line) -> None:
    """A line to copy and paste, or for a log: never broken by us."""
    console.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def _name(name: str) -> Text:
    return Text(brief(name, 120) or '""', overflow="fold")


def _more(console: Console, count: int) -> None:
    if count > 0:
        _paragraph(console, f"and {number(count)} more: --verbose shows all")


def _verdict_word(verdict: Verdict) -> str:
    return verdict.value.upper() if verdict is not Verdict.SKIPPED else "skipped"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")

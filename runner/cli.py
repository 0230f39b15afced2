"""The command line: arguments → calls → exit code.

Two console scripts: ``runner`` with all commands, and ``run``, which is ``runner run``.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from runner import __version__
from runner.errors import HazardError, PausedError, PlanError, RunnerError, StoppedError

if TYPE_CHECKING:
    from runner.api import Plan, SeveralPlan
    from runner.copy.retry import Stop

GRACE_S = 20.0
"""How long a signal waits for the batches in flight before it ends the process."""

_EXIT_CODES = """\
exit codes:
  0  done, every check passed        6  a transform failed
  1  a bug in the runner             7  a check failed
  2  the plan or the command line    8  journal, changed plan, second runner
  3  the target cannot hold it       75 paused: `runner resume` goes on
  4  a hazard was not allowed        129, 130, 143  stopped by a signal
  5  a store failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``runner`` command; its exit code."""
    return _main(sys.argv[1:] if arguments is None else list(arguments))


def main_run(arguments: Sequence[str] | None = None) -> int:
    """The ``run`` command: ``runner run``."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return _main(["run", *given])


def _main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    options.shown = False
    options.screen = _Screen(sys.stdout)
    notes: Any = _Screen(sys.stderr)
    # what a transform prints is no part of a result
    with redirect_stdout(notes), redirect_stderr(notes):
        return _act(options)


def _act(options: argparse.Namespace) -> int:
    known = _Known()
    redact = known.text
    try:
        code: int = options.command(options, known)
        return code
    except RunnerError as error:
        if options.verbose:
            import traceback

            print(redact(traceback.format_exc()), file=sys.stderr)
        _print_error(error, options)
        if isinstance(error, StoppedError):
            return 128 + (error.signal_number or signal.SIGINT)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Nothing is lost: the same command goes on or begins anew.",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
    except Exception:
        import traceback

        text = redact(traceback.format_exc())
        print(f"{text}\nThis is a bug in the runner. Please report it.", file=sys.stderr)
        return 1


class _Screen:
    """A stream whose reader may go away, as `| head` does: a migration goes on without one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write *text*, if somebody reads it."""
        with self._if_read():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Let what is written be read."""
        with self._if_read():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _if_read(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


# arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="show where errors come from")
    planned = argparse.ArgumentParser(add_help=False, parents=[common])
    planned.add_argument("plan", help="the plan, a YAML file")
    planned.add_argument(
        "--var", action="append", default=[], metavar="KEY=VALUE", help="a value for ${var:KEY}"
    )
    planned.add_argument(
        "--state-dir", metavar="DIR", help="where runs are kept (default: .runner beside the plan)"
    )
    planned.add_argument(
        "--only", default="", metavar="NAME", help="of a plan with several sources, this one"
    )
    shaped = argparse.ArgumentParser(add_help=False)
    shaped.add_argument(
        "--format",
        choices=["text", "markdown", "json"],
        default="text",
        help="how to print the result (default: text)",
    )
    valued = argparse.ArgumentParser(add_help=False)
    valued.add_argument(
        "--show-values",
        action="store_true",
        help="show values of records where they are wrong, and keep them in reports",
    )
    watched = argparse.ArgumentParser(add_help=False, parents=[shaped, valued])
    watched.add_argument("--quiet", action="store_true", help="show the result, no progress")
    confirmed = argparse.ArgumentParser(add_help=False)
    confirmed.add_argument("--yes", action="store_true", help="do not ask")

    parser = argparse.ArgumentParser(
        prog="runner",
        description=(
            "Move collections between vector databases by a reviewed plan, and prove that what "
            "arrived is what left."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"runner {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, words: str, function: Callable[..., int], *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            parents=list(parents),
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(command=function)
        return made

    run = command("run", "run a plan, or try it with --dry-run", _run, planned, watched)
    _add_run_options(run)
    lint = command("lint", "check plans offline; no store is touched", _lint, common)
    lint.add_argument("paths", nargs="+", metavar="PLAN", help="plans, or folders of plans")
    command("inspect", "show what the source holds, and the target", _inspect, planned, shaped)
    command("status", "show how far the newest run is", _status, planned, shaped)
    command("resume", "go on with an unfinished run", _resume, planned, watched)
    command("verify", "check the newest run again, from both ends", _verify, planned, watched)
    report = command("report", "show the result of the newest run", _report, planned, valued)
    report.add_argument(
        "--format",
        choices=["text", "markdown", "json", "html"],
        default="text",
        help="how to print the result (default: text)",
    )
    command("rollback", "remove what the newest run created", _rollback, planned, shaped, confirmed)
    command(
        "finalise",
        "drop the collection that a replacement kept aside",
        _finalise,
        planned,
        shaped,
        confirmed,
    )
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would happen; write nothing anywhere"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="HAZARD", help="allow a hazard by name"
    )
    parser.add_argument(
        "--restart", action="store_true", help="leave an unfinished run behind and start over"
    )
    parser.add_argument(
        "--leave-behind",
        default="",
        metavar="RUN",
        help="take RUN, which the target is marked by and whose state folder is lost, for dead",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="copy at most N records")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse to run, before anything is written, if there is any warning, such as a "
        "transform that matched nothing in the sample; with --dry-run, show them as problems",
    )


# commands


def _run(options: argparse.Namespace, known: _Known) -> int:
    plan = _load(options, known, limit=options.limit)
    if options.dry_run:
        result = plan.dry_run(options.allow, strict=options.strict, show_values=options.show_values)
        _show(result, options)
        return result.exit_code
    return _with_progress(
        plan,
        options,
        lambda tell, stop: plan.run(
            tell,
            allow=options.allow,
            restart=options.restart,
            leave_behind=options.leave_behind,
            strict=options.strict,
            stop=stop,
            show_values=options.show_values,
        ),
    )


def _resume(options: argparse.Namespace, known: _Known) -> int:
    plan = _load(options, known)
    show_values = options.show_values
    return _with_progress(
        plan, options, lambda tell, stop: plan.resume(tell, stop=stop, show_values=show_values)
    )


def _verify(options: argparse.Namespace, known: _Known) -> int:
    plan = _load(options, known)
    from runner.report.progress import ProgressDisplay

    # it only reads: Ctrl-C may end it anywhere
    console = _console(options, stderr=options.format != "text", quiet=options.quiet)
    with ProgressDisplay(console) as display:
        result = plan.verify(display.tell, show_values=options.show_values)
    _show(result, options)
    return int(result.exit_code)


def _lint(options: argparse.Namespace, known: _Known) -> int:
    del known  # lint resolves no secret
    from runner.plan.lint import lint_paths

    found = lint_paths(options.paths)
    if found.problems:
        raise PlanError.of(found.problems)
    for note in found.notes:
        print(note, file=options.screen)
    plans = "1 plan is" if len(found.files) == 1 else f"{len(found.files)} plans are"
    print(f"{plans} well-formed; nothing was connected to", file=options.screen)
    return 0


def _inspect(options: argparse.Namespace, known: _Known) -> int:
    result = _load(options, known).inspect()
    _show(result, options)
    return result.exit_code


def _status(options: argparse.Namespace, known: _Known) -> int:
    result = _load(options, known).status()
    _show(result, options)
    return result.exit_code


def _report(options: argparse.Namespace, known: _Known) -> int:
    from runner.results import SeveralResult

    result = _load(options, known).report(show_values=options.show_values)
    if options.format == "html":
        if isinstance(result, SeveralResult):
            raise PlanError(
                "the plan has several sources, each with a report of its own",
                f"choose one: --only {result.parts[0].source}",
            )
        from runner.report.html import to_html

        print(to_html(result), file=options.screen)
    else:
        _show(result, options)
    return result.exit_code


def _rollback(options: argparse.Namespace, known: _Known) -> int:
    plan = _load(options, known)
    return _confirmed("the rollback", options, plan.rollback)


def _finalise(options: argparse.Namespace, known: _Known) -> int:
    plan = _load(options, known)
    return _confirmed("dropping the replaced collection", options, plan.finalise)


def _confirmed(what: str, options: argparse.Namespace, act: Callable[..., Any]) -> int:
    """Show what a destructive command would do; do it once somebody said yes.

    A program that reads JSON or Markdown gets one document, and is not asked.
    """
    from dataclasses import replace

    if not options.yes:
        preview = act(confirmed=False)
        asks = options.format == "text" and sys.stdin.isatty() and options.screen.isatty()
        if preview.action != "nothing" and not asks:
            preview = replace(preview, exit_code=HazardError.exit_code)
        _show(preview, options)
        if preview.action == "nothing":
            return 0
        if not asks:
            raise HazardError(f"{what} was not confirmed; nothing was changed", "add --yes")
        if input("Do it? Type yes: ").strip() != "yes":
            raise HazardError(f"{what} was not confirmed; nothing was changed")
    result = act(confirmed=True)
    _show(result, options)
    return int(result.exit_code)


# around a command


class _Known:
    """Secrets that no traceback may show; filled in once a plan is loaded.

    Results and errors leave a plan without secrets.
    """

    def __init__(self) -> None:
        self._redactor: Any = None

    def learn(self, secrets: frozenset[str]) -> None:
        """These strings are secret."""
        from runner.plan.redact import Redactor

        self._redactor = Redactor(secrets)

    def text(self, text: str) -> str:
        """*text* without secrets."""
        if self._redactor is None:
            return text
        redacted: str = self._redactor.text(text)
        return redacted


def _load(
    options: argparse.Namespace, known: _Known, limit: int | None = None
) -> Plan | SeveralPlan:
    from runner.api import load_any

    variables = {}
    for each in options.var:
        key, equals, value = each.partition("=")
        if not equals:
            raise PlanError(f"--var {each}: expected KEY=VALUE")
        variables[key] = value
    plan = load_any(
        options.plan, variables, state_dir=options.state_dir, limit=limit, only=options.only
    )
    known.learn(plan.document.secrets)
    return plan


def _with_progress(
    plan: Plan | SeveralPlan, options: argparse.Namespace, act: Callable[[Any, Stop], Any]
) -> int:
    from runner.copy.retry import Stop
    from runner.report.progress import ProgressDisplay

    stop = Stop()
    shows_text = options.format == "text"
    try:
        console = _console(options, stderr=not shows_text, quiet=options.quiet)
        with _signals(stop), ProgressDisplay(console) as display:
            result = act(display.tell, stop)
    except (StoppedError, PausedError) as error:
        text = _how_to_go_on(plan, isinstance(error, PausedError))
        if isinstance(error, PausedError):
            raise PausedError(f"{error.what}\n{text}", error.hint) from error
        raise StoppedError(text, "", error.signal_number) from error
    _show(result, options)
    return int(result.exit_code)


def _how_to_go_on(plan: Plan | SeveralPlan, paused: bool) -> str:
    """Where a run that was stopped or paused stands, and the commands that follow."""
    status = plan.status()
    word = "Paused" if paused else "Stopped"
    if not status.unfinished:
        return f"{word}; nothing was written.\n  {plan.command('run')}    tries again"
    total = "" if status.total is None else f" of {status.total:,}"
    acts = [each.partition("    ") for each in status.next]
    width = max(len(command) for command, _, _ in acts)
    lines = [f"  {command:<{width}}    {does}".rstrip() for command, _, does in acts]
    first = f"{word} after {status.records:,}{total} records."
    return "\n".join([first, "Nothing is lost; the target is incomplete.", *lines])


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal stop after the batches in flight; a second at once."""
    screens = [each for each in (1, 2) if os.isatty(each)]

    def on_signal(number: int, _frame: Any) -> None:
        if stop.requested:
            os._exit(128 + number)
        stop.request(number)
        if number == signal.SIGHUP:
            # the terminal is gone, and writing to it would be an error
            for each in screens:
                os.dup2(os.open(os.devnull, os.O_WRONLY), each)
        print(
            f"\nstopping after the batches in flight (at most {GRACE_S:.0f} s; "
            "once more to stop at once) …",
            file=sys.stderr,
        )
        # the journal survives any end, so an abrupt one is safe
        timer = threading.Timer(GRACE_S, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        wanted.append(signal.SIGHUP)
    before = {each: signal.signal(each, on_signal) for each in wanted}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _console(options: argparse.Namespace, *, stderr: bool = False, quiet: bool = False) -> Any:
    from rich.console import Console

    file = None if stderr else options.screen
    return Console(file=file, stderr=stderr, quiet=quiet, highlight=False, soft_wrap=False)


def _show(result: Any, options: argparse.Namespace) -> None:
    options.shown = True
    match options.format:
        case "json":
            import json

            from runner.results import to_json

            print(json.dumps(to_json(result), indent=2, ensure_ascii=True), file=options.screen)
        case "markdown":
            from runner.report.markdown import to_markdown

            print(to_markdown(result), file=options.screen)
        case _:
            from runner.report.terminal import render

            render(result, _console(options), verbose=options.verbose)


def _print_error(error: RunnerError, options: argparse.Namespace) -> None:
    from runner.report.terminal import failure

    if getattr(options, "format", "text") == "json" and not options.shown:
        import json

        found = {
            "error": type(error).__name__,
            "what": error.what,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        print(json.dumps(found, indent=2), file=options.screen)
    failure(error, _console(options, stderr=True))


if __name__ == "__main__":
    sys.exit(main())

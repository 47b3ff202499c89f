"""What the command line prints: progress while stages work, plans, tables, and errors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from groundup import units
from groundup.errors import GroundupError
from groundup.forecast import Forecast
from groundup.plan import Plan, Step
from groundup.progress import JsonReporter, Reporter

if TYPE_CHECKING:
    from groundup.size import Proposal

COLOURS = {"fresh": "green", "stale": "yellow", "missing": "cyan", "unfinished": "magenta"}
LOG_EVERY_S = 15.0
DRAW_EVERY_S = 0.1
"""What changes more often than a bar is drawn need not be written down for it."""


def reporter_for(as_json: bool, quiet: bool) -> Reporter:
    """What a command with `--json` and `--quiet` reports to."""
    if quiet:
        return Reporter()
    return JsonReporter() if as_json else ConsoleReporter(Console(highlight=False))


class ConsoleReporter(Reporter):
    """A live bar in a terminal; without one, a line every fifteen seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage, self.doing = "", ""
        self.said_at, self.drawn_at = 0.0, 0.0
        self.bar: Progress | None = None

    def start(self, stage: str, doing: str = "") -> None:
        """Announce a stage and why it runs."""
        self.stage, self.said_at = stage, time.monotonic()
        self.console.print(f"[bold cyan]▶ {escape(stage)}[/] [dim]{escape(doing)}[/]")

    def advance(self, doing: str, done: float, total: float | None = None, **figures: Any) -> None:
        """Move the bar, or now and then print a line where there is no terminal."""
        now = time.monotonic()
        if self.console.is_terminal:
            if doing != self.doing or done == total or now - self.drawn_at >= DRAW_EVERY_S:
                self.doing, self.drawn_at = doing, now
                self._draw(doing, done, total, _shown(figures))
        elif now - self.said_at >= LOG_EVERY_S:
            self.said_at, shown = now, _shown(figures)
            share = f" {done / total:4.0%}" if total else ""
            self.console.print(f"  {escape(doing)}{share}  {escape(shown)}")

    def _draw(self, doing: str, done: float, total: float | None, shown: str) -> None:
        if self.bar is None:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(doing, total=total, shown=shown)
        task = self.bar.task_ids[0]
        if self.bar.tasks[0].description != escape(doing):
            self.bar.reset(task, description=escape(doing), total=total)
        self.bar.update(task, completed=done, total=total, shown=escape(shown))

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(f"  [dim]{escape(text)}[/]")

    def finish(self, stage: str, **figures: Any) -> None:
        """Say how a stage ended: its time and its main figures."""
        self.close()
        digest = str(figures.pop("digest", ""))[:12]
        seconds = units.show_seconds(float(figures.pop("wall_s", 0)))
        plain = {k: v for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        shown = "  ".join(f"{key} {show_figure(key, value)}" for key, value in list(plain.items())[:6])
        self.console.print(f"  [green]done[/] in {seconds}  {escape(shown)}  [dim]{digest}[/]")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _shown(figures: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {show_figure(key, value)}" for key, value in figures.items())


def show_figure(key: str, value: Any) -> str:
    """A figure as people read it; the unit follows from the end of its name."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if key.endswith("_bytes") or key == "bytes":
        return units.show_bytes(value)
    if key.endswith(("_s", "seconds", "left")) and not key.endswith("tokens_s"):
        return units.show_seconds(value)
    if key == "mfu" or key.endswith("_share"):
        return f"{value:.0%}"
    return units.show_count(value) if isinstance(value, int) or value >= 10_000 else f"{value:.4g}"


def print_error(console: Console, error: GroundupError) -> None:
    """Print a mistake without a traceback: what and where, then what to do."""
    if hasattr(error, "problems"):
        for problem in error.problems:
            _print_problem(console, problem.what, problem.where, problem.fix)
        count = len(error.problems)
        console.print(f"[bold red]{count} mistake{'s' if count != 1 else ''}[/]; nothing was run")
    else:
        _print_problem(console, error.what, error.where, error.fix)


def _print_problem(console: Console, what: str, where: str, fix: str) -> None:
    place = f"[bold]{escape(where)}[/]: " if where else ""
    console.print(f"{place}[red]{escape(what)}[/]", soft_wrap=True)
    if fix:
        console.print(f"  [green]fix:[/] {escape(fix)}", soft_wrap=True)


def print_plan(console: Console, plan: Plan) -> None:
    """Stages with their state and cost, then every stage's details."""
    table = Table(title=f"plan of {plan.recipe.name}", title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "kind", "state", "time", "CPU time", "memory", "disk", "why"):
        table.add_column(name, justify="right" if name in ("time", "CPU time", "memory", "disk") else "left")
    for step in plan.steps.values():
        table.add_row(*_row(step))
    console.print(table)
    for step in plan.steps.values():
        print_forecast(console, step)
    if any(step.forecast.estimated for step in plan.pending):
        console.print("[dim]≈ estimated from a sample of each source; exact once prepare has run[/]")


def _row(step: Step) -> list[str]:
    forecast = step.forecast
    about = "≈ " if forecast.estimated else ""

    def shown(value: float | None, show: Any) -> str:
        return f"{about}{show(value)}" if value is not None else ""

    return [
        step.stage.name,
        step.stage.kind,
        f"[{COLOURS[step.status]}]{step.status}[/]",
        shown(forecast.seconds, units.show_seconds),
        shown(forecast.cpu_s, units.show_seconds),
        shown(forecast.peak_bytes, units.show_bytes),
        shown(forecast.disk_bytes, units.show_bytes),
        escape(step.why),
    ]


def print_forecast(console: Console, step: Step) -> None:
    """What one stage will do: its figures, tables, a rendered sample, and warnings."""
    forecast: Forecast = step.forecast
    if not (forecast.lines or forecast.tables or forecast.sample or forecast.warnings):
        return
    console.print(f"\n[bold]{escape(step.stage.name)}[/]")
    width = max((len(label) for label, _ in forecast.lines), default=0)
    for label, value in forecast.lines:
        console.print(f"  [dim]{escape(label):<{width}}[/]  {escape(value)}", soft_wrap=True)
    for title, rows in forecast.tables.items():
        console.print(_table(title, rows))
    if forecast.sample:
        console.print("  [dim]a sample; trained tokens are highlighted:[/]")
        console.print(forecast.sample, soft_wrap=False)
    for warning in forecast.warnings:
        console.print(f"  [yellow]note:[/] {escape(warning)}", soft_wrap=True)


def print_proposals(console: Console, proposals: Sequence[Proposal]) -> None:
    """Sizes that the budget can train, best first, as pieces of recipe."""
    if not proposals:
        return
    console.print(f"\n[bold]for {units.show_seconds(proposals[0].seconds)} of training, best first[/]")
    for size in proposals:
        model = f"model: {{d_model: {size.d_model}, n_layers: {size.n_layers}, n_heads: {size.n_heads}, …}}"
        tokens = f"tokens: {units.show_count(size.tokens)}"
        about = f"{units.show_count(size.parameters)} parameters, {size.epochs:.2g} epochs"
        console.print(f"  {model}  {tokens}  # {about}", markup=False)
    console.print(
        "[dim]  measured speed; scaling law of Besiroglu et al. 2024, repeated data after Muennighoff et al. 2023[/]"
    )


def _table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    return table

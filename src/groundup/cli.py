"""The command line. Each command is a thin line to a module that is imported when it is used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from groundup import deploy_commands, key_commands, serve_commands, trust_commands

if TYPE_CHECKING:
    from rich.console import Console

    from groundup.progress import Reporter

app = typer.Typer(
    name="groundup",
    help="Large models, from the ground up: one recipe from raw data to a monitored service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(key_commands.app, name="keys")
app.command()(deploy_commands.deploy)
app.command()(serve_commands.serve)
app.command()(serve_commands.predict)
app.command()(trust_commands.verify)
app.command()(trust_commands.sign)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: stages.base.pretrain.tokens=2M")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, events on standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _reporter(as_json: bool, quiet: bool) -> Reporter:
    from groundup.console import reporter_for

    return reporter_for(as_json, quiet)


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=1, default=str))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write groundup.yaml.")] = Path(),
    data: Annotated[str, typer.Option(help="Your text: files, a folder or a glob.")] = "data/**/*.txt",
    kind: Annotated[str, typer.Option(help="What to make: gpt or bert.")] = "gpt",
) -> None:
    """Write a commented recipe for your own files."""
    from groundup.init import write

    path = write(folder, data, kind)
    _console().print(f"wrote {path}\nnext: groundup plan {path}")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Set = None,
    quick: Annotated[bool, typer.Option("--quick", help="Check and count, but measure nothing.")] = False,
    budget: Annotated[str | None, typer.Option(help="Propose a size for this much training time: 30min, 2h.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check everything and say what a run would do and cost, without training."""
    from groundup import plan as planning
    from groundup.artifact import Store
    from groundup.recipe import load

    effort = "quick" if quick else "measured"
    reporter = _reporter(as_json, quiet)
    try:
        made = planning.make(load(recipe, overrides or ()), Store(), effort=effort, reporter=reporter)
        proposals = _proposals(made, budget) if budget else []
    finally:
        reporter.close()
    if as_json:
        _print_json(planning.as_data(made) | {"proposals": [p.as_data() for p in proposals]})
        return
    from groundup.console import print_plan, print_proposals

    print_plan(_console(), made)
    print_proposals(_console(), proposals)


def _proposals(made: Any, budget: str) -> list[Any]:
    from groundup.errors import UserError
    from groundup.size import propose
    from groundup.units import parse_duration

    try:
        seconds = parse_duration(budget)
    except ValueError as error:
        raise UserError(f"--budget: {error}") from error
    return propose(made, seconds)


@app.command()
def run(
    recipe: RecipePath,
    stages: Annotated[list[str] | None, typer.Argument(help="Only these stages and what they need.")] = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, ignoring earlier results.")] = False,
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Let a test run programs that a model wrote (HumanEval).")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe. Run it again to continue: what is fresh is not redone."""
    import os

    from groundup.runner import run as run_recipe

    if run_generated_code:
        os.environ["GROUNDUP_RUN_GENERATED_CODE"] = "1"
    reporter = _reporter(as_json, quiet)
    try:
        artifacts = run_recipe(recipe, stages or (), overrides=overrides or (), fresh=fresh, reporter=reporter)
    finally:
        reporter.close()
    if as_json:
        _print_json({name: {"path": str(a.path), "digest": a.digest} for name, a in artifacts.items()})
    elif not quiet:
        from groundup.show import print_run

        print_run(_console(), artifacts)


@app.command()
def show(
    what: Annotated[Path, typer.Argument(help="A recipe, runs/RECIPE/STAGE, or any artefact.")],
    png: Annotated[Path | None, typer.Option(help="Also draw the curves into this PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """Show the state of a recipe, or an artefact's figures and curves."""
    from groundup import show as showing

    if as_json:
        _print_json(showing.as_data(what))
    else:
        showing.show(_console(), what, png)


@app.command()
def tune(
    recipe: RecipePath,
    overrides: Set = None,
    find_lr: Annotated[str | None, typer.Option(help="Read a learning rate for this stage off one short run.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for better settings, as the recipe's `tune:` block says; the test split is never read."""
    from groundup import tuning
    from groundup.errors import UserError
    from groundup.recipe import load

    reporter = _reporter(as_json, quiet)
    if find_lr is not None:
        finding, stage = tuning.find_lr(recipe, find_lr, overrides=overrides or (), reporter=reporter)
        _print_json(finding.as_data()) if as_json else tuning.print_finding(_console(), finding, stage)
        return
    search = load(recipe, overrides or ()).header.tune
    if search is None:
        fix = "add e.g. `tune: {stage: model, keys: {optimizer.lr: {low: 1e-5, high: 1e-3}}}`"
        raise UserError("the recipe does not say what to search for", where=str(recipe), fix=fix)
    outcome = tuning.tune(recipe, search, overrides=overrides or (), reporter=reporter)
    _print_json(outcome.as_data()) if as_json else tuning.print_outcome(_console(), outcome)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A report: runs/RECIPE/STAGE of an evaluate stage.")],
    second: Annotated[Path, typer.Argument(help="Another report, of the same test.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same intervals.")] = 0,
    as_json: Json = False,
) -> None:
    """Say whether the difference between two models on the same test is real."""
    from groundup.compare import compare as compare_reports
    from groundup.compare import print_verdict

    verdict = compare_reports(first, second, seed=seed)
    if as_json:
        _print_json(verdict.as_data())
    else:
        print_verdict(_console(), verdict)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="runs/RECIPE/STAGE, or any model directory.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens that sum to p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest one.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    chat: Annotated[str | None, typer.Option(help="Ask a chat model: a question, or a JSON list of messages.")] = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with a model, or answer in a chat, streaming whole characters."""
    from groundup.errors import UserError
    from groundup.generation import load
    from groundup.serving.sampler import sampling

    if chat is not None and prompt:
        raise UserError("both a prompt and --chat are given", fix="give one text to continue, or one chat to answer")
    text = sys.stdin.read() if prompt == "-" else prompt
    values = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "stop": tuple(stop or ())}
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    settings = sampling(values | filters)
    loaded = load(model)
    if as_json:
        _print_json((loaded.complete(text, settings) if chat is None else loaded.reply(chat, settings)).as_data())
        return
    print(text, end="", flush=True)
    for piece in loaded.stream(text, settings) if chat is None else loaded.stream_reply(chat, settings):
        print(piece, end="", flush=True)
    print()


@app.command()
def fill(
    model: Annotated[Path, typer.Argument(help="runs/RECIPE/STAGE of a masked language model.")],
    text: Annotated[str, typer.Argument(help="A text with gaps, written as the tokenizer's mask: [MASK].")],
    best: Annotated[int, typer.Option(help="How many tokens to show for each gap.")] = 5,
    as_json: Json = False,
) -> None:
    """Fill the gaps of a text with a masked language model."""
    from dataclasses import asdict

    from groundup.generation import load

    filled = load(model).fill(text, best=best)
    if as_json:
        _print_json([asdict(gap) for gap in filled])
        return
    for number, gap in enumerate(filled, start=1):
        shown = ", ".join(f"{text!r} {share:.0%}" for text, share in gap.best)
        _console().print(f"gap {number}: {shown}", markup=False)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A Hugging Face directory, or a GGUF file.")],
    to: Annotated[str | None, typer.Option("--to", help="Link it as runs/imported/NAME.")] = None,
    licence: Annotated[str, typer.Option(help="Its licence, where the files state none or another.")] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a model from elsewhere into the store, checked and with its licence."""
    from groundup.importing import import_model, print_imported

    reporter = _reporter(as_json, quiet)
    try:
        imported = import_model(path, to=to, licence=licence, reporter=reporter)
    finally:
        reporter.close()
    if as_json:
        _print_json(imported.as_data())
    elif not quiet:
        print_imported(_console(), imported)


@app.command()
def catalog(
    folder: Annotated[str | None, typer.Argument(help="models, tasks, stages, …")] = None,
    task: Annotated[str | None, typer.Option(help="Recommend for this task.")] = None,
    rows: Annotated[str | None, typer.Option(help="How many rows or documents you have: 20k.")] = None,
    memory: Annotated[str | None, typer.Option(help="How much memory you have: 8GiB.")] = None,
    as_json: Json = False,
) -> None:
    """List what a recipe can name, or recommend for a task, data and memory."""
    from groundup.recommend import listing, print_listing

    found = listing(folder, task=task, rows=rows, memory=memory)
    if as_json:
        _print_json(found)
    else:
        print_listing(_console(), found)


@app.command()
def explain(key: Annotated[str, typer.Argument(help="pretrain.tokens, models.gpt.d_model, prepare.clean, …")]) -> None:
    """Explain a key of the recipe: its meaning, type and default."""
    from groundup.schema import explain as explain_key

    _console().print(explain_key(key), markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from groundup.schema import schema as recipe_schema

    _print_json(recipe_schema())


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check Python, torch, CPU, threads, GPU, disk and extras, each with its remedy."""
    from groundup import doctor as checks

    findings = checks.examine()
    if as_json:
        _print_json([finding.as_data() for finding in findings])
    else:
        checks.print_findings(_console(), findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Show what nothing needs any more, and remove it once you agree."""
    from groundup import clean as cleaning
    from groundup.artifact import Store

    store = Store()
    waste = cleaning.find(store)
    if as_json:
        _print_json([item.as_data() for item in waste])
    else:
        cleaning.print_waste(_console(), waste)
    if waste and (yes or (not as_json and sys.stdin.isatty() and typer.confirm("remove these?"))):
        cleaning.remove(store, waste)
        if not as_json:
            _console().print("removed")


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from groundup import __version__

        print(f"groundup {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 user's mistake, 130 interrupted."""
    from groundup.errors import GroundupError

    try:
        app()
    except GroundupError as error:
        from groundup.console import print_error

        print_error(_console(stderr=True), error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)

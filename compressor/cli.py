"""The verbs, thin: parse, call, print. Imports nothing heavy: each verb loads what it needs."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor import __version__
from compressor.errors import CompressorError, GateError, UserError
from compressor.files import disk_is_full

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what draws its boxes takes longer to import than all else together
    help="Makes a transformer several times faster on the server that really runs it, and proves it.",
)
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe file (.yaml)")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the recipe")
]
Output = Annotated[Path | None, typer.Option(help="the run's folder (default: runs/<name>)")]
PROGRAM = "compressor"
COMPLETE = "_COMPRESSOR_COMPLETE"
"""The variable by which a shell asks the program how a line may go on."""
INTERRUPTED = "interrupted; the same command goes on where it stopped"


class Shell(StrEnum):
    """Shells that can complete."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def out(*values: Any) -> None:
    """Print to standard output, as rich as the terminal allows."""
    from rich.console import Console

    console = Console()
    for value in values:
        plain = isinstance(value, str)
        console.print(value, highlight=False, soft_wrap=plain, markup=not plain)


def _project(recipe: Path, sets: list[str] | None, output: Path | None, processes: int = 1) -> Any:
    from compressor.log import quiet_libraries

    quiet_libraries()
    from compressor.project import Project
    from compressor.recipe import load_recipe

    loaded = load_recipe(recipe, sets or [])
    return Project(loaded, output or Path("runs") / loaded.recipe.name, processes=processes)


@app.command()
def run(
    recipe: RecipePath,
    sets: Sets = None,
    output: Output = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="redo this stage and all after it")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="redo everything")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="processes that train together")] = 1,
) -> None:
    """Run a recipe, from training to measured and gated artifact."""
    project = _project(recipe, sets, output, nproc)
    from compressor.log import log_to
    from compressor.pipeline import run_recipe

    with ExitStack() as logs:
        log = log_to(project.output / "run.log")
        results = run_recipe(project, start, fresh, started=lambda: logs.enter_context(log))
    from compressor.report.console import summary_table
    from compressor.results import handed_over, passed

    out(summary_table(results))
    for name, value in results["task"]["reference_points"].items():
        out(f"reference point {name.replace('_', ' ')}: {results['task']['metric']} {value:.4f}")
    good = passed(results, project.recipe.gates.on_noise)
    where = handed_over(project, results)
    out(f"{'artifact' if good else 'refused'}: {where}", f"report: {project.output / 'report.html'}")
    if not good:
        missed = [
            g["name"] + (" (inconclusive)" if g["inconclusive"] else "")
            for g in results["gates"]
            if not g["passed"]
        ]
        raise GateError(f"gates not passed: {', '.join(dict.fromkeys(missed))}")


@app.command()
def plan(recipe: RecipePath, sets: Sets = None, output: Output = None) -> None:
    """Show what a run would do, offline: stages, data, time, disk."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    project = _project(recipe, sets, output)
    from compressor.plan import plan as make_plan
    from compressor.views.plan import plan_view

    out(*plan_view(make_plan(project)))


@app.command()
def validate(recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...")], sets: Sets = None) -> None:
    """Check recipes: all that is wrong in all of them, at once."""
    from compressor.recipe import load_recipe

    problems = []
    for path in recipes:
        try:
            load_recipe(path, sets or [])
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    out(f"{len(recipes)} recipe{'s' if len(recipes) > 1 else ''} valid")


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="with --table a model folder")],
    baseline: Annotated[Path | None, typer.Option(help="another ONNX file to compare with")] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, such as 1,8")] = "1",
    seq: Annotated[str, typer.Option(help="sequence lengths, such as 128,384")] = "128",
    threads: Annotated[str, typer.Option(help="threads of one inference, such as 1,2 (default: 2)")] = "",
    provider: Annotated[str, typer.Option(help="cpu, cuda or cpu,cuda")] = "cpu",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=SHAPE", help="shape of an unusual input, such as x=1x80"),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="also time the real lengths of a recipe's validation data"),
    ] = None,
    sets: Sets = None,
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="also count the examples a second of so many sessions side by side"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="timed seconds of a cell in each process (3; of a table's graphs 1.5)"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=3, help="fresh processes a cell (6; of a table's graphs 3)")
    ] = None,
    json_to: Annotated[
        Path | None, typer.Option("--json", help="also write the figures to this file")
    ] = None,
    latency_table: Annotated[
        bool, typer.Option("--table", help="what every width of a model's sub-layers costs here, instead")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="--table of dynamic int8 instead of fp32")] = False,
    budget: Annotated[float, typer.Option(min=0, help="minutes a --table may take, about")] = 3.0,
    page: Annotated[Path, typer.Option(help="the page of --table")] = Path("latency-table.html"),
    fresh: Annotated[bool, typer.Option("--fresh", help="measure a --table again that is known")] = False,
) -> None:
    """Time ONNX models, or parts of a model by width (--table)."""
    from compressor.log import quiet_libraries

    quiet_libraries()
    from compressor.recipe import load_recipe
    from compressor.views.bench import bench_models, parse_grid

    usual = (1.5, 3) if latency_table else (3.0, 6)
    seconds = usual[0] if seconds is None else seconds
    grid = parse_grid(batch, seq, threads, provider, seconds, processes or usual[1])
    if latency_table:
        if baseline or inputs or lengths or sessions:
            raise UserError(
                "--table times made-up graphs: it takes no --baseline, --input, --lengths or --sessions"
            )
        from compressor.views.latency_table import bench_table

        out(*bench_table(model, grid, "int8" if int8 else "fp32", 60 * budget, page, fresh, json_to))
        return
    if int8 or fresh:
        raise UserError("--int8 and --fresh go with --table")
    recipe = load_recipe(lengths, sets or []) if lengths else None
    out(*bench_models(model, baseline, grid, inputs or [], recipe, sessions, json_to))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="a checkpoint folder or an artifact")],
    recipe: Annotated[Path, typer.Option(help="the recipe whose task it is scored on")],
    sets: Sets = None,
) -> None:
    """Score a checkpoint folder or an artifact on its task."""
    project = _project(recipe, sets, None)
    from compressor.views.evaluate import evaluate_model

    out(evaluate_model(project, model))


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="a checkpoint folder, an artifact or an .onnx file")],
    similarity: Annotated[
        bool, typer.Option("--similarity", help="show instead how alike the layers' outputs are")
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="whose data --similarity looks at; docstrings without it")
    ] = None,
    sets: Sets = None,
) -> None:
    """Show what is left of a model, layer by layer."""
    from compressor.log import quiet_libraries

    quiet_libraries()
    if similarity:
        from compressor.views.similarity import similarity_view

        out(similarity_view(model, _project(recipe, sets, None) if recipe else None))
        return
    from compressor.views.inspect import inspect_model

    out(inspect_model(model))


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="an artifact folder")],
    public_key: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="also check that this key's owner signed it")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="sign what was verified with this private key")
    ] = None,
) -> None:
    """Check an artifact: hashes, signature, stored sample replayed."""
    from compressor.log import quiet_libraries

    quiet_libraries()
    from compressor.stages.package import verify as check

    figures = check(artifact, public_key)
    out(
        f"verified: {figures['files']} files, sample within {figures['max_abs_error']:.1e} "
        f"(allowed {figures['tolerance']:.0e}){figures['signature']}"
    )
    if sign:
        from compressor.signing import sign as make_signature

        out(f"signed: {make_signature(artifact, sign)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of finished runs")],
    output: Annotated[Path, typer.Option(help="the page to write")] = Path("comparison.html"),
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="also write tables for a pull request or a release")
    ] = None,
) -> None:
    """Put runs in one table and one accuracy-against-latency plot."""
    from compressor.views.runs import compare_runs

    out(*compare_runs(runs, output, markdown))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from compressor.views.recipes import recipes_view

    out(recipes_view())


@app.command()
def new(
    target: Annotated[Path, typer.Argument(metavar="RECIPE", help="the file to write")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="hub id or folder of the model")] = None,
    task: Annotated[str | None, typer.Option(help="its type, such as question-answering")] = None,
    method: Annotated[str | None, typer.Option(help="how to prune (default: movement)")] = None,
    train: Annotated[str | None, typer.Option(metavar="FILE", help="training data")] = None,
    validation: Annotated[str | None, typer.Option(metavar="FILE", help="data to score on")] = None,
) -> None:
    """Write a commented recipe; asks for what is not given."""
    from compressor.views.new import ask, write_new

    given = {"model": model, "task": task, "method": method, "train": train, "validation": validation}
    out(write_new(ask(given, typer.prompt), target))


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="of which shell")]) -> None:
    """Make a shell complete: eval "$(compressor completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE, shell=shell.value)
    sys.stdout.write(script + "\n")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from compressor.views.schema import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


@app.command()
def doctor() -> None:
    """Show versions, providers, instruction sets, what is missing."""
    from compressor.log import quiet_libraries

    quiet_libraries()
    from compressor.views.doctor import doctor_view

    out(*doctor_view())


def _version(value: bool) -> None:
    if value:
        out(f"compressor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    if debug:
        os.environ["COMPRESSOR_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code (see `errors`); one clear message instead of a traceback."""
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    command = typer.main.get_command(app)
    # An option of the program, not of a verb; typed behind the verb it means the same.
    arguments = sorted(sys.argv[1:] if arguments is None else arguments, key=lambda word: word != "--debug")
    try:
        code = int(command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
        return _fail(INTERRUPTED, code) if code == 130 else code
    except CompressorError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    if disk_is_full(error):
        where = getattr(error, "filename", None) or "the run"
        return _fail(f"no space left where {where} is written; make room and run the same command again", 1)
    if isinstance(error, OSError):
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    kind = {c.__name__ for c in type(error).__mro__}
    if "Abort" in kind:
        return _fail(INTERRUPTED, 130)
    if "ClickException" in kind:  # typer carries its own click, or depends on it: known by name in both cases
        message = error.format_message()  # type: ignore[attr-defined]
        return _fail(message or f"see `compressor {' '.join(sys.argv[1:2])} --help`", 2)
    first = str(error).strip().splitlines()
    return _fail(f"{type(error).__name__}: {first[0] if first else ''} (--debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    if os.environ.get("COMPRESSOR_DEBUG") and sys.exc_info()[0]:
        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n")
    return code


def entry() -> None:
    """Console script."""
    sys.exit(main())

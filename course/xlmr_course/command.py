"""`xlmr course`"""

from pathlib import Path

import click

from xlmr_course.fill import fill
from xlmr_course.judge import Verdict
from xlmr_course.notebook import write_notebooks
from xlmr_course.step import Step
from xlmr_course.steps import STEPS
from xlmr_course.workbook import Workbook

FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The folder of the course.  [default: this one]",
)
NUMPY = click.option("--numpy", "arrays", flag_value="numpy", default="torch", help="For NumPy, not for torch.")


@click.group("course", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Learn XLM-R by building it: fifteen steps, each marked at once, without a network.

    \b
    xlmr course start my-course && cd my-course
    xlmr course                     # how far you are
    xlmr course check positions     # right, or what differs
    """
    if context.invoked_subcommand is None:
        _show_progress(Path())


@command.command("start")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("xlmr-course"))
@NUMPY
def start(folder: Path, arrays: str) -> None:
    """Put the pages and the files to fill in into FOLDER. Files that are there stay as they are."""
    Workbook.start(folder, arrays)
    first = STEPS[0]
    click.echo(f"{folder} has a page and a file for each step. Read 01-{first.name}.md, fill in {first.name}.py, then:")
    click.echo(f"  cd {folder}\n  xlmr course check {first.name}")


@command.command("check")
@click.argument("name", metavar="STEP")
@click.option("--hint", "hints", flag_value=1, type=int, help="Show where it is wrong.")
@click.option("--why", "hints", flag_value=2, type=int, help="Show the cause, if it is a known one.")
@FOLDER
def check(name: str, hints: int | None, folder: Path) -> None:
    """Mark STEP: a name, or a number. Ask for --hint and --why when the symptom is not enough."""
    step = find(name)
    book = Workbook.find(folder)
    verdicts = book.check(step)
    for verdict in verdicts:
        click.echo("\n".join(lines(verdict, hints or 0)))
    if not all(verdict.ok for verdict in verdicts):
        raise SystemExit(1)
    following = next((other for other in STEPS if other.name not in book.passed()), None)
    if following is None:
        click.echo("\nThat was the last step. Try: xlmr course fill 'What are <mask> doing here?'")
    else:
        number = STEPS.index(following) + 1
        click.echo(f"\nPassed. Next: {number:02}-{following.name}.md ({following.title})")


def lines(verdict: Verdict, hints: int) -> list[str]:
    """What is shown of a verdict.

    Args:
        verdict: The verdict.
        hints: 0 for the symptom, 1 also for where, 2 also for the cause.
    """
    if verdict.ok:
        return [f"{verdict.function}: right", *([f"  {verdict.slow}"] if verdict.slow else [])]
    shown = [f"{verdict.function}: {verdict.symptom}"]
    if hints >= 1 and verdict.where:
        shown.append(f"  where: {verdict.where}")
    if hints >= 2:
        cause = f"{verdict.fault}. {verdict.why}" if verdict.fault else verdict.why
        if cause:
            shown.append(f"  why: {cause}")
    elif verdict.where and hints == 0:
        shown.append("  --hint shows where" + ("; --why shows the cause" if verdict.why else ""))
    elif verdict.fault:
        shown.append("  --why shows the cause")
    return shown


@command.command("solution")
@click.argument("name", metavar="STEP")
@NUMPY
def solution(name: str, arrays: str) -> None:
    """Print a solution of STEP. Better than being stuck; worse than one more look at the page."""
    click.echo(find(name).solution_in(arrays).read_text(encoding="utf-8"))


@command.command("fill")
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1, 20), default=3, show_default=True, help="How many fillings a mask.")
@FOLDER
def fill_masks(texts: tuple[str, ...], top_k: int, folder: Path) -> None:
    """Fill the <mask> in each TEXT with your own functions: from `ids` to `lm-head`."""
    book = Workbook.find(folder)
    for text in texts:
        click.echo(text)
        for probability, sequence in fill(book, text, top_k):
            click.echo(f"  {probability:6.1%}  {sequence}")


@command.command("notebook")
@click.argument("names", metavar="[STEP]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The folder for the notebooks.  [default: this one]",
)
@click.option(
    "--package",
    default="xlmr-core",
    show_default=True,
    help="What pip installs in the first cell, such as git+https://... with the address of the repository.",
)
@NUMPY
def notebook(names: tuple[str, ...], output: Path, package: str, arrays: str) -> None:
    """Write a notebook for each STEP, for Jupyter and Colab; by default for all steps, and the walkthrough.

    The step `walkthrough` is one sentence from text to the filled mask, with every tensor.
    """
    wanted = [name if name == "walkthrough" else find(name).name for name in names]
    everything = [*(step.name for step in STEPS), "walkthrough"]
    for file in write_notebooks(wanted or everything, output, package, arrays):
        click.echo(file)


def find(name: str) -> Step:
    """The step of this name or number."""
    for number, step in enumerate(STEPS, start=1):
        if name in (step.name, step.name.replace("-", "_"), str(number), f"{number:02}"):
            return step
    names = ", ".join(step.name for step in STEPS)
    raise click.UsageError(f"there is no step {name!r}: the steps are {names}")


def _show_progress(folder: Path) -> None:
    try:
        passed = Workbook.find(folder).passed()
    except ValueError:
        click.echo("Learn XLM-R by building it. `xlmr course start` makes a folder for it:\n")
        passed = {}
    for number, step in enumerate(STEPS, start=1):
        state = f"passed {passed[step.name]}" if step.name in passed else ("bonus" if step.bonus else "")
        click.echo(f"{number:3}  {step.name:14} {step.title:45} {state}".rstrip())

"""The command line: one command a stage, the recipes and the planner."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from nfm.config import load_params
from nfm.errors import InputError
from nfm.memory import keep_freed_memory
from nfm.recipes import load_recipe, recipe_names, recipe_text, smoke_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Normalized Flow Matching: students distilled from the coupling of a normalizing flow. "
    "Each stage reads its sections of params.yaml in the current folder and the outputs of the "
    "stages before it; `dvc repro` and the Prefect flow run them in order.",
)

Seed = Annotated[int, typer.Option(help="Which seed's teacher, coupling or student.", min=0)]
CouplingName = Annotated[str, typer.Option(help="Name of a section under `coupling`.")]


@app.command()
def prepare() -> None:
    """Data set to shuffled uint8 shards with a manifest, train and test."""
    from nfm.stages.prepare import prepare as stage

    stage(Path.cwd(), load_params(Path("params.yaml")))


@app.command()
def features() -> None:
    """Train the classifier whose features the Fréchet distance is measured on."""
    from nfm.stages.features import features as stage

    _with_processes()
    stage(Path.cwd(), load_params(Path("params.yaml")))


@app.command()
def reference() -> None:
    """Measure the train and the test images, which samples are held against."""
    from nfm.stages.reference import reference as stage

    stage(Path.cwd(), load_params(Path("params.yaml")))


@app.command()
def teacher(seed: Seed = 0) -> None:
    """Train the TarFlow teacher by maximum likelihood."""
    from nfm.stages.teacher import teacher as stage

    _with_processes()
    stage(Path.cwd(), load_params(Path("params.yaml")), seed)


@app.command()
def couple(
    coupling: CouplingName,
    seed: Seed = 0,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only encode the I-th of N shares of a teacher's shards, counted from 0; the same "
            "command without it encodes what is missing and goes on.",
        ),
    ] = None,
) -> None:
    """Prepare one coupling: fit its potentials, or read noise off the teacher."""
    from nfm.stages.couple import couple as stage
    from nfm.stages.couple import encode_share

    params = _params_with(coupling)
    if share is not None:
        encode_share(Path.cwd(), params, coupling, seed, *_share(share))
        return
    if params.coupling[coupling].kind == "teacher":
        _with_processes()
    stage(Path.cwd(), params, coupling, seed)


@app.command()
def student(coupling: CouplingName, seed: Seed = 0) -> None:
    """Train the SiT student by flow matching on the pairs of one coupling."""
    from nfm.stages.student import student as stage

    params = _params_with(coupling)
    _with_processes()
    stage(Path.cwd(), params, coupling, seed)


@app.command()
def evaluate(
    coupling: Annotated[str | None, typer.Option(help="Whose student is measured.")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Measure the teacher.")] = False,
    seed: Seed = 0,
) -> None:
    """Sample and measure one student, or the teacher."""
    if teacher == (coupling is not None):
        raise InputError("evaluate needs either --coupling NAME or --teacher, and not both")
    _with_processes()
    from nfm.stages.evaluate import evaluate_student, evaluate_teacher

    if coupling is None:
        evaluate_teacher(Path.cwd(), load_params(Path("params.yaml")), seed)
    else:
        evaluate_student(Path.cwd(), _params_with(coupling), coupling, seed)


@app.command()
def report() -> None:
    """Summary, tables, figures and the HTML report of all seeds and couplings."""
    from nfm.stages.report import report as stage

    stage(Path.cwd(), load_params(Path("params.yaml")))


@app.command()
def fetch() -> None:
    """Bring the Inception weights that evaluate.inception names, checked; stages never use the network."""
    from nfm.build.fetch import fetch_inception

    typer.echo(fetch_inception(load_params(Path("params.yaml")).evaluate.inception, Path.cwd()))


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="Leave out to list the recipes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace uncommitted changes.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Shrink every size, to see whether it runs.")] = False,
) -> None:
    """Write a recipe, a complete params file, to params.yaml."""
    if name is None:
        typer.echo("\n".join(recipe_names()))
        return
    from nfm.artifacts import atomic_path

    text, path = smoke_text(name) if smoke else recipe_text(name), Path("params.yaml")
    if path.exists() and not force and not _replaceable(path):
        raise InputError(
            "params.yaml holds changes that are in no commit and no recipe; commit or move it, or add --force"
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    shrunk = ", every size shrunk" if smoke else ""
    typer.echo(f"params.yaml is now the recipe {name}{shrunk}; run it with `dvc repro`")


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name; leave out for params.yaml.")] = None,
    gpu: Annotated[str, typer.Option(help="Which GPU's hours: a100, h100 or h200.")] = "h100",
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that is reached.", min=0.01, max=1)] = 0.4,
    images: Annotated[int | None, typer.Option(help="Images of the data set, where it is not there.", min=4)] = None,
    classes: Annotated[int | None, typer.Option(help="Its classes, likewise.", min=0)] = None,
    disk: Annotated[float, typer.Option(help="GB that one seed's stored pairs may take.", min=0)] = 100.0,
    measure: Annotated[bool, typer.Option("--measure", help="Time each unit of work here, on random images.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write all figures to this file.")] = None,
) -> None:
    """Forecast parameters, FLOPs, hours and bytes of a params file, before anything runs."""
    from nfm.plan.command import command

    params = load_params(Path("params.yaml")) if recipe is None else load_recipe(recipe)
    typer.echo(
        command(
            params,
            Path.cwd(),
            gpu_name=gpu,
            utilisation=utilisation,
            images=images,
            classes=classes,
            disk=1e9 * disk,
            measured=measure,
            file=json,
        )
    )


ModelName = Annotated[
    str,
    typer.Option(help="models:/NAME@ALIAS or models:/NAME/NUMBER in MLflow's registry, or a student's file of DVC's."),
]


@app.command()
def sample(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The PNG file to write; a text chunk in it says what it shows.")],
    label: Annotated[
        int | None, typer.Option(help="The class; leave out for images of no class in particular.")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of images; their seeds count up.")] = 64,
    nfe: Annotated[int, typer.Option(help="Evaluations of the network for an image.")] = 2,
    solver: Annotated[str, typer.Option(help="euler, heun or midpoint.")] = "euler",
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance; 1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the first image's noise.")] = 0,
) -> None:
    """Draw images by a student, a published one or a file, into a grid."""
    from nfm.serving.command import sample as command
    from nfm.serving.requests import Request

    typer.echo(command(model, Request(seed, nfe, solver, guidance, label), count, out, Path.cwd()))


@app.command()
def export(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The file to write, such as student.pt2.")],
) -> None:
    """Write a student's velocity network as a program that runs without nfm (torch.export)."""
    from nfm.serving.export import export as command

    typer.echo(command(model, out, Path.cwd()))


@app.command()
def promote(
    version: Annotated[str | None, typer.Argument(help="Its number or alias; leave out for the challenger.")] = None,
    model: Annotated[str | None, typer.Option(help="Leave out for that of the data of params.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it champion unjudged.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why, with --force; it is recorded.")] = None,
) -> None:
    """Judge a published version against the champion, and make it champion if it is better; exit status 1 if not."""
    from nfm.promotion.command import promote_command
    from nfm.registry.client import model_name

    params = load_params(Path("params.yaml"))
    name = model or model_name(params.data.kind)
    entry = promote_command(Path.cwd(), params, name, version, force, reason)
    typer.echo(f"{entry.model}: {entry.action}: {entry.reason}")
    if entry.action == "refused":
        sys.exit(1)


@app.command()
def rollback(
    model: Annotated[str | None, typer.Option(help="Leave out for that of the data of params.yaml.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; it is recorded.")] = None,
) -> None:
    """Make the previous champion champion again."""
    from nfm.promotion.command import rollback_command
    from nfm.registry.client import model_name

    name = model or model_name(load_params(Path("params.yaml")).data.kind)
    entry = rollback_command(Path.cwd(), name, reason)
    typer.echo(f"{entry.model}: version {entry.version} is champion again, after version {entry.champion}")


@app.command()
def compare(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|EXPERIMENT|GIT REV|FILE]...",
            help="MLflow runs by id or name, an experiment (its newest flow run), git revisions, summary files; by "
            "default the folder's results and, where they differ, those of HEAD.",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="text, csv, markdown or html; by default as --output ends.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Table of runs or revisions: FD by NFE, kappa, cost, and what exceeds the noise of seeds."""
    from nfm.comparison.command import command

    typer.echo(command(what or [], Path.cwd(), kind=format, output=output))


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="A git commit, a stage or its hash, a Prefect or MLflow run's id, models:/NAME@ALIAS, or a file.",
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print the chain commit, DVC hashes, Prefect flow run, MLflow run, model, and whether it can be restored."""
    from nfm.tracing.command import trace as command

    typer.echo(command(what, Path.cwd(), json=json))


@app.command()
def restore(
    run: Annotated[str, typer.Argument(help="Id or name of an MLflow run, or id of a Prefect flow run.")],
) -> None:
    """Bring a run's params and artifacts back from DVC, to the bit, in a workspace of their own."""
    from nfm.tracing.command import restore as command

    sys.exit(command(run, Path.cwd()))


def main() -> None:
    """Runs the command line; bad input is one sentence on stderr and exit status 2."""
    keep_freed_memory()
    try:
        _recorded(app)()
    except SystemExit as end:
        # A process that fails keeps its connections to its end, or the others may be seen to fail first.
        if not end.code:
            _leave_group()
        raise
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(
            f"no space is left on the device while writing {error.filename or 'an output'}; "
            "free some and run the same command again"
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _leave_group() -> None:
    """Ends the process group that a training under `accelerate launch` has joined."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fail(sentence: str) -> None:
    if file := os.environ.get("NFM_REFUSAL"):  # whoever launched this process says it, see `nfm.train.launch`
        Path(file).write_text(sentence)
    else:
        print(f"nfm: {sentence}", file=sys.stderr)
    sys.exit(2)


def _params_with(coupling: str):
    from nfm.config import nearest

    params = load_params(Path("params.yaml"))
    if coupling not in params.coupling:
        raise InputError(
            f"--coupling is {coupling!r}, which is no section under `coupling` in params.yaml"
            f"{nearest(coupling, params.coupling)}"
        )
    return params


def _share(text: str) -> tuple[int, int]:
    """Parses I/N."""
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--share is {text!r}, expected I/N with I from 0 to N - 1, such as 0/8")
    return int(index), int(count)


def _replaceable(path: Path) -> bool:
    """Whether the file is a recipe, or as committed, so that nothing is lost with it."""
    text = path.read_text()
    if any(text in (recipe_text(name), smoke_text(name)) for name in recipe_names()):
        return True
    status = ["git", "status", "--porcelain", "--", str(path)]
    answer = subprocess.run(status, capture_output=True, text=True, check=False)
    return answer.returncode == 0 and not answer.stdout.strip()


def _recorded(command: Callable[[], None]) -> Callable[[], None]:
    """Returns a command that tells torch's launcher, where there is one, what it failed of, and not only that."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)


def _with_processes() -> None:
    """Goes on under `accelerate launch` where the machine or accelerate's config has several devices.

    So `python -m nfm teacher`, the command in dvc.yaml, is the same for one CPU, one GPU and many.
    """
    if "LOCAL_RANK" in os.environ:
        return
    from nfm.train.launch import process_count, relaunch

    if process_count() > 1:
        sys.exit(relaunch(sys.argv[1:]))

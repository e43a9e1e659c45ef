"""What runs and the experiment say of themselves in MLflow's UI, so that a reader needs no code."""

EXPERIMENT_NOTE = """\
Normalized Flow Matching: fast image generators (students), distilled from the coupling of a normalizing flow (teacher).

- A **flow run** (a name of two words, such as `quick-fox`) stands over one run for every stage that it executed. \
Its tags `made_by.STAGE` name the run that made each stage's outputs, also where nothing had to run.
- To **compare** couplings: select their `evaluate@COUPLING-SEED` runs and press Compare. The metric `fd` has the \
number of network evaluations (NFE) as its step, so the curves overlay; low is good. For parallel coordinates take the \
params `coupling`, `noise_std`, `draws`, `nfe` and the metrics `at_nfe/fd_05` and the like.
- **Pictures** have the same names in every run: `images/samples.png`, `images/fd.png`, `report.html`.
- **Identity**: `git.commit`, `dvc.stage`, `dvc.stage_hash`, `data.hash`, `prefect.flow_run_id`; the data sets and the \
coupling are the run's inputs. `python -m nfm trace RUN` prints the chain, `python -m nfm compare` a table of runs.
"""
FLOW_NOTE = (
    "A flow run of Prefect over the stages of dvc.yaml. Below it are the runs of the stages that it executed; the tags "
    "`made_by.STAGE` name the run that made each stage's outputs, `outcome.STAGE` how it came up to date. "
    "`report.html` is the report with what changed since the last champion; `results/summary.json` is an artifact of "
    "`made_by.report`."
)
STAGES = {
    "prepare": "The data set, shuffled and written as shards with a manifest.",
    "features": "The classifier whose features the Fréchet distance is measured on. Metrics: its loss and accuracy.",
    "reference": "The features of the real images, measured once; evaluations are held against them.",
    "teacher": "TarFlow, the normalizing flow, trained by maximum likelihood. Step: optimizer updates.",
    "couple": "How data and noise are paired{for_item}, prepared from the data alone.",
    "couple-teacher": "Noise read off the teacher{for_item}: the coupling that students are distilled from. "
    "`images/card.png` shows whether the noise is normal.",
    "couple-one-step": "The teacher's pairs once more{for_item}, for students that take one step.",
    "student": "A flow-matching network, trained on the pairs of the coupling {coupling}, seed {seed}. Step: optimizer "
    "updates. The student is logged as a model.",
    "evaluate": "Samples of the student of the coupling {coupling}, seed {seed}, measured. The step of `fd`, `kid`, "
    "`precision` and the like is the number of network evaluations (NFE); a low `fd` is good. `images/samples.png` "
    "shows samples from the same noise in every run.",
    "evaluate-teacher": "The teacher's own samples{for_item}, raw and denoised, and its likelihood on held-out images.",
    "report": "The summary of all couplings and seeds: `summary.json`, `fd.csv`, `seconds.csv`, `report.html`, "
    "`images/fd.png`.",
}


def note_of(address: str) -> str:
    """Returns what the run of a stage is, in words.

    Arguments:
        address: The stage's name in dvc.yaml, such as "student@teacher-0".
    """
    stage, _, item = address.partition("@")
    coupling, _, seed = item.rpartition("-")
    words = [f"coupling {coupling}"] * bool(coupling) + [f"seed {seed}"] * bool(item)
    for_item = f" ({', '.join(words)})" if words else ""
    text = STAGES.get(stage, "A stage of dvc.yaml.")
    return text.format(coupling=coupling, seed=seed, for_item=for_item)

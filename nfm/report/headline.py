"""The headline: what the summary says, in two sentences whose numbers are computed."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from nfm.figures import label, several_steps

FM, NFM = "independent", "teacher"
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

Means = Mapping[str, Mapping[int, float]]  # coupling -> NFE -> mean of seeds


def headline(summary: Mapping[str, Any]) -> str:
    """Returns two sentences: NFM against plain flow matching at few NFE, and who is best at many.

    NFM is the coupling named "teacher", plain flow matching "independent". Where one of them is not
    in the summary, the best of the others stands in. Where NFM is behind, it says so. Students that
    take a single step are no part of it.

    Arguments:
        summary: What results/summary.json holds.
    """
    return " ".join(sentences(summary))


def sentences(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the headline's two sentences one by one."""
    fd = several_steps(summary["fd"])
    means = {c: {int(n): fmean(v) for n, v in values.items()} for c, values in fd.items()}
    shared = sorted(set.intersection(*(set(values) for values in means.values()))) if means else []
    if not shared:
        raise ValueError(f"fd holds {list(means)}, expected at least one coupling, and an NFE that all have measured")
    few, name = shared[:2], metric(summary)
    if NFM not in means or len(means) == 1:
        return _without_nfm(means, few, name, summary), _at_many(means, shared, None)
    rival = FM if FM in means else min((c for c in means if c != NFM), key=lambda c: means[c][few[0]])
    return _at_few(means, rival, few, name, summary), _at_many(means, shared, NFM)


def metric(summary: Mapping[str, Any]) -> str:
    """Returns "FID" if the distance is on Inception's features, "FD" if it is on others."""
    return "FID" if "inception" in summary["features"].lower() else "FD"


def full_metric(summary: Mapping[str, Any], *, train: bool = False) -> str:
    """Returns the distance's name with features and count, where the summary has it: "FD (fd_digits_1k)"."""
    return f"{metric(summary)} ({summary['metric']}{'_train' * train})" if "metric" in summary else metric(summary)


def _at_few(means: Means, rival: str, few: Sequence[int], name: str, summary: Mapping[str, Any]) -> str:
    ours, theirs = ([f"{means[c][n]:.2f}" for n in few] for c in (NFM, rival))
    wins = [float(a) < float(b) for a, b in zip(ours, theirs, strict=True)]
    other = "plain flow matching (FM)" if rival == FM else label(rival)
    start = f"On {summary['dataset']}, NFM"
    if all(wins):
        return f"{start} reaches {name} {_with(ours, few)}, where {other} has {_and(theirs)}{_seeds(summary)}."
    if not any(wins):
        return f"{start} is not ahead of {other}: {name} {_with(ours, few)} against {_and(theirs)}{_seeds(summary)}."
    return f"{start} has {name} {_with(ours, few)}, {other} has {_and(theirs)}{_seeds(summary)}."


def _without_nfm(means: Means, few: Sequence[int], name: str, summary: Mapping[str, Any]) -> str:
    best = min(means, key=lambda c: means[c][few[0]])
    values = [f"{means[best][n]:.2f}" for n in few]
    of = f", the best of {_number(len(means))} couplings at NFE {few[0]}," if len(means) > 1 else ""
    return f"On {summary['dataset']}, {label(best)}{of} reaches {name} {_with(values, few)}{_seeds(summary)}."


def _at_many(means: Means, shared: Sequence[int], ours: str | None) -> str:
    """Says where ours is best, and who is at the most evaluations; ours None: only the latter."""
    last, count = shared[-1], _number(len(means))
    best = min(means, key=lambda c: means[c][last])
    value = f"{means[best][last]:.2f}"
    if len(means) == 1:
        return f"At NFE {last} it reaches {value}."
    if ours is None:
        return f"At NFE {last} {label(best)} is best with {value}."
    leads = [n for n in shared if means[ours][n] == min(values[n] for values in means.values())]
    if leads == list(shared):
        return f"It is the best of {count} couplings at every NFE measured, with {value} at NFE {last}."
    where = f"is the best of {count} couplings at NFE {_runs(leads, shared)}" if leads else "is best at no NFE measured"
    if best == ours:
        return f"It {where}, with {value} at the last."
    return (
        f"It {where}; at NFE {last} {label(best)} is best with {value}, and NFM is behind with {means[ours][last]:.2f}."
    )


def _runs(leads: Sequence[int], shared: Sequence[int]) -> str:
    """Writes NFEs, three and more in a row as a range of those measured: "1 to 3 and 31"."""
    runs: list[list[int]] = []
    for nfe in leads:
        if runs and shared.index(nfe) == shared.index(runs[-1][-1]) + 1:
            runs[-1].append(nfe)
        else:
            runs.append([nfe])
    parts = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(nfe) for nfe in run] for run in runs]
    return _and([part for run in parts for part in run])


def _with(values: Sequence[str], few: Sequence[int]) -> str:
    parts = [f"{value} with {_number(n)}" for value, n in zip(values, few, strict=True)]
    parts[0] += f" network evaluation{'s' * (few[0] > 1)}"
    return _and(parts)


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _number(value: int) -> str:
    return NUMBERS.get(value, str(value))


def _seeds(summary: Mapping[str, Any]) -> str:
    count = max(len(values) for by_nfe in summary["fd"].values() for values in by_nfe.values())
    return f" (means of {_number(count)} seeds)" if count > 1 else " (one seed)"

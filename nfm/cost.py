"""What stages and students cost: seconds, money by a table of rates, energy; a student with its share of teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

HOUR = 3600.0

Records = Mapping[str, Mapping[str, Any]]  # what stages have left, by their name in dvc.yaml


@dataclass(frozen=True)
class Rates:
    """Prices of machine time.

    Attributes:
        cpu_hour: Of one core for an hour; None where it is not known.
        gpu_hour: Of a GPU for an hour, by a part of its name; the longest that fits counts.
        currency: Of both.
    """

    cpu_hour: float | None
    gpu_hour: Mapping[str, float]
    currency: str


def price(record: Mapping[str, Any], rates: Rates) -> float | None:
    """Returns what a stage's time cost; None where its device has no rate."""
    device, seconds = str(record.get("device", "")), record.get("seconds")
    if seconds is None:
        return None
    if device == "cpu":
        return None if rates.cpu_hour is None else seconds / HOUR * rates.cpu_hour * record.get("threads", 1)
    fitting = [word for word in rates.gpu_hour if word.lower() in device.lower()]
    return seconds / HOUR * rates.gpu_hour[max(fitting, key=len)] if fitting else None


def of_stages(records: Records, rates: Rates) -> dict[str, dict[str, Any]]:
    """Returns by stage its seconds, device, peak memory (MB) and, where known, money and joules."""
    found = {}
    for stage, record in records.items():
        if "seconds" not in record:
            continue
        found[stage] = {key: record[key] for key in ("seconds", "device", "peak_memory_mb") if key in record}
        if (money := price(record, rates)) is not None:
            found[stage]["money"] = money
        if joules := record.get("joules"):
            found[stage]["joules"] = sum(joules.values())
    return found


def of_students(
    stages: Mapping[str, Mapping[str, Any]],
    couplings: Mapping[str, str],
    seeds: Sequence[int],
    rates: Rates,
) -> dict[str, dict[str, Any]]:
    """Returns by coupling what one student cost, mean of seeds, with its share of what was made before it.

    A teacher and its coupling are charged in equal parts to the students of their seed that learn from them.

    Arguments:
        stages: From `of_stages`.
        couplings: Kind by name.
        seeds: All seeds.
        rates: Names the currency.

    Returns:
        "seconds" in all and "before_seconds" of it for teacher and coupling; "money" and "joules" where every stage
        behind the student has them. No entry for a coupling one of whose stages left no record.
    """
    taught = [name for name, kind in couplings.items() if kind in ("teacher", "inverse-regression")]
    found = {}
    for name, kind in couplings.items():
        parts = [part for seed in seeds for part in _parts(name, kind, seed, len(taught))]
        if any(stage not in stages for stage, _, _ in parts):
            continue
        cost: dict[str, Any] = {"before_seconds": 0.0, "currency": rates.currency}
        for key in ("seconds", "money", "joules"):
            if all(key in stages[stage] for stage, _, _ in parts):
                cost[key] = sum(share * stages[stage][key] for stage, share, _ in parts) / len(seeds)
        before = [share * stages[stage]["seconds"] for stage, share, is_before in parts if is_before]
        cost["before_seconds"] = sum(before) / len(seeds)
        found[name] = cost
    return found


def pays_after(before_seconds: float, teacher_seconds: float, student_seconds: float) -> float | None:
    r"""Returns after how many samples a student has paid for its teacher and their coupling.

    .. math:: n = \frac{c_{before}}{s_{teacher} - s_{student}}

    Arguments:
        before_seconds: The student's share of teacher and coupling.
        teacher_seconds: Of one sample of the teacher.
        student_seconds: Of one sample of the student.

    Returns:
        None for never: a sample of the student takes as long as one of the teacher, or longer.
    """
    saved = teacher_seconds - student_seconds
    return before_seconds / saved if saved > 0 else None


def enough(fd: Mapping[str, Sequence[float]], wanted: float) -> str:
    """Returns the fewest NFE at which a student is as good as wanted; where it never is, those at which it is best."""
    means = {nfe: fmean(values) for nfe, values in fd.items()}
    reaching = [nfe for nfe, mean in means.items() if mean <= wanted]
    return min(reaching, key=int) if reaching else min(means, key=means.__getitem__)


def _parts(name: str, kind: str, seed: int, taught: int) -> list[tuple[str, float, bool]]:
    """Returns the stages behind a student: name in dvc.yaml, its share, whether it comes before the student."""
    item = f"{name}-{seed}"
    teacher = [(f"teacher@{seed}", 1 / taught, True), (f"couple-teacher@{seed}", 1 / taught, True)] if taught else []
    before = {
        "teacher": teacher,
        "inverse-regression": [*teacher, (f"couple-one-step@{item}", 1.0, True)],
    }.get(kind, [(f"couple@{item}", 1.0, True)])
    return [*before, (f"student@{item}", 1.0, False)]

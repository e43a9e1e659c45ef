"""The report as one HTML file: no script, no network, styles and images inside."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from nfm.artifacts import atomic_path
from nfm.figures import SAMPLES, Figure, label
from nfm.report.cost import cost_by_student
from nfm.report.headline import full_metric, metric, sentences
from nfm.report.origin import stages_table
from nfm.report.pictures import Samples, data_uri, picture, strips
from nfm.report.tables import Values, by_nfe, cost_by_coupling, cost_by_stage, duration, facts

KINDS = {".svg": "svg+xml", ".png": "png"}
MEASURES = {  # name -> caption, digits, which end is good
    "fd_train": ("{metric} to the training images; low is good", 2, min),
    "kid": ("KID × 1000{name}, kernel distance on the same features; low is good", 2, min),
    "precision": ("Precision{name}, the share of samples near a real image; high is good", 3, max),
    "recall": ("Recall{name}, the share of real images near a sample; high is good", 3, max),
    "accuracy": ("Accuracy, the share of samples that the classifier gives the class asked for", 3, max),
}


# Where a page is completed by what only a registry knows, see `nfm.report.complete`: links of the navigation, a section
# after the comparison, and lines before the table of stages.
LINK, CHAMPION, CHAIN = "<!-- link -->", "<!-- champion -->", "<!-- chain -->"


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        id: Its anchor.
        link: What the navigation calls it.
        title: Its heading, as HTML.
        content: As HTML; the section is left out where it is empty.
    """

    id: str
    link: str
    title: str
    content: str

    @property
    def html(self) -> str:
        """The section."""
        return f'<section id="{self.id}"><h2>{self.title}</h2>{self.content}</section>' if self.content else ""

    @property
    def entry(self) -> str:
        """Its entry in the navigation."""
        return f'<li><a href="#{self.id}">{self.link}</a></li>' if self.content else ""


def render(
    summary: Mapping[str, Any],
    out: Path,
    *,
    samples: Samples,
    figures: Mapping[str, Figure],
    heun: Collection[int],
    records: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the page: headline, picture, comparison, diagnostics, where it is from, what it cost.

    Arguments:
        summary: What results/summary.json holds; sections that it lacks are left out.
        out: The file to write.
        samples: Pixels as uint8, with shape (K, C, H, W), by coupling and NFE.
        figures: Any of "fd", "paths", "noise", "cost" and "payback".
        heun: NFEs that Heun sampled; Euler sampled the others.
        records: What the stages have left, by their name in dvc.yaml.
    """
    first, second = sentences(summary)
    name = metric(summary)
    comparison = Section("distance", name, f"{name} by network evaluations", _distance(summary, figures, heun))
    sections = [
        Section("samples", "Samples", "Samples at every NFE", _all_samples(samples)),
        Section("paths", "Paths", "How straight the paths are", _paths(summary, figures)),
        Section("teacher", "Teacher", "The teacher and its coupling", _teacher(summary, figures)),
        Section("measures", "Measures", "Other measures", _measures(summary, heun)),
        Section("origin", "Origin", "Where it is from", _origin(records or {})),
        Section("cost", "Cost", "What it cost", _cost(summary, figures)),
        Section("method", "Method", "How it was measured", _method(summary, heun)),
    ]
    links = comparison.entry + LINK + "".join(section.entry for section in sections)
    title = f"Normalized Flow Matching on {escape(summary['dataset'])}"
    body = (
        f'<a class="skip" href="#main">Skip to the results</a>'
        f'<header><p class="kicker">{title}</p><nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main id="main" tabindex="-1"><h1>{escape(first)}</h1><p class="lead">{escape(second)}</p>'
        f"{_picture(samples)}{comparison.html}{CHAMPION}{''.join(section.html for section in sections)}</main>"
    )
    style = (resources.files("nfm.report") / "style.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _picture(samples: Samples) -> str:
    if not samples:
        return ""
    return (
        f"<figure>{picture(samples)}<figcaption>Samples of the first seed's students. NFE is the number of network "
        "evaluations that a sample took. Every cell starts from the same noise, and label if any, so columns differ by "
        "the solver's effort and rows by nothing but the coupling that the student was trained "
        "with.</figcaption></figure>"
    )


def _distance(summary: Mapping[str, Any], figures: Mapping[str, Figure], heun: Collection[int]) -> str:
    count = _seeds(summary)
    shown = f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed, so no spread"
    floor = f" The training images themselves have {summary['floor']:.2f}." if summary.get("floor") else ""
    caption = (
        f"{escape(full_metric(summary))} to the test images, {shown}; low is good, the best of a row is bold.{floor}"
    )
    groups = _by_solver(summary["fd"], heun, summary.get("fd_heun_5", {}))
    text = "The line is the mean of seeds, the shade one standard deviation. " if count > 1 else ""
    text += "Both axes are logarithmic: equal distances are equal ratios."
    return f'<div class="pair">{by_nfe(groups, caption)}{_figure(figures.get("fd"), text)}</div>'


def _by_solver(values: Values, heun: Collection[int], heun_5: Mapping[str, Sequence[float]]) -> dict[str, Values]:
    """Splits measures into Euler's and Heun's; NFE 5 by Heun, where it was measured, leads the latter."""
    split: dict[str, dict[str, dict[str, Sequence[float]]]] = {"Euler": {}, "Heun": {}}
    for name, measured in values.items():
        rows = sorted(measured, key=int)
        split["Euler"][name] = {nfe: measured[nfe] for nfe in rows if int(nfe) not in heun}
        five = {"5": heun_5[name]} if name in heun_5 else {}
        split["Heun"][name] = five | {nfe: measured[nfe] for nfe in rows if int(nfe) in heun}
    return {solver: v for solver, v in split.items() if any(v.values())}


def _all_samples(samples: Samples) -> str:
    if not samples:
        return ""
    text = "All samples that were kept, one of each class where there are classes; the number beside a row is its NFE."
    return f"<figure>{strips(samples)}<figcaption>{text}</figcaption></figure>"


def _paths(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    kappa = {c: {"κ": v} for c, v in summary.get("curvature", {}).items()}
    if not kappa and "paths" not in figures:
        return ""
    caption = "Curvature κ of the sampled paths, a share of their squared length; 0 is straight."
    prose = (
        "<p>A student whose paths are straight can go from noise to image in one step; every bend costs steps or "
        "quality. Read κ beside the distance: a poor teacher also gives straight paths, to poor images.</p>"
    )
    text = "The same noise (rings) and what it becomes (dots), in one random plane shared by all couplings."
    left = by_nfe({"": kappa}, caption, digits=3) + prose if kappa else ""
    return f'<div class="pair"><div>{left}</div>{_figure(figures.get("paths"), text)}</div>'


def _teacher(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    tables = _coupling_facts(summary) + _teacher_facts(summary)
    if not tables:
        return ""
    text = (
        "Mean and variance of z in every dimension, first seed; dashed: the standard normal that students start from. "
        "What z lacks of it they have never been shown."
    )
    return f'<div class="pair"><div>{tables}</div>{_figure(figures.get("noise"), text)}</div>'


def _coupling_facts(summary: Mapping[str, Any]) -> str:
    found = summary.get("coupling")
    if not found:
        return ""
    low, high = found["eigenvalues"]
    rows = [
        ("C2ST accuracy", f"{found['c2st']:.3f}", "0.5, when no classifier can tell z from N(0, I)"),
        *_by_class(found),
        ("covariance, eigenvalues", f"{low:.2f} to {high:.2f}", "1"),
        ("scale σ<sub>f</sub>", f"{found['sigma']:.3f}", "1; z is divided by it"),
        ("round trip", f"{found['round_trip']:.1e}", "0, the largest error of decode(encode(x)), pixels in [−1, 1]"),
    ]
    caption = "The noise z that the teacher pairs with the training images, mean of seeds."
    return facts([*rows, *_gate(found)], ("measure", "value", "perfect is"), caption)


def _by_class(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what a card says of single classes, as far as there are any."""
    rows, scores = [], found.get("c2st_by_class")
    if scores:
        worst = max(scores, key=scores.__getitem__)
        each = ", ".join(f"{escape(c)}: {value:.2f}" for c, value in list(scores.items())[:20])
        more = f", and {len(scores) - 20} more" if len(scores) > 20 else ""
        rows.append((f"C2ST, class {escape(worst)}", f"{scores[worst]:.3f}", f"0.5; the worst class of {each}{more}"))
    for name, what in (("mean_drift", "mean"), ("variance_drift", "variance")):
        if name in found:
            rows.append((f"drift of {what}", f"{found[name]:.3f}", "0, of the worst class from all, per dimension"))
    return rows


def _gate(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the gate's verdict: passed by every seed, or the worst line of those that are outside."""
    verdicts = found.get("gate", [])
    outside = [escape(verdict["line"]) for verdict in verdicts if not verdict["passed"]]
    if outside:
        return [("gate", "outside, allowed", "; ".join(outside))]
    return [("gate", "passed", "; ".join(f"nearest: {escape(v['line'])}" for v in verdicts))] if verdicts else []


def _teacher_facts(summary: Mapping[str, Any]) -> str:
    found, name = summary.get("teacher"), metric(summary)
    if not found:
        return ""
    students = summary["fd"].get("teacher", {})
    last = max(students, key=int, default="")
    against = f"its students have {fmean(students[last]):.2f} at NFE {last}" if last else ""
    rows = [
        ("bits per dimension", f"{found['bits_per_dim']:.3f}", "held-out images plus noise η, density on 0 to 255"),
        (f"{name}, as decoded", f"{found['fd_raw']:.2f}", "images plus noise, which is what it models"),
        (f"{name}, denoised", f"{found['fd_denoised']:.2f}", against),
        ("time per sample", duration(found["seconds_per_image"]), "in batches, denoising included"),
    ]
    return facts(
        rows, ("measure", "value", "beside it"), "The teacher's likelihood and its own samples, mean of seeds."
    )


def _origin(records: Mapping[str, Mapping[str, Any]]) -> str:
    found = stages_table(records)
    return f"{CHAIN}{found}" if found else ""


def _cost(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    seconds = summary.get("seconds")
    if not seconds:
        return ""
    if not summary.get("cost", {}).get("student"):
        tables = cost_by_stage(seconds) + cost_by_coupling(seconds, list(summary["fd"]))
        return f'<div class="pair">{tables}</div>'
    spent = (
        f"Mean of seeds; a curve's numbers are its fewest and its most NFE. The time is that of the stages and of "
        f"{SAMPLES:,} samples in batches, on the machine that ran them, beside what else it did."
    )
    paid = (
        "Where the lines cross, the teacher and its draws have been paid for: the time that the student's samples "
        "have saved over the teacher's own is as long as they took."
    )
    if all(cost.get("pays_after") is None for cost in summary["cost"]["student"].values()):
        paid = "The lines never cross: a sample of the student took no less time than one of the teacher."
    drawn = _figure(figures.get("cost"), spent) + _figure(figures.get("payback"), paid)
    # The table is too wide for half a page.
    pair = f'<div class="pair">{drawn}</div>' if drawn else ""
    return f'{pair}{cost_by_student(summary)}<div class="pair">{cost_by_stage(seconds)}</div>'


def _measures(summary: Mapping[str, Any], heun: Collection[int]) -> str:
    tables = ""
    for name, (caption, digits, best) in MEASURES.items():
        scale = 1000 if name == "kid" else 1
        measured = {c: v for c, v in summary.get(name, {}).items() if v}
        values = {c: {nfe: [scale * x for x in seeds] for nfe, seeds in v.items()} for c, v in measured.items()}
        if values:
            full = summary.get("names", {}).get(name)
            caption = caption.format(
                metric=escape(full_metric(summary, train=True)), name=f" ({escape(full)})" if full else ""
            )
            tables += by_nfe(_by_solver(values, heun, {}), f"{caption}.", digits=digits, best=best)
    return f'<div class="pair">{tables}</div>' if tables else ""


def _method(summary: Mapping[str, Any], heun: Collection[int]) -> str:
    name, count, settings = metric(summary), _seeds(summary), summary.get("settings", {})
    other = (
        "" if name == "FID" else " It is not FID, which is measured on Inception's features: compare within this page."
    )
    images = f" {summary['test_images']}" if summary.get("test_images") else ""
    accuracy = (
        f" (test accuracy {summary['test_accuracy']:.3f})" if name == "FD" and summary.get("test_accuracy") else ""
    )
    again = " (and at 5, to compare)" if summary.get("fd_heun_5") else ""
    at = ", ".join(map(str, sorted(heun)))
    solver = f"Euler; Heun at NFE {at}{again}, where N steps cost 2N − 1" if heun else "Euler"
    grid = {"t2": "t = (1 − i/N)²", "uniform": "t = 1 − i/N"}.get(settings.get("grid", "t2"), "")
    guidance = settings.get("guidance", 1.0)
    names = ", ".join(f"{escape(label(c))} is <code>{escape(c)}</code>" for c in summary["fd"])
    rows = {
        "Distance": f"{escape(full_metric(summary))}: Fréchet distance between {summary['samples']} samples, rounded "
        f"to 8 bits, and the{images} test images, on features: {escape(summary['features'])}{accuracy}.{other}",
        "Samples": "The same noise for every coupling and seed, and the same labels, if any, as frequent as in the "
        "test set; " + ("no guidance." if guidance == 1 else f"classifier-free guidance {guidance:g}."),
        "Solver": f"{solver}. Times {grid}. NFE counts evaluations of the student.",
        "Seeds": f"{count}. Each trains its own teacher, coupling and students; the spread is the sample standard "
        "deviation. Students share architecture, budget and seeds: only the coupling differs.",
        "Curvature": f"κ = E[mean ‖v(x<sub>t</sub>, t) − (z − x̂)‖²] / E‖z − x̂‖², Euler, "
        f"{settings.get('curvature_steps', 128)} uniform steps.",
        "Couplings": f"{names}.",
        "Source": "Berthelot et al., The Coupling Within, arXiv 2603.09014; teacher: TarFlow, arXiv 2412.06329; "
        "minibatch OT: arXiv 2302.00482; semidiscrete OT: arXiv 2509.25519; flow matching: arXiv 2210.02747.",
    }
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in rows.items())}</dl>"


def _figure(figure: Figure | None, caption: str) -> str:
    if figure is None:
        return ""
    uri = data_uri(figure.path.read_bytes(), KINDS[figure.path.suffix])
    return (
        f'<figure class="plot"><img src="{uri}" alt="{escape(figure.alt)}"><figcaption>{caption}</figcaption></figure>'
    )


def _seeds(summary: Mapping[str, Any]) -> int:
    return max(len(values) for by_nfe in summary["fd"].values() for values in by_nfe.values())

"""The report as one HTML file: no script, no network, styles and images inside."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from nfm.artifacts import atomic_path
from nfm.figures import Figure, label
from nfm.report.cost import cost_by_student
from nfm.report.headline import full_metric, metric, sentences
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


def render(
    summary: Mapping[str, Any], out: Path, *, samples: Samples, figures: Mapping[str, Figure], heun: Collection[int]
) -> None:
    """Writes the page.

    Arguments:
        summary: What results/summary.json holds; sections that it lacks are left out.
        out: The file to write.
        samples: Pixels as uint8, with shape (K, C, H, W), by coupling and NFE.
        figures: Any of "fd", "paths" and "noise".
        heun: NFEs that Heun sampled; Euler sampled the others.
    """
    first, second = sentences(summary)
    parts = [
        f'<p class="kicker">Normalized Flow Matching on {escape(summary["dataset"])}</p>',
        f'<h1>{escape(first)}</h1><p class="lead">{escape(second)}</p>',
        _picture(samples),
        _distance(summary, figures, heun),
        _all_samples(samples),
        _paths(summary, figures),
        _teacher(summary, figures),
        _cost(summary),
        _measures(summary, heun),
        _method(summary, heun),
    ]
    style = (resources.files("nfm.report") / "style.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>Normalized Flow Matching on {escape(summary['dataset'])}</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
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
    name, count = metric(summary), _seeds(summary)
    shown = f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed, so no spread"
    floor = f" The training images themselves have {summary['floor']:.2f}." if summary.get("floor") else ""
    caption = (
        f"{escape(full_metric(summary))} to the test images, {shown}; low is good, the best of a row is bold.{floor}"
    )
    groups = _by_solver(summary["fd"], heun, summary.get("fd_heun_5", {}))
    text = "The line is the mean of seeds, the shade one standard deviation. " if count > 1 else ""
    text += "Both axes are logarithmic: equal distances are equal ratios."
    return _section(
        f"{name} by network evaluations",
        f'<div class="pair">{by_nfe(groups, caption)}{_figure(figures.get("fd"), text)}</div>',
    )


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
    return _section("Samples at every NFE", f"<figure>{strips(samples)}<figcaption>{text}</figcaption></figure>")


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
    content = f'<div class="pair"><div>{left}</div>{_figure(figures.get("paths"), text)}</div>'
    return _section("How straight the paths are", content)


def _teacher(summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    tables = _coupling_facts(summary) + _teacher_facts(summary)
    if not tables:
        return ""
    text = (
        "Mean and variance of z in every dimension, first seed; dashed: the standard normal that students start from. "
        "What z lacks of it they have never been shown."
    )
    content = f'<div class="pair"><div>{tables}</div>{_figure(figures.get("noise"), text)}</div>'
    return _section("The teacher and its coupling", content)


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


def _cost(summary: Mapping[str, Any]) -> str:
    seconds = summary.get("seconds")
    if not seconds:
        return ""
    if summary.get("cost", {}).get("student"):  # too wide for half a page
        return _section("What it cost", f'{cost_by_student(summary)}<div class="pair">{cost_by_stage(seconds)}</div>')
    tables = cost_by_stage(seconds) + cost_by_coupling(seconds, list(summary["fd"]))
    return _section("What it cost", f'<div class="pair">{tables}</div>')


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
    return _section("Other measures", f'<div class="pair">{tables}</div>') if tables else ""


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
    return _section("How it was measured", f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in rows.items())}</dl>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _figure(figure: Figure | None, caption: str) -> str:
    if figure is None:
        return ""
    uri = data_uri(figure.path.read_bytes(), KINDS[figure.path.suffix])
    return (
        f'<figure class="plot"><img src="{uri}" alt="{escape(figure.alt)}"><figcaption>{caption}</figcaption></figure>'
    )


def _seeds(summary: Mapping[str, Any]) -> int:
    return max(len(values) for by_nfe in summary["fd"].values() for values in by_nfe.values())

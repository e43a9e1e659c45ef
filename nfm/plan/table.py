"""A forecast as text."""

from collections.abc import Mapping, Sequence

from nfm.plan.forecast import Forecast
from nfm.plan.gpu import Gpu

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def as_text(found: Forecast, gpu_name: str, gpu: Gpu, utilisation: float, measured: Mapping[str, float]) -> str:
    """Returns the tables of a forecast, its advice on draws and its notes.

    Arguments:
        found: The forecast.
        gpu_name: What the GPU is called.
        gpu: Its peak rates.
        utilisation: Share of the peak that is reached.
        measured: Seconds of each unit on this machine; empty for none.
    """
    size = found.size
    shape = "x".join(map(str, size.shape))
    if size.pixels is not None:
        shape = f"{shape} latents of {'x'.join(map(str, size.pixels))} pixels"
    parts = [
        f"{size.train:,} images to train on and {size.test:,} to measure on, {shape}, {size.classes} classes",
        "parameters: " + ", ".join(f"{name} {scaled(number)}" for name, number in found.parameters.items()),
        _stages(found, gpu_name, gpu, utilisation, measured),
        _artifacts(found),
    ]
    if found.draws is not None:
        parts.append(_draws(found, gpu, utilisation))
    return "\n\n".join([*parts, "\n".join(found.notes)])


def scaled(number: float, unit: str = "") -> str:
    """Returns a number with a prefix of the SI, such as 675 M."""
    for factor, prefix in PREFIXES:
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def _stages(found: Forecast, name: str, gpu: Gpu, utilisation: float, measured: Mapping[str, float]) -> str:
    head = ["stage", "runs", "FLOPs", f"{name} hours at {100 * utilisation:.0f} %"]
    rows = [
        [stage.name, str(stage.runs), f"{stage.flops:.2e}", _hours(stage.seconds(gpu, utilisation) / 3600)]
        for stage in found.stages
    ]
    flops = sum(stage.flops for stage in found.stages)
    hours = sum(stage.seconds(gpu, utilisation) for stage in found.stages) / 3600
    rows.append(["all", "", f"{flops:.2e}", _hours(hours)])
    if measured:
        head.append("seconds on this machine")
        seconds = [stage.measured(measured) for stage in found.stages]
        for row, value in zip(rows, [*seconds, sum(seconds)], strict=True):
            row.append(f"{value:,.1f}")
    return _table(head, rows)


def _artifacts(found: Forecast) -> str:
    rows = [
        [artifact.path, str(artifact.copies), scaled(artifact.bytes, "B"), "" if artifact.kept else "while it runs"]
        for artifact in found.artifacts
    ]
    kept = sum(artifact.bytes * artifact.copies for artifact in found.artifacts if artifact.kept)
    return _table(["file", "copies", "size", ""], [*rows, ["all that is kept", "", scaled(kept, "B"), ""]])


def _draws(found: Forecast, gpu: Gpu, utilisation: float) -> str:
    draws = found.draws
    assert draws is not None
    encode = next(work for stage in found.stages for work in stage.work if work.unit.startswith("teacher.encode/"))
    hours = encode.seconds(gpu, utilisation) / encode.count / int(encode.unit.partition("/")[2]) / 3600
    rows = [
        [f"{k} stored", scaled(draws.stored_bytes[k], "B"), scaled(encodes), _hours(encodes * hours)]
        for k, encodes in draws.stored_encodes.items()
    ]
    rows.append(["online", "0", scaled(draws.online_encodes), _hours(draws.online_encodes * hours)])
    chosen = "online draws" if draws.recommended == "online" else f"{draws.recommended} stored draws"
    table = _table(["draws, one seed", "pairs", "encodes", "hours of encoding"], rows)
    return f"{table}\nrecommended: {chosen}; {draws.reason}"


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *rest in [head, *rows]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

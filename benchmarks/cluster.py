"""An update of several GPUs on paper: what each of its parts takes by a formula, and which of them is the bottleneck.

Every process holds the whole model (DDP), takes its share of the batch in passes of a micro-batch, and averages the
gradients, bucket after bucket, beside the backward pass that makes them. Images and stored noise are read ahead.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

from nfm.config import nearest
from nfm.errors import InputError
from nfm.plan.gpu import GPUS
from nfm.plan.work import LAUNCH

FIRST_BUCKET = 2**20  # bytes; torch closes the first one early, so that the averaging starts
TRAFFIC = 13  # times an update moves the weights in float32: norm 1, clipping 2, AdamW 7, moving average 3


def assumed(value: float, unit: str, source: str) -> Any:
    """Declares a value that was not measured here."""
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Cluster:
    """Machines of several GPUs, as assumed; the fields' metadata say their units and where they are from.

    Rates of links are those of one direction. `network` and `s3` are shared by the GPUs of a machine.
    """

    machine: int = assumed(8, "GPUs", "an HGX board")
    nvlink: float = assumed(450e9, "bytes/s of a GPU", "NVIDIA's data sheet of H200: 900 GB/s in both directions")
    nvlink_latency: float = assumed(3.4e-6, "s a step", "NCCL's src/graph/tuning.cc: NVLink, ring, Simple")
    network: float = assumed(50e9, "bytes/s of a machine", "a round figure: one adapter of 400 Gb/s")
    network_latency: float = assumed(9.6e-6, "s a step", "NCCL's src/graph/tuning.cc: network, ring, Simple")
    s3: float = assumed(3.125e9, "bytes/s of a machine", "a round figure: 25 Gb/s")
    memory: float = assumed(GPUS["h200"].bandwidth, "bytes/s of a GPU", "nfm/plan/gpu.py: NVIDIA's data sheet of H200")
    launch: float = assumed(LAUNCH, "s an operation", "nfm/plan/work.py: a round figure for eager torch")
    bucket: float = assumed(25 * 2**20, "bytes of gradients", "torch's DistributedDataParallel, by default")
    prefetch: int = assumed(2, "shares read ahead", "ours; the training loop itself reads a share when it needs it")
    jitter: float = assumed(0.02, "of a process's time, standard deviation", "a guess")
    gpu_hour: float = assumed(3.8, "USD", "cost.gpu_hour of the recipes: H200")

    def assumptions(self) -> dict[str, dict[str, Any]]:
        """Returns by name each value with its unit and source; "the command line" where it is not the default."""
        return {
            f.name: {
                "value": getattr(self, f.name),
                "unit": f.metadata["unit"],
                "source": f.metadata["source"] if getattr(self, f.name) == f.default else "the command line",
            }
            for f in fields(self)
        }


FROM_NOTHING = {"nvlink_latency", "network_latency", "launch", "prefetch", "jitter", "gpu_hour"}  # may be 0
WHOLE = {"machine", "prefetch"}


def changed(cluster: Cluster, settings: Sequence[str]) -> Cluster:
    """Returns a cluster with other values.

    Arguments:
        cluster: Says all others.
        settings: As KEY=VALUE.

    Raises:
        InputError: A key is unknown, or its value is no number in its range.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in asdict(cluster):
            raise InputError(f"--set is {setting!r}, expected KEY=NUMBER{nearest(key, list(asdict(cluster)))}")
        values[key] = _number(key, text)
    return replace(cluster, **values)


def _number(key: str, text: str) -> float:
    wanted = "a whole number" if key in WHOLE else "a number"
    wanted += " of 0 or more" if key in FROM_NOTHING else " above 0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0 or (value == 0 and key in FROM_NOTHING))):
        raise InputError(f"--set {key} is {text!r}, expected {wanted}")
    if key not in WHOLE:
        return value
    if value != int(value):
        raise InputError(f"--set {key} is {text!r}, expected {wanted}")
    return int(value)


@dataclass(frozen=True)
class Pass:
    """The time of one call on some images, in seconds.

    Attributes:
        per_image: Of arithmetic, an image.
        fixed: However few they are.
        least: That the host takes to launch its operations; the call takes no less.
    """

    per_image: float
    fixed: float = 0.0
    least: float = 0.0

    def seconds(self, images: int) -> float:
        return max(self.fixed + images * self.per_image, self.least)


@dataclass(frozen=True)
class Gradient:
    """A weight's gradient as a backward pass leaves it.

    Attributes:
        bytes: Its size.
        done: Share of the backward pass that is over when it is there.
    """

    bytes: int
    done: float


@dataclass(frozen=True)
class Job:
    """What an update asks for.

    Attributes:
        batch: Images of all processes.
        micro_batch: Images of a process and pass, at most.
        train: A pass, forward and backward.
        forward: Share of it that goes forward.
        gradients: In the order in which they come.
        image: Bytes of an image or latent, with its label, as it is stored.
        noise: Bytes of stored noise an image; 0 for none.
        encode: The teacher's encoding before every pass; None for none.
    """

    batch: int
    micro_batch: int
    train: Pass
    forward: float
    gradients: tuple[Gradient, ...]
    image: float
    noise: float = 0.0
    encode: Pass | None = None

    def passes(self, gpus: int) -> list[int]:
        """Returns the images of each pass of the process that has the most of them."""
        share = math.ceil(self.batch / gpus)
        whole, rest = divmod(share, self.micro_batch)
        return [self.micro_batch] * whole + ([rest] if rest else [])

    @property
    def weight_bytes(self) -> int:
        """Of weights, and of their gradients, in float32."""
        return sum(gradient.bytes for gradient in self.gradients)


def buckets(gradients: Sequence[Gradient], size: float) -> list[Gradient]:
    """Joins gradients as DDP does: a bucket is closed when it holds `size` bytes or more, the first one at 1 MiB."""
    found: list[Gradient] = []
    held = 0
    for gradient in gradients:
        held += gradient.bytes
        if held >= (size if found else min(size, FIRST_BUCKET)):
            found.append(Gradient(held, gradient.done))
            held = 0
    return [*found, Gradient(held, gradients[-1].done)] if held else found


def all_reduce(size: float, gpus: int, cluster: Cluster) -> float:
    r"""Returns the seconds of averaging a bucket over GPUs.

    .. math:: 2 \frac{n - 1}{n} \frac{s}{b} + 2 (n - 1) \alpha

    of a ring of n GPUs within a machine. Several machines scatter the sums within each, average what lies at the same
    place over machines, by a ring or by trees, whichever is quicker, and gather within each.

    References:
        Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations (Patarasuk & Yuan, 2009).
        Two-Tree Algorithms for Full Bandwidth Broadcast, Reduction and Scan (Sanders et al., 2009).

    Arguments:
        size: Bytes, s.
        gpus: Their number; where there is more than one machine, all machines are full.
        cluster: Gives bandwidths b and latencies alpha.
    """
    inside = min(gpus, cluster.machine)
    machines = math.ceil(gpus / cluster.machine)
    seconds = 2 * (inside - 1) * (size / inside / cluster.nvlink + cluster.nvlink_latency)
    if machines > 1:
        ring = 2 * (machines - 1) * (size / machines / cluster.network + cluster.network_latency)
        trees = 2 * (size / cluster.network + math.ceil(math.log2(machines)) * cluster.network_latency)
        seconds += min(ring, trees)
    return seconds


@dataclass(frozen=True)
class Parts:
    """What the seconds of an update go to; they add up to it.

    Attributes:
        compute: The passes' arithmetic.
        launches: What passes take however few images they have.
        couplings: Encoding by the teacher, or waiting for stored noise.
        gradients: Averaging them after the backward pass.
        optimizer: Clipping, AdamW and the moving average.
        reading: Waiting for images.
    """

    compute: float
    launches: float
    couplings: float
    gradients: float
    optimizer: float
    reading: float

    @property
    def seconds(self) -> float:
        return sum(asdict(self).values())


def optimizer_seconds(weight_bytes: float, cluster: Cluster) -> float:
    """Returns the time of an update of all weights, which the memory decides."""
    return TRAFFIC * weight_bytes / cluster.memory


def share_seconds(job: Job, gpus: int, cluster: Cluster) -> float:
    """Returns the time in which one of a machine's GPUs reads its share of what the machine reads for an update.

    That is all of the batch: streaming brings every machine every shard, whatever its share of the images.
    """
    return job.batch / min(gpus, cluster.machine) * (job.image + job.noise) / cluster.s3


def read_seconds(job: Job, gpus: int, cluster: Cluster) -> float:
    """Returns the time in which a machine reads what its GPUs need for an update."""
    return share_seconds(job, gpus, cluster) * min(gpus, cluster.machine)


def update(job: Job, gpus: int, cluster: Cluster) -> tuple[Parts, str]:
    r"""Returns what an update takes where all processes are equally fast, and the name of the bottleneck.

    The averaging ends at

    .. math:: \max_k \Bigl( r_k + \sum_{j \ge k} a_j \Bigr)

    where bucket k is there at r_k and takes a_j; what of that is behind the end of the backward pass counts. What is
    read ahead counts where it takes longer than all else, and is the bottleneck then; else that is the longest part.
    """
    images = job.passes(gpus)
    compute = sum(images) * job.train.per_image
    passes = sum(map(job.train.seconds, images))
    encode = sum(map(job.encode.seconds, images)) if job.encode else 0.0
    gradients = _behind(job, gpus, cluster, job.train.seconds(images[-1]) * (1 - job.forward))
    optimizer = optimizer_seconds(job.weight_bytes, cluster)
    busy = encode + passes + gradients + optimizer
    read = read_seconds(job, gpus, cluster)
    waits = max(0.0, read - busy) if cluster.prefetch else read
    noise = waits * job.noise / (job.image + job.noise)
    parts = Parts(compute, passes - compute, encode + noise, gradients, optimizer, waits - noise)
    named = {"reading": waits - noise, "couplings": noise} if cluster.prefetch and waits else asdict(parts)
    return parts, max(named, key=named.__getitem__)


def _behind(job: Job, gpus: int, cluster: Cluster, backward: float) -> float:
    """Returns the seconds from the end of a backward pass to that of the averaging."""
    if gpus == 1:
        return 0.0
    joined = buckets(job.gradients, cluster.bucket)
    left = list(accumulate(all_reduce(bucket.bytes, gpus, cluster) for bucket in reversed(joined)))
    ends = (bucket.done * backward + seconds for bucket, seconds in zip(joined, reversed(left), strict=True))
    return max(0.0, max(ends) - backward)

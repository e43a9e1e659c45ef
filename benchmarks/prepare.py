"""How fast and in how much memory a data set is written: `python benchmarks/prepare.py --images 1000000`.

The images are generated as they are asked for, so that what is measured is the shuffle, the shards, their
checksums and the manifest. Decoding image files costs time besides, and no memory that grows.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nfm.artifacts import write_json
from nfm.data.examples import BLOCK, Examples, Source
from nfm.data.writing import SHARD_BYTES, write_splits

SHAPE = (3, 64, 64)
CLASSES = 1000


def generated(count: int) -> Source:
    """Returns a data set of noise: row i is one of 1024 pictures, its pixels moved by i // 1024."""
    pictures = torch.randint(256, (1024, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def read(index: Tensor) -> Iterator[Tensor]:
        for rows in index.split(BLOCK):
            yield pictures[rows % 1024] + (rows // 1024).to(torch.uint8)[:, None, None, None]

    def examples(count: int) -> Examples:
        return Examples(torch.arange(count), torch.arange(count) % CLASSES, read)

    classes = tuple(str(number) for number in range(CLASSES))
    return Source("generated", SHAPE, classes, examples(count), examples(max(count // 100, 1)), "noise")


def measure(count: int, folder: Path, shard_bytes: int) -> dict[str, float]:
    """Writes so many images; returns what it took. Bytes are those of both splits, memory is the peak."""
    source, start = generated(count), time.monotonic()
    write_splits(folder, source, seed=0, shard_bytes=shard_bytes, say=lambda line: print(line, file=sys.stderr))
    seconds = time.monotonic() - start
    return {
        "images": len(source.train) + len(source.test),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="64x64 images to train on")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/benchmark"), help="removed afterwards")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--to", type=Path, help="file for the figures, such as results/prepare.json")
    given = parser.parse_args()
    try:
        figures = measure(given.images, given.folder, given.shard_bytes)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)
    print(json.dumps(figures, indent=2))
    if given.to:
        write_json(given.to, figures)


if __name__ == "__main__":
    main()

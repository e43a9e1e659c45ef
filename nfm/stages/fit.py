"""A training as the stages run it: one split, one section, one seed."""

from collections.abc import Callable
from dataclasses import replace

import torch

from nfm.build.training import make_plan
from nfm.config import Params, Train
from nfm.coupling.base import Batch
from nfm.data.shards import Split
from nfm.random import generator_for
from nfm.stages.run import StageRun
from nfm.train.loop import Trained, train


def fit(
    run: StageRun,
    make_model: Callable[[], torch.nn.Module],
    loss: Callable[[torch.nn.Module, Batch, torch.Generator], torch.Tensor],
    split: Split,
    section: Train,
    params: Params,
    seed: int,
) -> Trained:
    """Trains a model on a split in the run's checkpoint folder.

    Arguments:
        run: The open stage.
        make_model: Builds the model; its initial weights are a function of the seed.
        loss: Gives the mean loss of a batch.
        split: The training images.
        section: The stage's `train` section.
        params: All params.
        seed: Seed of weights, order and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed).initial_seed())
        model = make_model()
    return train(
        model,
        lambda model, index, generator, progress: loss(
            model, replace(read_batch(split, index, run.device), progress=progress), generator
        ),
        count=len(split),
        plan=make_plan(section, params.run),
        seed=seed,
        folder=run.checkpoint,
        key=run.key,
        report=run.report,
        name=run.address,
    )


def read_batch(split: Split, index: torch.Tensor, device: torch.device) -> Batch:
    """Reads the images and labels at an index, onto a device."""
    label = split.labels(index)
    return Batch(index, split.images(index).to(device), None if label is None else label.to(device))

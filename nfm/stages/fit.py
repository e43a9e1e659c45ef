"""A training as the stages run it: one split, one section, one seed."""

from collections.abc import Callable
from dataclasses import replace

import torch

from nfm.build.training import make_plan
from nfm.config import Params, Train
from nfm.coupling.base import Batch, Whole
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.random import generator_for
from nfm.stages.run import StageRun
from nfm.train.loop import Trained, train
from nfm.train.order import Windows, batch_indices
from nfm.train.update import Piece


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
    windows = _windows(run, split, section, params)

    def loss_of(model: torch.nn.Module, piece: Piece, generator: torch.Generator) -> torch.Tensor:
        if split.stream is not None:
            everything = range(len(split.counts))
            split.stream.expect(everything if windows is None else windows.needed(section.batch, seed, piece.step))
        batch = read_piece(split, piece, run.device)
        following = batch_indices(len(split), section.batch, seed, piece.step + 1, windows)
        split.expect(following[piece.part])
        return loss(model, batch, generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed).initial_seed())
        model = make_model()
    return train(
        model,
        loss_of,
        count=len(split),
        plan=make_plan(section, params.run),
        seed=seed,
        windows=windows,
        folder=run.checkpoint,
        key=run.key,
        report=run.report,
        name=run.address,
    )


def _windows(run: StageRun, split: Split, section: Train, params: Params) -> Windows | None:
    """Returns how the order mixes the images; of streamed ones a window and the next have to fit the cache."""
    if split.stream is not None:
        shards, room = len(split.counts), split.stream.room
        if min(2 * (section.window or shards), shards) > room:
            given = "null, for all" if section.window is None else section.window
            raise InputError(
                f"{run.address}: train.window is {given}, but of the {shards} shards that the images are streamed in "
                f"run.cache_gb = {params.run.cache_gb:g} holds {room} at a time, and two windows have to fit; "
                + (f"set it to {room // 2} at most, or raise run.cache_gb" if room > 1 else "raise run.cache_gb")
            )
    return None if section.window is None else Windows(split.counts, section.window)


def read_piece(split: Split, piece: Piece, device: torch.device) -> Batch:
    """Reads what a forward pass sees; the batch that it is a part of is read when it is asked for."""
    whole = Whole(lambda: read_batch(split, piece.rows, device), piece.part, piece.seed, piece.step)
    return replace(read_batch(split, piece.index, device), whole=whole)


def read_batch(split: Split, index: torch.Tensor, device: torch.device) -> Batch:
    """Reads the images and labels at an index, onto a device; the host does not wait for the copy to a GPU."""
    label = split.labels(index)
    return Batch(index, _moved(split.images(index), device), None if label is None else _moved(label, device))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Only from pinned memory does a copy go on beside what the GPU computes.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

"""Weights, gradients and AdamW's moments divided over processes (FSDP2), each of which gathers a layer as it runs.

By torch's own function, since accelerate shards on accelerators only, and what runs there alone cannot be tested on any
machine. accelerate's config file decides whether it is used, as for its own: `fsdp_version: 2`.
"""

import copy
import os
import warnings

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from nfm.errors import InputError


def sharding_wanted() -> bool:
    """Whether accelerate's launcher was told to shard.

    Raises:
        InputError: It was, but by the first version of FSDP.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP") or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(
            f"accelerate is set up for version {version} of FSDP, expected 2; set fsdp_version to 2 in its config file"
        )
    return True


def shard(model: nn.Module, device: torch.device, backend: str | None = None) -> None:
    """Divides a model's parameters, the same in all processes: each layer of its lists, then what is left.

    Arguments:
        model: On its device.
        device: That device.
        backend: Of torch.compile, for the layers that hold no others; None to compile nothing.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Nothing here changes a model's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    again = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True)
    for module in reversed(list(model.modules())):  # inner layers before what holds them
        for layer in module if isinstance(module, nn.ModuleList) else ():
            if backend is not None and not any(isinstance(part, nn.ModuleList) for part in layer.modules()):
                # Of the method and not the module, whose hooks gather its weights outside of the graph.
                layer.forward = torch.compile(layer.forward, backend=backend)
            fully_shard(layer, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, reshard_after_forward=again)


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is torch's DTensor, whose import takes half a second that most trainings need not wait for."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be divided as a whole; all processes must ask for it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor that may be divided, in the same memory."""
    return tensor.to_local() if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def divided(value: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, the same in all processes, divided as another is."""
    if not is_divided(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def gathered(model: nn.Module, divided_model: nn.Module) -> nn.Module:
    """Returns a copy of a whole model with the weights of a divided one; all processes must ask for it."""
    copied = copy.deepcopy(model).requires_grad_(any(p.requires_grad for p in divided_model.parameters()))
    copied.load_state_dict({name: whole(value) for name, value in divided_model.state_dict().items()})
    return copied.train(divided_model.training)


def agreed(wish: bool, device: torch.device) -> bool:
    """Whether any process wishes something; all must ask."""
    votes = torch.tensor(int(wish), device=device)
    torch.distributed.all_reduce(votes)
    return bool(votes)

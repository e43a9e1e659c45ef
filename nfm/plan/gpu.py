"""What GPUs can do at best, from NVIDIA's data sheets (SXM boards, without sparsity)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one GPU.

    Attributes:
        half: bf16 and fp16 with fp32 sums, on tensor cores, FLOP/s.
        single: fp32 without tensor cores, which torch computes fp32 matrix products in, FLOP/s.
        bandwidth: Of its memory, bytes/s.
    """

    half: float
    single: float
    bandwidth: float

    def peak(self, precision: str) -> float:
        """Returns the peak FLOP/s of a precision, "fp32", "bf16" or "fp16"."""
        return self.single if precision == "fp32" else self.half


GPUS = {
    # https://www.nvidia.com/en-us/data-center/a100/
    "a100": Gpu(half=312e12, single=19.5e12, bandwidth=2.04e12),
    # https://www.nvidia.com/en-us/data-center/h100/
    "h100": Gpu(half=989e12, single=67e12, bandwidth=3.35e12),
    # https://www.nvidia.com/en-us/data-center/h200/
    "h200": Gpu(half=989e12, single=67e12, bandwidth=4.8e12),
}

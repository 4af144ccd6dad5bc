"""What a GPU can do at best, by its exact name. Without torch.

Dense arithmetic: data sheets since Ampere print twice that, for matrices of which half is zeros.
Products in 16 bits are those that add up in fp32, as training's do; GeForce cards reach twice that
only where they add up in 16 bits. Sources are NVIDIA's data sheets, and its white papers about an
architecture for cards whose sheet does not say as much; where it is another, it stands beside the
entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["bf16", "fp16", "tf32", "fp32"]
"""Of matrix products: bf16, fp16 and tf32 on tensor cores, fp32 on the others."""


@dataclass(frozen=True, kw_only=True)
class DevicePeaks:
    """One kind of GPU."""

    device: str
    """As ``torch.cuda.get_device_name`` and ``nvidia-smi`` give it."""
    teraflops: Mapping[Precision, float]
    """Dense, 10^12 FLOP/s; a precision that the device has no units for is not there."""
    memory_bandwidth: float
    """Bytes a second."""
    memory_gib: float
    """Total, as ``nvidia-smi`` gives it."""

    def flops(self, precision: Precision) -> float | None:
        """FLOP/s in this precision; None where the device does not compute in it."""
        tera = self.teraflops.get(precision)
        return None if tera is None else tera * 1e12


def _device(
    name: str, half: float, tf32: float, fp32: float, bandwidth: float, mib: int
) -> DevicePeaks:
    """One since Ampere: bf16 and fp16 alike; memory in GB/s and MiB."""
    return DevicePeaks(
        device=name,
        teraflops={"bf16": half, "fp16": half, "tf32": tf32, "fp32": fp32},
        memory_bandwidth=bandwidth * 1e9,
        memory_gib=mib / 1024,
    )


def _older(name: str, fp16: float, fp32: float, bandwidth: float, mib: int) -> DevicePeaks:
    """One before Ampere, whose tensor cores know fp16 only."""
    return DevicePeaks(
        device=name,
        teraflops={"fp16": fp16, "fp32": fp32},
        memory_bandwidth=bandwidth * 1e9,
        memory_gib=mib / 1024,
    )


DEVICES: tuple[DevicePeaks, ...] = (
    # H100 and H200 data sheets: SXM5, PCIe, NVL
    _device("NVIDIA H100 80GB HBM3", 989, 494.7, 66.9, 3350, 81559),
    _device("NVIDIA H100 PCIe", 756, 378, 51.2, 2000, 81559),
    _device("NVIDIA H100 NVL", 835.5, 417.5, 60, 3900, 95830),
    _device("NVIDIA H200", 989, 494.7, 66.9, 4800, 143771),
    _device("NVIDIA H200 NVL", 835.5, 417.5, 60, 4800, 143771),
    # GH200 Grace Hopper Superchip data sheet
    _device("NVIDIA GH200 480GB", 989, 494.7, 66.9, 4000, 97871),
    _device("NVIDIA GH200 144G HBM3e", 989, 494.7, 66.9, 4900, 147253),
    # as the H100, but for NVLink and fp64
    _device("NVIDIA H800", 989, 494.7, 66.9, 3350, 81559),
    _device("NVIDIA H800 PCIe", 756, 378, 51.2, 2000, 81559),
    # NVIDIA publishes no sheet: as makers of servers print it
    _device("NVIDIA H20", 148, 74, 44, 4000, 97871),
    # HGX B200, HGX B300, GB200 NVL72 and GB300 NVL72 data sheets, a GPU
    _device("NVIDIA B200", 2250, 1125, 75, 8000, 183359),
    _device("NVIDIA GB200", 2500, 1250, 80, 8000, 189471),
    _device("NVIDIA B300 SXM6 AC", 2250, 1125, 75, 8000, 275040),
    _device("NVIDIA GB300", 2500, 1250, 80, 8000, 284208),
    # A100 data sheet; the A800 differs in NVLink only
    _device("NVIDIA A100-SXM4-40GB", 312, 156, 19.5, 1555, 40960),
    _device("NVIDIA A100-SXM4-80GB", 312, 156, 19.5, 2039, 81920),
    _device("NVIDIA A100-SXM-80GB", 312, 156, 19.5, 2039, 81920),  # as older systems call it
    _device("NVIDIA A100-PCIE-40GB", 312, 156, 19.5, 1555, 40960),
    _device("NVIDIA A100 80GB PCIe", 312, 156, 19.5, 1935, 81920),
    _device("NVIDIA A800-SXM4-40GB", 312, 156, 19.5, 1555, 40960),
    _device("NVIDIA A800-SXM4-80GB", 312, 156, 19.5, 2039, 81920),
    _device("NVIDIA A800 80GB PCIe", 312, 156, 19.5, 1935, 81920),
    # their data sheets; that of the A10G is for AWS
    _device("NVIDIA A10", 125, 62.5, 31.2, 600, 23028),
    _device("NVIDIA A10G", 70, 35, 35, 600, 23028),
    _device("NVIDIA A30", 165, 82, 10.3, 933, 24576),
    _device("NVIDIA A40", 149.7, 74.8, 37.4, 696, 46068),
    _device("NVIDIA L4", 121, 60, 30.3, 300, 23034),
    _device("NVIDIA L40", 181.05, 90.5, 90.5, 864, 46068),
    _device("NVIDIA L40S", 362.05, 183, 91.6, 864, 46068),
    # GA102 white paper, RTX A5000 data sheet
    _device("NVIDIA RTX A5000", 111.1, 55.6, 27.8, 768, 24564),
    _device("NVIDIA RTX A6000", 154.8, 77.4, 38.7, 768, 49140),
    _device("NVIDIA GeForce RTX 3090", 71, 35.6, 35.6, 936, 24576),
    # Ada white paper
    _device("NVIDIA RTX 6000 Ada Generation", 364.2, 182.1, 91.1, 960, 49140),
    _device("NVIDIA GeForce RTX 4080", 97.5, 48.7, 48.7, 717, 16376),
    _device("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6, 1008, 24564),
    # RTX Blackwell white paper
    _device("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8, 251.9, 126, 1792, 97887),
    _device("NVIDIA GeForce RTX 5080", 112.6, 56.3, 56.3, 960, 16303),
    _device("NVIDIA GeForce RTX 5090", 209.5, 104.8, 104.8, 1792, 32607),
    # V100, V100S and T4 data sheets
    _older("Tesla V100-SXM2-16GB", 125, 15.7, 900, 16384),
    _older("Tesla V100-SXM2-32GB", 125, 15.7, 900, 32768),
    _older("Tesla V100-SXM3-32GB", 125, 15.7, 900, 32768),
    _older("Tesla V100-PCIE-16GB", 112, 14, 900, 16384),
    _older("Tesla V100-PCIE-32GB", 112, 14, 900, 32768),
    _older("Tesla V100S-PCIE-32GB", 130, 16.4, 1134, 32768),
    _older("Tesla T4", 65, 8.1, 320, 15360),
)
"""All that are known. A part of a GPU (MIG) has a name of its own, and is not."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def peaks_of(device_name: str) -> DevicePeaks | None:
    """Peaks of a GPU by its exact name; None where nobody has written them down.

    Case does not count, nor does the maker's name in front, which older drivers leave out.
    """
    return _BY_NAME.get(_key(device_name))


def _key(name: str) -> str:
    words = " ".join(name.casefold().split())
    return words.removeprefix("nvidia ").removeprefix("tesla ")


_BY_NAME = {_key(peaks.device): peaks for peaks in DEVICES}

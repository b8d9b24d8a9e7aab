"""Fused operators on the maps of many objects: one signature, the fastest kernel available.

Every operation is a torch operator with a plain PyTorch reference. Compiled kernels for the CPU and for CUDA
are optional: the dispatcher picks a loaded kernel, and otherwise the reference runs with the same results.
"""

from detcam.ops.cam_maps import NORMALIZATIONS, cam_maps, region_windows
from detcam.ops.elementwise_maps import ELEMENTWISE_MODES, elementwise_maps
from detcam.ops.loading import build_info, is_compiled, load_kernels
from detcam.ops.overlay import BLENDS, overlay

load_kernels()  # after the schemas exist

__all__ = [
    "BLENDS", "ELEMENTWISE_MODES", "NORMALIZATIONS", "build_info", "cam_maps", "elementwise_maps", "is_compiled",
    "overlay", "region_windows",
]  # fmt: skip

"""Fused operations on the maps of many objects: one call signature, the fastest kernel present.

Every operation is a torch operator with a plain PyTorch reference. Compiled kernels for the CPU and for CUDA
are optional: where one is loaded the dispatcher picks it, where none is the reference runs, and callers
cannot tell.
"""

from detcam.ops.library import NORMALIZATIONS, cam_maps
from detcam.ops.loading import build_info, is_compiled

__all__ = ["NORMALIZATIONS", "build_info", "cam_maps", "is_compiled"]

// Shared by the CUDA kernels: launches on torch's stream, and where a pixel lies between cells.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cuda_runtime.h>

#include <cassert>
#include <limits>

#include "tensor.h"

namespace detcam {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a launch, and strips of a map, are counted in 32 bits; only the pixels need 64.
inline int checked_count(int64_t count) {
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "detcam: too much for one launch: ", count,
                  " blocks or strips");
  return static_cast<int>(count);
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Comparisons written so that NaN becomes `low`.
template <typename Acc>
__device__ Acc confine(Acc value, Acc low, Acc high) {
  value = value > low ? value : low;
  return value < high ? value : high;
}

template <typename Acc>
__device__ Acc blend(Acc a, Acc b, Acc fraction) {
  return a + fraction * (b - a);
}

// One axis of the resize: where a pixel lies between the cells.
template <typename Acc>
struct Axis {
  Acc start, step, last;

  Axis() = default;

  __device__ Axis(float from, float to, int64_t cells, int64_t pixels)
      : start(from - Acc(0.5)), step((Acc(to) - from) / pixels), last(cells - 1) {}

  // Splits the place of a pixel into the first of its two cells and the distance from it.
  __device__ Acc locate(int pixel, int& cell, int& next) const {
    const Acc at = confine(start + (pixel + Acc(0.5)) * step, Acc(0), last);
    cell = static_cast<int>(at);
    next = min(cell + 1, static_cast<int>(last));
    return at - cell;
  }
};

}  // namespace
}  // namespace detcam

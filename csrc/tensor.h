// Shared by the kernels of all operators: raw views of tensor arguments, and the choice of types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#if defined(__CUDACC__)
#define DETCAM_ANYWHERE __host__ __device__
#else
#define DETCAM_ANYWHERE
#endif

namespace detcam {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A strided view of a tensor argument; raw, so that it can be passed to a device.
template <typename T, int kDims>
struct View {
  const T* data = nullptr;
  int64_t strides[kDims] = {};
};

template <typename T, int kDims>
View<T, kDims> view(const Tensor& tensor) {
  View<T, kDims> result;
  result.data = static_cast<const T*>(tensor.const_data_ptr());
  for (int dim = 0; dim < kDims; ++dim) result.strides[dim] = tensor.stride(dim);
  return result;
}

template <typename T, int kDims>
View<T, kDims> view(const std::optional<Tensor>& tensor) {
  return tensor ? view<T, kDims>(*tensor) : View<T, kDims>{};
}

// The image of an object; without an index all belong to the first.
DETCAM_ANYWHERE inline int64_t image_of(const View<int64_t, 1>& index, int64_t object) {
  return index.data ? index.data[object * index.strides[0]] : 0;
}

// The Python wrappers report mistakes in the caller's terms; the checks on this side keep a direct call
// inside its memory.
inline void check_beside(const Tensor& tensor, const Tensor& first, const char* op) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == first.is_cuda() && tensor.get_device_index() == first.get_device_index(), op,
      ": tensors on different devices");
}

inline void check_beside(const std::optional<Tensor>& tensor, const Tensor& first, const char* op) {
  if (tensor) check_beside(*tensor, first, op);
}

// An optional argument with one row per object: [objects], or [objects, columns].
inline void check_per_object(const std::optional<Tensor>& tensor, int64_t objects, int64_t columns,
                             ScalarType dtype, const char* op, const char* name) {
  if (!tensor) return;
  const bool fits = columns == 0 ? tensor->dim() == 1 : tensor->dim() == 2 && tensor->size(1) == columns;
  STD_TORCH_CHECK(fits && tensor->size(0) == objects && tensor->scalar_type() == dtype, op, ": ", name,
                  " must be ", columns == 0 ? "int64 [N]" : "float32 [N, 4]");
}

inline void check_side(int64_t side, const char* op) {
  STD_TORCH_CHECK(0 < side && side < (1 << 24), op, ": every side must be in [1, 2^24), got ", side);
}

// Sums are taken in float32, or in float64 for float64 input.
template <typename In>
using Accumulator = std::conditional_t<std::is_same_v<In, double>, double, float>;

// Calls `run` with a value of the C++ type of `dtype`.
template <typename Run>
void with_input_type(ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Half:
      return run(Half{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    case ScalarType::Double:
      return run(double{});
    default:
      STD_TORCH_CHECK(false, "expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace detcam

// What the CPU and the CUDA kernel of detcam::cam_maps share: the checked arguments and the choice of types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <limits>
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

// Where the range that becomes [0, 1] is taken. The meaning of each is documented with detcam.ops.cam_maps.
enum class Normalize { kObject, kImage, kObjectAfter, kMax, kNone };

inline Normalize parse_normalize(const std::string& name) {
  if (name == "object") return Normalize::kObject;
  if (name == "image") return Normalize::kImage;
  if (name == "object-after") return Normalize::kObjectAfter;
  if (name == "max") return Normalize::kMax;
  STD_TORCH_CHECK(name == "none", "cam_maps: unknown normalize '", name, "'");
  return Normalize::kNone;
}

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

struct Shape {
  int64_t images, channels, rows, columns;  // acts [B, C, h, w]
  int64_t objects, height, width;           // maps [N, H, W]
  Normalize normalize;
  bool relu;

  DETCAM_ANYWHERE int64_t cells() const { return rows * columns; }
  // Whether the range is known only when the pixels are.
  DETCAM_ANYWHERE bool ranges_over_pixels() const {
    return normalize == Normalize::kObjectAfter || normalize == Normalize::kMax;
  }
};

// The Python wrapper reports mistakes in the caller's terms; these checks keep a direct call inside its
// memory.
inline Shape check_arguments(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                             const std::optional<Tensor>& window, int64_t height, int64_t width,
                             const std::string& normalize, bool relu) {
  STD_TORCH_CHECK(acts.dim() == 4 && acts.numel() > 0, "cam_maps: acts must be a non-empty [B, C, h, w]");
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == acts.size(1), "cam_maps: weights must be [N, C]");
  STD_TORCH_CHECK(weights.scalar_type() == acts.scalar_type(),
                  "cam_maps: acts and weights must share a dtype");
  const int64_t objects = weights.size(0);
  for (const int64_t side : {height, width, acts.size(2), acts.size(3)}) {
    STD_TORCH_CHECK(0 < side && side < (1 << 24), "cam_maps: every side must be in [1, 2^24), got ", side);
  }
  if (index) {
    STD_TORCH_CHECK(
        index->dim() == 1 && index->size(0) == objects && index->scalar_type() == ScalarType::Long,
        "cam_maps: index must be int64 [N]");
  }
  if (window) {
    STD_TORCH_CHECK(window->dim() == 2 && window->size(0) == objects && window->size(1) == 4 &&
                        window->scalar_type() == ScalarType::Float,
                    "cam_maps: window must be float32 [N, 4]");
  }
  const auto beside_acts = [&](const Tensor& tensor) {
    return tensor.is_cuda() == acts.is_cuda() && tensor.get_device_index() == acts.get_device_index();
  };
  STD_TORCH_CHECK(
      beside_acts(weights) && (!index || beside_acts(*index)) && (!window || beside_acts(*window)),
      "cam_maps: tensors on different devices");
  return {acts.size(0), acts.size(1), acts.size(2), acts.size(3),
          objects,      height,       width,        parse_normalize(normalize),
          relu};
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
      STD_TORCH_CHECK(false, "cam_maps: acts must be float32, float16, bfloat16 or float64");
  }
}

template <typename Run>
void with_output_type(ScalarType dtype, const Run& run) {
  if (dtype == ScalarType::Byte) return run(uint8_t{});
  with_input_type(dtype, run);
}

// The values that an output may hold: what lies outside by rounding, or would overflow the type, is pulled
// back.
template <typename Acc>
struct Limits {
  Acc low, high;
  Acc one;  // what a normalised 1 is stored as
};

template <typename Out, typename Acc>
Limits<Acc> output_limits(Normalize normalize, bool relu) {
  if constexpr (std::is_same_v<Out, uint8_t>) {
    STD_TORCH_CHECK(normalize != Normalize::kNone, "cam_maps: uint8 needs a normalisation");
    return {0, 255, 255};
  } else {
    constexpr bool kNarrower = sizeof(Out) < sizeof(Acc);
    const Acc largest =
        kNarrower ? static_cast<Acc>(std::numeric_limits<Out>::max()) : std::numeric_limits<Acc>::max();
    const bool unbounded = normalize == Normalize::kNone;
    const bool signed_values = unbounded || (normalize == Normalize::kMax && !relu);
    return {signed_values ? -largest : Acc(0), unbounded ? largest : Acc(1), Acc(1)};
  }
}

}  // namespace detcam

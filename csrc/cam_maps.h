// Shared by the CPU and the CUDA kernel of detcam::cam_maps: the checked arguments and the range of values.
#pragma once

#include <limits>

#include "tensor.h"

namespace detcam {

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

inline Shape check_arguments(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                             const std::optional<Tensor>& window, int64_t height, int64_t width,
                             const std::string& normalize, bool relu) {
  constexpr const char* kOp = "cam_maps";
  STD_TORCH_CHECK(acts.dim() == 4 && acts.numel() > 0, "cam_maps: acts must be a non-empty [B, C, h, w]");
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == acts.size(1), "cam_maps: weights must be [N, C]");
  STD_TORCH_CHECK(weights.scalar_type() == acts.scalar_type(),
                  "cam_maps: acts and weights must share a dtype");
  const int64_t objects = weights.size(0);
  for (const int64_t side : {height, width, acts.size(0), acts.size(1), acts.size(2), acts.size(3)}) {
    check_side(side, kOp);
  }
  check_per_object(index, objects, 0, ScalarType::Long, kOp, "index");
  check_per_object(window, objects, 4, ScalarType::Float, kOp, "window");
  check_beside(weights, acts, kOp);
  check_beside(index, acts, kOp);
  check_beside(window, acts, kOp);
  return {acts.size(0), acts.size(1), acts.size(2), acts.size(3),
          objects,      height,       width,        parse_normalize(normalize),
          relu};
}

// The overload with `out` takes the size and the type of the maps from it.
inline void check_out(const Tensor& out, const Tensor& acts, const Tensor& weights) {
  STD_TORCH_CHECK(out.dim() == 3 && out.size(0) == weights.size(0) && out.is_contiguous(),
                  "cam_maps: out must be a contiguous [N, H, W]");
  check_beside(out, acts, "cam_maps");
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

// Shared by the CPU and the CUDA kernel of detcam::overlay: the checked arguments and which pixels a box
// holds.
#pragma once

#include <cmath>

#include "tensor.h"

namespace detcam {

constexpr int kLevels = 256;  // of the colour table
constexpr int kColours = 3;

struct Picture {
  int64_t frames, height, width;   // frames [B, H, W, 3]
  int64_t objects, rows, columns;  // maps [N, h, w]
  float opacity;
  bool ordered;  // objects are painted over one another; else the hottest wins
};

inline Picture check_overlay(const Tensor& frames, const Tensor& maps, const Tensor& lut,
                             const std::optional<Tensor>& index, const std::optional<Tensor>& window,
                             const std::optional<Tensor>& boxes, double opacity, const std::string& blend) {
  constexpr const char* kOp = "overlay";
  STD_TORCH_CHECK(frames.dim() == 4 && frames.size(3) == kColours && frames.scalar_type() == ScalarType::Byte,
                  "overlay: frames must be uint8 [B, H, W, 3]");
  STD_TORCH_CHECK(maps.dim() == 3 && maps.scalar_type() == ScalarType::Float,
                  "overlay: maps must be float32 [N, h, w]");
  STD_TORCH_CHECK(lut.dim() == 2 && lut.size(0) == kLevels && lut.size(1) == kColours &&
                      lut.scalar_type() == ScalarType::Byte,
                  "overlay: lut must be uint8 [256, 3]");
  const int64_t objects = maps.size(0);
  for (const int64_t side : {frames.size(1), frames.size(2), maps.size(1), maps.size(2)}) {
    check_side(side, kOp);
  }
  check_per_object(index, objects, 0, ScalarType::Long, kOp, "index");
  check_per_object(window, objects, 4, ScalarType::Float, kOp, "window");
  check_per_object(boxes, objects, 4, ScalarType::Float, kOp, "boxes");
  STD_TORCH_CHECK(index || frames.size(0) == 1 || objects == 0, "overlay: several frames need an index");
  for (const Tensor& tensor : {maps, lut}) check_beside(tensor, frames, kOp);
  for (const auto& tensor : {index, window, boxes}) check_beside(tensor, frames, kOp);
  STD_TORCH_CHECK(0 <= opacity && opacity <= 1, "overlay: opacity must be in [0, 1], got ", opacity);
  STD_TORCH_CHECK(blend == "max" || blend == "alpha", "overlay: unknown blend '", blend, "'");
  return {frames.size(0),
          frames.size(1),
          frames.size(2),
          objects,
          maps.size(1),
          maps.size(2),
          static_cast<float>(opacity),
          blend == "alpha"};
}

// Pixels [first, end) of one axis.
struct Span {
  int32_t first, end;

  DETCAM_ANYWHERE bool holds(int64_t pixel) const { return first <= pixel && pixel < end; }
  DETCAM_ANYWHERE bool meets(Span other) const { return first < other.end && other.first < end; }
  DETCAM_ANYWHERE bool empty() const { return first >= end; }
};

// The first pixel whose centre lies at or after `place`.
DETCAM_ANYWHERE inline int32_t first_after(float place, int64_t pixels) {
  const float first = std::ceil(place - 0.5f);
  return first > 0 ? (first < pixels ? static_cast<int32_t>(first) : static_cast<int32_t>(pixels)) : 0;
}

// The pixels whose centres lie in [from, to); none where either is NaN.
DETCAM_ANYWHERE inline Span pixels_between(float from, float to, int64_t pixels) {
  if (!(from < to)) return {0, 0};
  return {first_after(from, pixels), first_after(to, pixels)};
}

// The pixels of an object's box: all of the frame without boxes.
DETCAM_ANYWHERE inline Span box_across(const View<float, 2>& boxes, int64_t object, int64_t width) {
  if (!boxes.data) return {0, static_cast<int32_t>(width)};
  const float* box = boxes.data + object * boxes.strides[0];
  return pixels_between(box[0], box[2 * boxes.strides[1]], width);
}

DETCAM_ANYWHERE inline Span box_down(const View<float, 2>& boxes, int64_t object, int64_t height) {
  if (!boxes.data) return {0, static_cast<int32_t>(height)};
  const float* box = boxes.data + object * boxes.strides[0] + boxes.strides[1];
  return pixels_between(box[0], box[2 * boxes.strides[1]], height);
}

}  // namespace detcam

// Shared by the CPU and the CUDA kernel of detcam::elementwise_maps: the checked arguments and the formulas.
#pragma once

#include "tensor.h"

namespace detcam {

// The meaning of each is documented with detcam.ops.elementwise_maps.
enum class Mode { kProduct, kLayerCam, kGradCam, kGradCamPlusPlus, kXGradCam };

inline Mode parse_mode(const std::string& name) {
  if (name == "gradient-times-activation") return Mode::kProduct;
  if (name == "layercam") return Mode::kLayerCam;
  if (name == "gradcam") return Mode::kGradCam;
  if (name == "gradcam++") return Mode::kGradCamPlusPlus;
  STD_TORCH_CHECK(name == "xgradcam", "elementwise_maps: unknown mode '", name, "'");
  return Mode::kXGradCam;
}

struct Gradients {
  int64_t images;                            // acts [B, C, h, w]
  int64_t objects, channels, rows, columns;  // grads [N, C, h, w]
  Mode mode;

  DETCAM_ANYWHERE int64_t cells() const { return rows * columns; }
  // Whether the result is a map [N, h, w]; else it is a weight for each channel [N, C].
  DETCAM_ANYWHERE bool cellwise() const { return mode == Mode::kProduct || mode == Mode::kLayerCam; }
  // Without an index, each object has its own image, or all share one.
  DETCAM_ANYWHERE int64_t image(const View<int64_t, 1>& index, int64_t object) const {
    return index.data || images == 1 ? image_of(index, object) : object;
  }
};

inline Gradients check_elementwise_maps(const Tensor& acts, const Tensor& grads,
                                        const std::optional<Tensor>& index, const std::string& mode) {
  constexpr const char* kOp = "elementwise_maps";
  STD_TORCH_CHECK(acts.dim() == 4 && grads.dim() == 4,
                  "elementwise_maps: acts and grads must be [., C, h, w]");
  for (int dim = 1; dim < 4; ++dim) {
    STD_TORCH_CHECK(acts.size(dim) == grads.size(dim), "elementwise_maps: acts and grads differ in shape");
    check_side(acts.size(dim), kOp);
  }
  STD_TORCH_CHECK(acts.scalar_type() == grads.scalar_type(),
                  "elementwise_maps: acts and grads must share a dtype");
  const int64_t objects = grads.size(0);
  STD_TORCH_CHECK(index || acts.size(0) == 1 || acts.size(0) == objects,
                  "elementwise_maps: acts of several images need an index");
  check_per_object(index, objects, 0, ScalarType::Long, kOp, "index");
  check_beside(grads, acts, kOp);
  check_beside(index, acts, kOp);
  return {acts.size(0), objects, grads.size(1), grads.size(2), grads.size(3), parse_mode(mode)};
}

inline Tensor new_result(const Gradients& shape, const Tensor& grads) {
  const auto dtype = grads.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const std::array<int64_t, 3> maps{shape.objects, shape.rows, shape.columns};
  const std::array<int64_t, 2> weights{shape.objects, shape.channels};
  if (shape.cellwise()) return torch::stable::new_empty(grads, {maps.data(), maps.size()}, dtype);
  return torch::stable::new_empty(grads, {weights.data(), weights.size()}, dtype);
}

// The cells of every channel of acts or grads.
template <typename In>
struct Cells {
  View<In, 4> view;
  int columns;
  bool adjacent;  // cells of a channel lie one after the other

  Cells(const Tensor& tensor)
      : view(detcam::view<In, 4>(tensor)),
        columns(static_cast<int>(tensor.size(3))),
        adjacent((columns == 1 || view.strides[3] == 1) &&
                 (tensor.size(2) == 1 || view.strides[2] == columns)) {}

  DETCAM_ANYWHERE const In* channel(int64_t image, int64_t c) const {
    return view.data + image * view.strides[0] + c * view.strides[1];
  }
  template <typename Int>  // 32 bits where they suffice: the division is then a fraction of the cost
  DETCAM_ANYWHERE int64_t offset(Int cell) const {
    return adjacent ? cell : cell / columns * view.strides[2] + cell % columns * view.strides[3];
  }
};

// The term of one cell in a sum.
enum class Term { kActs, kGrads, kProduct, kPositiveProduct, kPlusPlus };

constexpr bool reads_acts(Term term) { return term != Term::kGrads; }
constexpr bool reads_grads(Term term) { return term != Term::kActs; }

// `total` is the sum of the channel's activations, for kPlusPlus. Comparisons are written so that NaN stays.
template <Term kTerm, typename Acc>
DETCAM_ANYWHERE inline Acc term(Acc act, Acc grad, Acc total) {
  if constexpr (kTerm == Term::kActs) return act;
  if constexpr (kTerm == Term::kGrads) return grad;
  if constexpr (kTerm == Term::kProduct) return act * grad;
  const Acc positive = grad < 0 ? Acc(0) : grad;
  if constexpr (kTerm == Term::kPositiveProduct) return act * positive;
  const Acc squared = grad * grad;
  return squared / (2 * squared + total * squared * grad + Acc(1e-6)) * positive;
}

template <Term kTerm>
using Kind = std::integral_constant<Term, kTerm>;

// The weight of a channel, from its sums: sum(Kind<...>(), total) takes one over the cells.
template <typename Acc, typename Sum>
DETCAM_ANYWHERE Acc channel_weight(const Gradients& shape, const Sum& sum) {
  if (shape.mode == Mode::kGradCam) {
    return sum(Kind<Term::kGrads>(), Acc(0)) / static_cast<Acc>(shape.cells());
  }
  const Acc total = sum(Kind<Term::kActs>(), Acc(0));
  if (shape.mode == Mode::kXGradCam) {
    return sum(Kind<Term::kProduct>(), Acc(0)) / (total + Acc(1e-7));
  }
  return sum(Kind<Term::kPlusPlus>(), total);
}

}  // namespace detcam

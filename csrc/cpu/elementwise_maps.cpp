// detcam::elementwise_maps on the CPU: activations and gradients are read once, a stretch of cells of one
// channel at a time, which stays in the first cache; nothing of their size is written.
#include <algorithm>
#include <array>
#include <vector>

#include "cpu/resize.h"
#include "elementwise_maps.h"

namespace detcam {
namespace {

constexpr int kTile = 2048;  // cells of a map whose sums stay in the first cache
constexpr int kLanes = 16;   // partial sums of a channel, added up in a fixed order
constexpr int kBlock = 16;   // channels that are copied together
constexpr int kWide = 64;    // channels that are summed together, where they lie one after the other

// ---- innermost loops ----------

template <Term kTerm, typename Acc>
DETCAM_CLONES void add_terms(const Acc* __restrict acts, const Acc* __restrict grads, int64_t count,
                             Acc* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += term<kTerm>(acts[i], grads[i], Acc(0));
}

template <Term kTerm, typename Acc>
DETCAM_CLONES Acc sum_terms(const Acc* __restrict acts, const Acc* __restrict grads, Acc total,
                            int64_t count) {
  Acc lanes[kLanes] = {};
  const auto add = [&](int lane, int64_t i) {
    lanes[lane] +=
        term<kTerm>(reads_acts(kTerm) ? acts[i] : Acc(0), reads_grads(kTerm) ? grads[i] : Acc(0), total);
  };
  int64_t start = 0;
  for (; start + kLanes <= count; start += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(lane, start + lane);
  }
  for (int lane = 0; start + lane < count; ++lane) add(lane, start + lane);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Sums over the cells of one row for each of `count` channels that lie one after the other, added to `sums`.
template <Term kTerm, typename In, typename Acc>
DETCAM_CLONES void add_row(const In* __restrict acts, int64_t act_step, const In* __restrict grads,
                           int64_t grad_step, const Acc* __restrict totals, int64_t cells, int64_t count,
                           Acc* __restrict sums) {
  Acc row[kWide] = {};
  const auto add = [&](int64_t cell, int64_t k) {
    const Acc act = reads_acts(kTerm) ? static_cast<Acc>(acts[cell * act_step + k]) : Acc(0);
    const Acc grad = reads_grads(kTerm) ? static_cast<Acc>(grads[cell * grad_step + k]) : Acc(0);
    row[k] += term<kTerm>(act, grad, kTerm == Term::kPlusPlus ? totals[k] : Acc(0));
  };
  for (int64_t cell = 0; cell < cells; ++cell) {
    if (count == kWide) {
      for (int64_t k = 0; k < kWide; ++k) add(cell, k);
    } else {
      for (int64_t k = 0; k < count; ++k) add(cell, k);
    }
  }
  for (int64_t k = 0; k < count; ++k) sums[k] += row[k];
}

template <typename In, typename Acc>
DETCAM_CLONES void convert(const In* __restrict source, int64_t count, Acc* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Acc>(source[i]);
}

// ---- run by each thread ----------

// Reads cells of one channel as Acc: where they lie, or from a copy.
template <typename In, typename Acc>
class Reader {
 public:
  Reader(const Cells<In>& cells, int64_t channels) : cells_(cells), channels_(channels) {}

  // Cells [first, first + count); the copy serves until another stretch of cells is asked for.
  const Acc* read(int64_t image, int64_t c, int64_t first, int64_t count) {
    if (cells_.adjacent) return converted(cells_.channel(image, c) + first, count);
    if (image != image_ || first != first_ || c < c_ || c >= c_ + kBlock) gather(image, c, first, count);
    return copy_.data() + (c - c_) * pitch(count);
  }

  // All channels of one cell, where they lie one after the other.
  const Acc* read_channels(int64_t image, int64_t cell) {
    return converted(cells_.channel(image, 0) + cells_.offset(cell), channels_);
  }

 private:
  const Acc* converted(const In* source, int64_t count) {
    if constexpr (std::is_same_v<In, Acc>) return source;
    copy_.resize(count);
    convert(source, count, copy_.data());
    return copy_.data();
  }

  // Cells that lie apart are read for several channels at once: with channels last, these share a cache line.
  void gather(int64_t image, int64_t c, int64_t first, int64_t count) {
    image_ = image, c_ = c, first_ = first;
    copy_.resize(kBlock * pitch(count));
    const int64_t block = std::min<int64_t>(kBlock, channels_ - c);
    for (int64_t i = 0; i < count; ++i) {
      const In* source = cells_.channel(image, c) + cells_.offset(first + i);
      for (int64_t k = 0; k < block; ++k) {
        copy_[k * pitch(count) + i] = static_cast<Acc>(source[k * cells_.view.strides[1]]);
      }
    }
  }

  // Off the powers of two, at which all channels would fall into one set of the cache.
  static int64_t pitch(int64_t count) { return count + kBlock; }

  const Cells<In>& cells_;
  int64_t channels_;
  std::vector<Acc> copy_;
  int64_t image_ = -1, c_ = 0, first_ = 0;  // the cells in the copy
};

// Whether all channels of a cell lie one after the other.
template <typename In>
bool are_last(const Gradients& shape, const Cells<In>& acts, const Cells<In>& grads) {
  return acts.view.strides[1] == 1 && grads.view.strides[1] == 1 && shape.cells() > 1;
}

template <Term kTerm, typename In, typename Acc>
void write_maps(const Gradients& shape, const Cells<In>& acts, const Cells<In>& grads,
                const std::vector<int64_t>& images, Acc* maps) {
  const int64_t tiles = (shape.cells() + kTile - 1) / kTile;
  const int64_t work = shape.channels * std::min<int64_t>(kTile, shape.cells());
  const bool channels_last = are_last(shape, acts, grads);
  torch::stable::parallel_for(0, shape.objects * tiles, grain(work), [&](int64_t begin, int64_t end) {
    Reader<In, Acc> act_reader(acts, shape.channels), grad_reader(grads, shape.channels);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t object = job / tiles, first = job % tiles * kTile;
      const int64_t count = std::min<int64_t>(kTile, shape.cells() - first);
      Acc sums[kTile] = {};
      if (channels_last) {
        for (int64_t i = 0; i < count; ++i) {
          sums[i] = sum_terms<kTerm>(act_reader.read_channels(images[object], first + i),
                                     grad_reader.read_channels(object, first + i), Acc(0), shape.channels);
        }
      } else {
        for (int64_t c = 0; c < shape.channels; ++c) {
          add_terms<kTerm>(act_reader.read(images[object], c, first, count),
                           grad_reader.read(object, c, first, count), count, sums);
        }
      }
      std::copy_n(sums, count, maps + object * shape.cells() + first);
    }
  });
}

template <typename In, typename Acc>
void write_weights(const Gradients& shape, const Cells<In>& acts, const Cells<In>& grads,
                   const std::vector<int64_t>& images, Acc* weights) {
  const int64_t jobs = shape.objects * shape.channels;
  torch::stable::parallel_for(0, jobs, grain(4 * shape.cells()), [&](int64_t begin, int64_t end) {
    Reader<In, Acc> act_reader(acts, shape.channels), grad_reader(grads, shape.channels);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t object = job / shape.channels, c = job % shape.channels;
      const bool pooled = shape.mode == Mode::kGradCam;
      const Acc* a = pooled ? nullptr : act_reader.read(images[object], c, 0, shape.cells());
      const Acc* g = grad_reader.read(object, c, 0, shape.cells());
      weights[job] = channel_weight<Acc>(shape, [&](auto kind, Acc total) {
        return sum_terms<decltype(kind)::value>(a, g, total, shape.cells());
      });
    }
  });
}

// The same where all channels of a cell lie one after the other: kWide of them at a time.
template <typename In, typename Acc>
void write_weights_of_last(const Gradients& shape, const Cells<In>& acts, const Cells<In>& grads,
                           const std::vector<int64_t>& images, Acc* weights) {
  const int64_t blocks = (shape.channels + kWide - 1) / kWide;
  const int64_t jobs = shape.objects * blocks;
  torch::stable::parallel_for(0, jobs, grain(4 * kWide * shape.cells()), [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t object = job / blocks, first = job % blocks * kWide;
      const int64_t count = std::min<int64_t>(kWide, shape.channels - first);
      Acc totals[kWide] = {}, sums[kWide] = {};
      const auto add = [&](auto kind, Acc* out) {
        for (int64_t row = 0; row < shape.rows; ++row) {
          add_row<decltype(kind)::value>(
              acts.channel(images[object], first) + row * acts.view.strides[2], acts.view.strides[3],
              grads.channel(object, first) + row * grads.view.strides[2], grads.view.strides[3], totals,
              shape.columns, count, out);
        }
      };
      if (shape.mode != Mode::kGradCam) add(Kind<Term::kActs>(), totals);
      if (shape.mode == Mode::kGradCam) add(Kind<Term::kGrads>(), sums);
      if (shape.mode == Mode::kXGradCam) add(Kind<Term::kProduct>(), sums);
      if (shape.mode == Mode::kGradCamPlusPlus) add(Kind<Term::kPlusPlus>(), sums);
      for (int64_t k = 0; k < count; ++k) {
        const auto sum = [&](auto kind, Acc) {
          return decltype(kind)::value == Term::kActs ? totals[k] : sums[k];
        };
        weights[object * shape.channels + first + k] = channel_weight<Acc>(shape, sum);
      }
    }
  });
}

// ---- the operator ----------

std::vector<int64_t> find_images(const Gradients& shape, const View<int64_t, 1>& index) {
  std::vector<int64_t> images(shape.objects);
  for (int64_t n = 0; n < shape.objects; ++n) {
    images[n] = shape.image(index, n);
    STD_TORCH_CHECK(0 <= images[n] && images[n] < shape.images, "elementwise_maps: index ", images[n],
                    " is outside [0, ", shape.images, ")");
  }
  return images;
}

Tensor elementwise_maps(const Tensor& acts, const Tensor& grads, const std::optional<Tensor>& index,
                        const std::string& mode) {
  const Gradients shape = check_elementwise_maps(acts, grads, index, mode);
  const auto images = find_images(shape, view<int64_t, 1>(index));
  Tensor result = new_result(shape, grads);
  if (shape.objects == 0) return result;
  with_input_type(grads.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using Acc = Accumulator<In>;
    const Cells<In> a(acts), g(grads);
    auto* out = static_cast<Acc*>(result.mutable_data_ptr());
    if (shape.mode == Mode::kProduct) return write_maps<Term::kProduct>(shape, a, g, images, out);
    if (shape.mode == Mode::kLayerCam) return write_maps<Term::kPositiveProduct>(shape, a, g, images, out);
    if (are_last(shape, a, g)) return write_weights_of_last(shape, a, g, images, out);
    write_weights(shape, a, g, images, out);
  });
  return result;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CPU, m) {
  m.impl("elementwise_maps", TORCH_BOX(&detcam::elementwise_maps));
}

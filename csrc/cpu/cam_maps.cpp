// detcam::cam_maps on the CPU. The output is tens of times larger than everything that is read, so the work
// is arranged around writing each pixel once, in order, at the speed of memory:
//   1. weighted sums per cell, each tile of activations read once for all objects of its image;
//   2. ranges, then normalisation of the cells (a few thousand values, where a division costs nothing);
//   3. each row of cells is stretched to the output's width once, and every output row blends two of those.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cam_maps.h"
#include "cpu/resize.h"
#include "cpu/weighted_sums.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detcam {
namespace {

constexpr int64_t kPixelWork = 4;  // a pixel is read, blended, confined and stored

// ---- innermost loops ----------

template <typename Out, typename Acc>
inline Out convert(Acc value) {
  if constexpr (std::is_same_v<Out, uint8_t>) return static_cast<Out>(static_cast<int>(std::rint(value)));
  if constexpr (!std::is_same_v<Out, uint8_t>) return static_cast<Out>(value);
}

template <typename Out, typename Acc>
DETCAM_CLONES void blend_rows(const Acc* __restrict top, const Acc* __restrict bottom, Acc fraction,
                              int64_t width, Acc low, Acc high, Out* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    out[x] = convert<Out>(confine(top[x] + fraction * (bottom[x] - top[x]), low, high));
  }
}

template <typename Acc>
DETCAM_CLONES void widen_range(const Acc* __restrict row, int64_t width, Acc* __restrict low,
                               Acc* __restrict high) {
  for (int64_t x = 0; x < width; ++x) {
    low[x] = row[x] < low[x] ? row[x] : low[x];
    high[x] = row[x] > high[x] ? row[x] : high[x];
  }
}

// ---- step 3: resize ----------

// Writes the output rows of one map after another.
template <typename Acc>
class RowWriter {
 public:
  RowWriter(const Shape& shape, const View<float, 2>& window) : shape_(shape), window_(window) {}

  void open(int64_t object, const Acc* cells) {
    std::array<float, 4> box{0, 0, static_cast<float>(shape_.columns), static_cast<float>(shape_.rows)};
    if (window_.data) {
      for (int i = 0; i < 4; ++i) box[i] = window_.data[object * window_.strides[0] + i * window_.strides[1]];
    }
    if (box != box_) {  // rare: one window for all is the usual case
      across_.aim(box[0], box[2], shape_.columns, shape_.width);
      down_.aim(box[1], box[3], shape_.rows, shape_.height);
      box_ = box;
    }
    rows_.open(cells, shape_.columns, across_, 0, shape_.width);
  }

  template <typename Out>
  void write(int64_t y, Acc low, Acc high, Out* out) {
    const Acc* top = rows_[down_.from[y]];
    const Acc* bottom = rows_[down_.from[y] + down_.step];
    blend_rows(top, bottom, down_.fraction[y], shape_.width, low, high, out);
  }

 private:
  const Shape& shape_;
  View<float, 2> window_;
  std::array<float, 4> box_{-1, -1, -1, -1};
  Taps<Acc> across_, down_;
  StretchedRows<Acc> rows_;
};

template <typename Out, typename Acc>
void write_maps(const Shape& shape, const View<float, 2>& window, const std::vector<Acc>& cells,
                const Limits<Acc>& limits, Out* maps) {
  torch::stable::parallel_for(
      0, shape.objects * shape.height, grain(kPixelWork * shape.width), [&](int64_t begin, int64_t end) {
        RowWriter<Acc> writer(shape, window);
        for (int64_t row = begin; row < end;) {
          const int64_t object = row / shape.height, stop = std::min(end, (object + 1) * shape.height);
          writer.open(object, cells.data() + object * shape.cells());
          for (int64_t y = row % shape.height; row < stop; ++row, ++y) {
            writer.write(y, limits.low, limits.high, maps + row * shape.width);
          }
        }
      });
}

// ---- step 2: normalisation ----------

template <typename Acc>
struct Range {
  Acc low = std::numeric_limits<Acc>::max();
  Acc high = std::numeric_limits<Acc>::lowest();

  void include(const Range& other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
};

// The range of all rows that `next(y)` returns, which may use the same memory for each.
template <typename Acc, typename Next>
Range<Acc> range_of_rows(int64_t rows, int64_t width, const Next& next) {
  std::vector<Acc> low(width, Range<Acc>().low), high(width, Range<Acc>().high);
  for (int64_t y = 0; y < rows; ++y) widen_range(next(y), width, low.data(), high.data());
  return {*std::min_element(low.begin(), low.end()), *std::max_element(high.begin(), high.end())};
}

template <typename Acc>
std::vector<Range<Acc>> find_ranges(const Shape& shape, const View<int64_t, 1>& index,
                                    const View<float, 2>& window, const std::vector<Acc>& cells) {
  std::vector<Range<Acc>> ranges(shape.objects);
  const int64_t work = shape.ranges_over_pixels() ? kPixelWork * shape.height * shape.width : shape.cells();
  torch::stable::parallel_for(0, shape.objects, grain(work), [&](int64_t begin, int64_t end) {
    RowWriter<Acc> writer(shape, window);
    std::vector<Acc> pixels(shape.width);
    const Range<Acc> everything{std::numeric_limits<Acc>::lowest(), std::numeric_limits<Acc>::max()};
    for (int64_t n = begin; n < end; ++n) {
      const Acc* map = cells.data() + n * shape.cells();
      if (shape.ranges_over_pixels()) {
        writer.open(n, map);
        ranges[n] = range_of_rows<Acc>(shape.height, shape.width, [&](int64_t y) {
          writer.write(y, everything.low, everything.high, pixels.data());
          return pixels.data();
        });
      } else {
        ranges[n] =
            range_of_rows<Acc>(shape.rows, shape.columns, [&](int64_t y) { return map + y * shape.columns; });
      }
      if (shape.normalize == Normalize::kMax) ranges[n].low = 0;
    }
  });
  if (shape.normalize != Normalize::kImage) return ranges;

  std::vector<Range<Acc>> of_image(shape.images);
  for (int64_t n = 0; n < shape.objects; ++n) of_image[image_of(index, n)].include(ranges[n]);
  for (int64_t n = 0; n < shape.objects; ++n) ranges[n] = of_image[image_of(index, n)];
  return ranges;
}

template <typename Acc>
void normalize_cells(const Shape& shape, const std::vector<Range<Acc>>& ranges, Acc one,
                     std::vector<Acc>& cells) {
  torch::stable::parallel_for(0, shape.objects, grain(shape.cells()), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Acc low = ranges[n].low, span = ranges[n].high - low;
      const bool usable = span > 0 && std::isfinite(span);
      Acc* map = cells.data() + n * shape.cells();
      for (int64_t i = 0; i < shape.cells(); ++i) map[i] = usable ? (map[i] - low) / span * one : Acc(0);
    }
  });
}

// ---- the operator ----------

// A fresh output costs a page fault per 4 KiB, several times the work itself; ask for large pages instead.
void prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
#else
  (void)data, (void)bytes;
#endif
}

void cam_maps_out(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                  const std::optional<Tensor>& window, const std::string& normalize, bool relu,
                  const Tensor& out) {
  check_out(out, acts, weights);
  const Shape shape =
      check_arguments(acts, weights, index, window, out.size(1), out.size(2), normalize, relu);
  if (shape.objects == 0) return;
  const auto indices = view<int64_t, 1>(index);
  const auto windows = view<float, 2>(window);

  with_input_type(acts.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using Acc = Accumulator<In>;
    auto cells = weighted_sums<In, Acc>(shape, view<In, 4>(acts), view<In, 2>(weights), indices);
    with_output_type(out.scalar_type(), [&](auto pixel) {
      using Out = decltype(pixel);
      const auto limits = output_limits<Out, Acc>(shape.normalize, relu);
      if (shape.normalize != Normalize::kNone) {
        normalize_cells(shape, find_ranges(shape, indices, windows, cells), limits.one, cells);
      }
      write_maps(shape, windows, cells, limits, static_cast<Out*>(out.mutable_data_ptr()));
    });
  });
}

Tensor cam_maps(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                const std::optional<Tensor>& window, int64_t height, int64_t width,
                const std::string& normalize, bool relu, ScalarType dtype) {
  const std::array<int64_t, 3> sizes{weights.size(0), height, width};
  const Tensor maps = torch::stable::new_empty(acts, {sizes.data(), sizes.size()}, dtype);
  prefer_large_pages(maps.mutable_data_ptr(), maps.numel() * static_cast<int64_t>(maps.element_size()));
  cam_maps_out(acts, weights, index, window, normalize, relu, maps);
  return maps;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CPU, m) {
  m.impl("cam_maps", TORCH_BOX(&detcam::cam_maps));
  m.impl("cam_maps.out", TORCH_BOX(&detcam::cam_maps_out));
}

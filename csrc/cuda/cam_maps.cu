// detcam::cam_maps on CUDA, in two launches without a host sync, so that a CUDA graph can capture them:
//   1. sum_cells: weighted sums per cell, and the range of each tile of cells;
//   2. write_maps: ranges of tiles joined, cells normalised as they are read, 16 bytes of pixels per store.
// Every sum and every range is taken in a fixed order: the result is the same bit for bit on every run.
#include "cam_maps.h"
#include "cuda/device.h"

namespace detcam {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = kWarp;              // cells per block of sum_cells: a warp per object finishes the tile
constexpr int kGroup = kThreads / kTile;  // objects per block of sum_cells
constexpr int kSlices = kThreads / kTile;  // shares of the channels, summed side by side
constexpr int kChunk = 64;                 // channels whose weights are in shared memory at once
constexpr int kStrip = 8;                  // rows of pixels that a thread of write_maps writes
constexpr int kVectorBytes = 16;

template <typename Acc>
struct Range {
  Acc low, high;

  static __device__ Range none() {
    constexpr Acc kLargest = std::numeric_limits<Acc>::max();
    return {kLargest, -kLargest};
  }
  __device__ void include(Range other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
  }
};

template <typename Acc>
__device__ Range<Acc> join_warp(Range<Acc> range) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    range.include({__shfl_xor_sync(kAll, range.low, offset), __shfl_xor_sync(kAll, range.high, offset)});
  }
  return range;
}

// The range over all threads of the block, returned to every thread.
template <typename Acc>
__device__ Range<Acc> join_block(Range<Acc> range) {
  __shared__ Range<Acc> of_warp[kThreads / kWarp];
  range = join_warp(range);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = range;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; ++warp) range.include(of_warp[warp]);
  __syncthreads();  // of_warp may be used again
  return range;
}

// ---- launch 1 ----------

// A block sums one tile of cells for kGroup objects. Thread (slice, lane) takes every kSlices-th channel of
// cell `lane` for all objects of the group; then warp k joins the slices of object k.
template <typename In, typename Acc>
__global__ void __launch_bounds__(kThreads)
    sum_cells(Shape shape, View<In, 4> acts, View<In, 2> weights, View<int64_t, 1> index,
              Acc* __restrict__ cells /* [N, h * w] */, Range<Acc>* __restrict__ ranges /* [N, tiles] */) {
  __shared__ Acc weight[kChunk][kGroup];
  __shared__ Acc partial[kSlices][kGroup][kTile];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t tiles = divide_up(shape.cells(), kTile);
  const int64_t tile = blockIdx.x % tiles, first = blockIdx.x / tiles * kGroup;
  const int64_t cell = tile * kTile + lane;
  const bool inside = cell < shape.cells();

  const In* source[kGroup];  // the cell in the first channel of each object's image
  bool one_image = true;
  for (int k = 0; k < kGroup; ++k) {
    const int64_t image = image_of(index, min(first + k, shape.objects - 1));
    assert(0 <= image && image < shape.images && "cam_maps: index out of range");
    const int64_t row = inside ? cell / shape.columns : 0, column = inside ? cell % shape.columns : 0;
    source[k] = acts.data + image * acts.strides[0] + row * acts.strides[2] + column * acts.strides[3];
    one_image &= source[k] == source[0];
  }

  Acc sums[kGroup] = {};
  for (int64_t chunk = 0; chunk < shape.channels; chunk += kChunk) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), shape.channels - chunk));
    for (int i = threadIdx.x; i < kChunk * kGroup; i += kThreads) {
      const int c = i % kChunk, k = i / kChunk;  // neighbouring threads read neighbouring channels
      const bool exists = c < count && first + k < shape.objects;
      weight[c][k] =
          exists ? static_cast<Acc>(
                       weights.data[(first + k) * weights.strides[0] + (chunk + c) * weights.strides[1]])
                 : Acc(0);
    }
    __syncthreads();
    if (inside && one_image) {
#pragma unroll 8
      for (int c = slice; c < count; c += kSlices) {
        const Acc value = static_cast<Acc>(source[0][(chunk + c) * acts.strides[1]]);
        for (int k = 0; k < kGroup; ++k) sums[k] += weight[c][k] * value;
      }
    } else if (inside) {
      for (int c = slice; c < count; c += kSlices) {
        for (int k = 0; k < kGroup; ++k) {
          sums[k] += weight[c][k] * static_cast<Acc>(source[k][(chunk + c) * acts.strides[1]]);
        }
      }
    }
    __syncthreads();
  }
  for (int k = 0; k < kGroup; ++k) partial[slice][k][lane] = sums[k];
  __syncthreads();

  const int64_t object = first + slice;
  if (object >= shape.objects) return;  // a whole warp
  Acc sum = 0;
  for (int s = 0; s < kSlices; ++s) sum += partial[s][slice][lane];
  if (!isfinite(sum) || (shape.relu && sum < 0)) sum = 0;
  if (inside) cells[object * shape.cells() + cell] = sum;
  const Range<Acc> range = join_warp(inside ? Range<Acc>{sum, sum} : Range<Acc>::none());
  if (lane == 0) ranges[object * tiles + tile] = range;
}

// ---- launch 2 ----------

template <typename Out, typename Acc>
__device__ Out convert(Acc value) {
  if constexpr (std::is_same_v<Out, uint8_t>) {
    return static_cast<Out>(rint(value));
  } else {
    return static_cast<Out>(value);
  }
}

template <typename Acc>
struct Scale {
  Acc low = 0, span = 1, one = 1;

  __device__ Acc operator()(Acc value) const { return (value - low) / span * one; }
};

// One object's map, resized. The unit of work is a strip: kVector columns by kStrip rows, walked from top to
// bottom so that cells are read only where the walk enters a new row of them.
template <typename Acc, int kVector>
struct Resizer {
  const Acc* cells;
  int columns, height, width, groups;
  Axis<Acc> across, down;

  __device__ Resizer(const Shape& shape, const Acc* cells, const float (&box)[4])
      : cells(cells),
        columns(shape.columns),
        height(shape.height),
        width(shape.width),
        groups(divide_up(shape.width, kVector)),
        across(box[0], box[2], shape.columns, shape.width),
        down(box[1], box[3], shape.rows, shape.height) {}

  __device__ int strips() const { return groups * ((height + kStrip - 1) / kStrip); }

  // Calls use(y, x, values) for each row of the strip; values beyond the right border repeat the last column.
  template <typename Use>
  __device__ void walk(int strip, const Scale<Acc>& scale, const Use& use) const {
    const int x = strip % groups * kVector, first = strip / groups * kStrip;
    const int end = min(first + kStrip, height);
    Acc above[kVector], below[kVector];
    int held = -1;
    for (int y = first; y < end; ++y) {
      int row, next;
      const Acc fraction = down.locate(y, row, next);
      if (row != held) {
        read_row(x, row, scale, above);
        read_row(x, next, scale, below);
        held = row;
      }
      Acc values[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = blend(above[i], below[i], fraction);
      use(y, x, values);
    }
  }

  __device__ void read_row(int x, int row, const Scale<Acc>& scale, Acc (&out)[kVector]) const {
    const Acc* source = cells + static_cast<int64_t>(row) * columns;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      int cell, next;
      const Acc fraction = across.locate(min(x + i, width - 1), cell, next);
      out[i] = scale(blend(source[cell], source[next], fraction));
    }
  }
};

template <typename Acc, int kVector>
__device__ Range<Acc> find_range(const Shape& shape, const View<int64_t, 1>& index, int64_t object,
                                 const Range<Acc>* ranges, const Resizer<Acc, kVector>& resizer) {
  const int tiles = divide_up(shape.cells(), kTile);
  Range<Acc> range = Range<Acc>::none();
  if (shape.ranges_over_pixels()) {
    for (int strip = threadIdx.x; strip < resizer.strips(); strip += kThreads) {
      resizer.walk(strip, Scale<Acc>{}, [&](int, int, const Acc(&values)[kVector]) {
        for (int i = 0; i < kVector; ++i) range.include({values[i], values[i]});
      });
    }
  } else if (shape.normalize == Normalize::kImage) {
    const int64_t image = image_of(index, object);
    for (int64_t other = threadIdx.x / kWarp; other < shape.objects; other += kThreads / kWarp) {
      if (image_of(index, other) != image) continue;
      for (int i = threadIdx.x % kWarp; i < tiles; i += kWarp) range.include(ranges[other * tiles + i]);
    }
  } else {
    for (int i = threadIdx.x; i < tiles; i += kThreads) range.include(ranges[object * tiles + i]);
  }
  range = join_block(range);
  if (shape.normalize == Normalize::kMax) range.low = 0;
  return range;
}

template <typename Out, int kVector>
struct alignas(sizeof(Out) * kVector) Packet {
  Out values[kVector];
};

// A block writes `share` strips of one object.
template <typename Out, typename Acc>
__global__ void __launch_bounds__(kThreads, 1)
    write_maps(Shape shape, View<int64_t, 1> index, View<float, 2> window, const Acc* __restrict__ cells,
               const Range<Acc>* __restrict__ ranges, Limits<Acc> limits, int share, Out* __restrict__ maps) {
  constexpr int kVector = kVectorBytes / sizeof(Out);
  const int strips = divide_up(shape.width, kVector) * divide_up(shape.height, kStrip);
  const int blocks = divide_up(strips, share);
  const int64_t object = blockIdx.x / blocks;
  const int first = blockIdx.x % blocks * share, end = min(first + share, strips);
  float box[4] = {0, 0, static_cast<float>(shape.columns), static_cast<float>(shape.rows)};
  if (window.data) {
    for (int i = 0; i < 4; ++i) box[i] = window.data[object * window.strides[0] + i * window.strides[1]];
  }
  const Resizer<Acc, kVector> resizer(shape, cells + object * shape.cells(), box);

  Scale<Acc> scale;
  if (shape.normalize != Normalize::kNone) {
    const Range<Acc> range = find_range(shape, index, object, ranges, resizer);
    const Acc span = range.high - range.low;
    const bool usable = span > 0 && isfinite(span);
    scale = {usable ? range.low : Acc(0), usable ? span : Acc(1), usable ? limits.one : Acc(0)};
  }
  const bool aligned =
      resizer.width % kVector == 0 && reinterpret_cast<uintptr_t>(maps) % sizeof(Packet<Out, kVector>) == 0;
  Out* map = maps + object * shape.height * shape.width;
  for (int strip = first + threadIdx.x; strip < end; strip += kThreads) {
    resizer.walk(strip, scale, [&](int y, int x, const Acc(&values)[kVector]) {
      Packet<Out, kVector> packet;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        packet.values[i] = convert<Out>(confine(values[i], limits.low, limits.high));
      }
      Out* out = map + y * shape.width + x;
      if (aligned) {
        *reinterpret_cast<Packet<Out, kVector>*>(out) = packet;
      } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if (x + i < resizer.width) out[i] = packet.values[i];
        }
      }
    });
  }
}

// ---- the operator ----------

template <typename In, typename Acc>
void launch_sums(const Shape& shape, const Tensor& acts, const Tensor& weights, const View<int64_t, 1>& index,
                 Acc* cells, Range<Acc>* ranges, cudaStream_t stream) {
  const int blocks = checked_count(divide_up(shape.cells(), kTile) * divide_up(shape.objects, kGroup));
  sum_cells<In, Acc>
      <<<blocks, kThreads, 0, stream>>>(shape, view<In, 4>(acts), view<In, 2>(weights), index, cells, ranges);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename Out, typename Acc>
void launch_maps(const Shape& shape, const View<int64_t, 1>& index, const View<float, 2>& window,
                 const Acc* cells, const Range<Acc>* ranges, Out* maps, cudaStream_t stream) {
  const int strips =
      checked_count(divide_up(shape.width, kVectorBytes / sizeof(Out)) * divide_up(shape.height, kStrip));
  // A range over pixels needs all of them: one block then takes the whole map, rather than a third launch.
  const int share = shape.ranges_over_pixels() ? strips : kThreads;
  const int blocks = checked_count(shape.objects * divide_up(strips, share));
  write_maps<Out, Acc><<<blocks, kThreads, 0, stream>>>(
      shape, index, window, cells, ranges, output_limits<Out, Acc>(shape.normalize, shape.relu), share, maps);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void cam_maps_out(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                  const std::optional<Tensor>& window, const std::string& normalize, bool relu,
                  const Tensor& out) {
  check_out(out, acts, weights);
  const Shape shape =
      check_arguments(acts, weights, index, window, out.size(1), out.size(2), normalize, relu);
  if (shape.objects == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(acts.get_device_index());
  const cudaStream_t stream = current_stream(acts.get_device_index());
  const auto indices = view<int64_t, 1>(index);

  with_input_type(acts.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using Acc = Accumulator<In>;
    const int64_t cell_count = shape.objects * shape.cells();
    const int64_t range_count = shape.objects * divide_up(shape.cells(), kTile);
    const int64_t scratch_size = cell_count + 2 * range_count + 1;
    const auto acc_type = std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float;
    const Tensor scratch = torch::stable::new_empty(acts, {&scratch_size, 1}, acc_type);
    // The ranges come first: pairs, so that they are aligned whatever the number of cells.
    auto* ranges = static_cast<Range<Acc>*>(scratch.mutable_data_ptr());
    auto* cells = static_cast<Acc*>(scratch.mutable_data_ptr()) + 2 * range_count;
    launch_sums<In, Acc>(shape, acts, weights, indices, cells, ranges, stream);
    with_output_type(out.scalar_type(), [&](auto pixel) {
      using Out = decltype(pixel);
      launch_maps<Out, Acc>(shape, indices, view<float, 2>(window), cells, ranges,
                            static_cast<Out*>(out.mutable_data_ptr()), stream);
    });
  });
}

Tensor cam_maps(const Tensor& acts, const Tensor& weights, const std::optional<Tensor>& index,
                const std::optional<Tensor>& window, int64_t height, int64_t width,
                const std::string& normalize, bool relu, ScalarType dtype) {
  const std::array<int64_t, 3> sizes{weights.size(0), height, width};
  const Tensor maps = torch::stable::new_empty(acts, {sizes.data(), sizes.size()}, dtype);
  cam_maps_out(acts, weights, index, window, normalize, relu, maps);
  return maps;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CUDA, m) {
  m.impl("cam_maps", TORCH_BOX(&detcam::cam_maps));
  m.impl("cam_maps.out", TORCH_BOX(&detcam::cam_maps_out));
}

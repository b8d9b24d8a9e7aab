// detcam::overlay on CUDA, in one launch without scratch memory and without a host sync. A block paints a
// tile of one frame: it first lists the objects whose boxes meet the tile, in order, then every thread takes
// its pixels through that list and writes them once.
#include "cuda/device.h"
#include "overlay.h"

namespace detcam {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;  // of a thread, side by side: 12 bytes
constexpr int kTileWidth = kWarp * kPixels;
constexpr int kTileHeight = kThreads / kWarp;
static_assert(kThreads == kLevels, "each thread brings one colour of the table");

// An object in the list of a tile.
struct Layer {
  Axis<float> across, down;
  Span columns, rows;
  int64_t object;
};

struct alignas(4) Packet {
  uint8_t values[kPixels * kColours];
};

// Appends the threads' items in the order of the threads, and returns their number.
__device__ int collect(bool wanted, const Layer& layer, Layer* list) {
  __shared__ int counts[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned votes = __ballot_sync(kAll, wanted);
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int place = __popc(votes & ((1u << lane) - 1)), total = 0;
  for (int other = 0; other < kThreads / kWarp; ++other) {
    if (other < warp) place += counts[other];
    total += counts[other];
  }
  if (wanted) list[place] = layer;
  __syncthreads();
  return total;
}

__device__ Layer read_layer(const Picture& picture, const View<float, 2>& window, const View<float, 2>& boxes,
                            int64_t object) {
  float view[4] = {0, 0, static_cast<float>(picture.columns), static_cast<float>(picture.rows)};
  if (window.data) {
    for (int i = 0; i < 4; ++i) view[i] = window.data[object * window.strides[0] + i * window.strides[1]];
  }
  return {Axis<float>(view[0], view[2], picture.columns, picture.width),
          Axis<float>(view[1], view[3], picture.rows, picture.height),
          box_across(boxes, object, picture.width), box_down(boxes, object, picture.height), object};
}

// The heat of one object at the thread's pixels, 0 outside its box.
__device__ void sample(const Layer& layer, const View<float, 3>& maps, int x, int y, float (&heat)[kPixels]) {
  int row, below;
  const float down = layer.down.locate(y, row, below);
  const float* top = maps.data + layer.object * maps.strides[0] + row * maps.strides[1];
  const float* bottom = top + (below - row) * maps.strides[1];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    int column, next;
    const float across = layer.across.locate(x + i, column, next);
    const auto cell = [&](const float* cells, int at) {
      return confine(cells[at * maps.strides[2]], 0.0f, 1.0f);
    };
    const float upper = blend(cell(top, column), cell(top, next), across);
    const float lower = blend(cell(bottom, column), cell(bottom, next), across);
    heat[i] = layer.columns.holds(x + i) ? blend(upper, lower, down) : 0.0f;
  }
}

__device__ void lay_colour(const float (&heat)[kPixels], const uint32_t* colours, float opacity,
                           float (&canvas)[kPixels][kColours]) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const float cover = opacity * sqrtf(heat[i]);
    const uint32_t colour = colours[static_cast<int>(rintf(heat[i] * 255.0f))];
#pragma unroll
    for (int c = 0; c < kColours; ++c) {
      canvas[i][c] = blend(canvas[i][c], static_cast<float>(colour >> 8 * c & 255), cover);
    }
  }
}

// `packed`: rows of the frames can be read, and those of the result written, four bytes at a time.
template <bool kOrdered>
__global__ void __launch_bounds__(kThreads, 1)
    paint(Picture picture, View<uint8_t, 4> frames, View<float, 3> maps, View<uint8_t, 2> lut,
          View<int64_t, 1> index, View<float, 2> window, View<float, 2> boxes, bool packed,
          uint8_t* __restrict__ result /* [B, H, W, 3] */) {
  __shared__ uint32_t colours[kLevels];
  __shared__ Layer list[kThreads];
  const int tiles_across = divide_up(picture.width, kTileWidth);
  const int tiles = tiles_across * static_cast<int>(divide_up(picture.height, kTileHeight));
  const int64_t frame = blockIdx.x / tiles;
  const int left = blockIdx.x % tiles % tiles_across * kTileWidth;
  const int top = blockIdx.x % tiles / tiles_across * kTileHeight;
  const int x = left + threadIdx.x % kWarp * kPixels, y = top + threadIdx.x / kWarp;
  const bool inside = x < picture.width && y < picture.height;

  const uint8_t* level = lut.data + threadIdx.x * lut.strides[0];
  colours[threadIdx.x] =
      level[0] | uint32_t{level[lut.strides[1]]} << 8 | uint32_t{level[2 * lut.strides[1]]} << 16;

  Packet packet = {};
  const uint8_t* source =
      frames.data + frame * frames.strides[0] + y * frames.strides[1] + x * frames.strides[2];
  if (inside && packed) {
    packet = *reinterpret_cast<const Packet*>(source);
  } else if (inside) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      for (int c = 0; c < kColours && x + i < picture.width; ++c) {
        packet.values[i * kColours + c] = source[i * frames.strides[2] + c * frames.strides[3]];
      }
    }
  }
  float canvas[kPixels][kColours], heat[kPixels] = {};
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    for (int c = 0; c < kColours; ++c) canvas[i][c] = packet.values[i * kColours + c];
  }

  for (int64_t first = 0; first < picture.objects; first += kThreads) {
    const int64_t object = first + threadIdx.x;
    Layer layer;
    bool wanted = object < picture.objects;
    if (wanted) {
      const int64_t owner = image_of(index, object);
      assert(0 <= owner && owner < picture.frames && "overlay: index out of range");
      layer = read_layer(picture, window, boxes, object);
      wanted = owner == frame && layer.columns.meets({left, left + kTileWidth}) &&
               layer.rows.meets({top, top + kTileHeight});
    }
    const int count = collect(wanted, layer, list);
    for (int k = 0; k < count; ++k) {
      if (!inside || !list[k].rows.holds(y) || !list[k].columns.meets({x, x + kPixels})) continue;
      float own[kPixels];
      sample(list[k], maps, x, y, own);
      if (kOrdered) lay_colour(own, colours, picture.opacity, canvas);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) heat[i] = own[i] > heat[i] ? own[i] : heat[i];
    }
    __syncthreads();  // the list may be used again
  }
  if (!kOrdered) {
    __syncthreads();  // without objects, nothing else has waited for the colours
    lay_colour(heat, colours, picture.opacity, canvas);
  }
  if (!inside) return;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    for (int c = 0; c < kColours; ++c)
      packet.values[i * kColours + c] = static_cast<uint8_t>(rintf(canvas[i][c]));
  }
  uint8_t* out = result + ((frame * picture.height + y) * picture.width + x) * kColours;
  if (packed) {
    *reinterpret_cast<Packet*>(out) = packet;
  } else {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      for (int c = 0; c < kColours && x + i < picture.width; ++c)
        out[i * kColours + c] = packet.values[i * kColours + c];
    }
  }
}

// ---- the operator ----------

bool is_packed(const Picture& picture, const View<uint8_t, 4>& frames) {
  return picture.width % kPixels == 0 && reinterpret_cast<uintptr_t>(frames.data) % alignof(Packet) == 0 &&
         frames.strides[0] % alignof(Packet) == 0 && frames.strides[1] % alignof(Packet) == 0 &&
         frames.strides[2] == kColours && frames.strides[3] == 1;
}

Tensor overlay(const Tensor& frames, const Tensor& maps, const Tensor& lut,
               const std::optional<Tensor>& index, const std::optional<Tensor>& window,
               const std::optional<Tensor>& boxes, double opacity, const std::string& blend) {
  const Picture picture = check_overlay(frames, maps, lut, index, window, boxes, opacity, blend);
  const torch::stable::accelerator::DeviceGuard guard(frames.get_device_index());
  const cudaStream_t stream = current_stream(frames.get_device_index());
  const std::array<int64_t, 4> sizes{picture.frames, picture.height, picture.width, kColours};
  Tensor result = torch::stable::new_empty(frames, {sizes.data(), sizes.size()}, ScalarType::Byte);
  const int blocks = checked_count(picture.frames * divide_up(picture.width, kTileWidth) *
                                   divide_up(picture.height, kTileHeight));
  if (blocks == 0) return result;
  const auto source = view<uint8_t, 4>(frames);
  const auto kernel = picture.ordered ? &paint<true> : &paint<false>;
  kernel<<<blocks, kThreads, 0, stream>>>(picture, source, view<float, 3>(maps), view<uint8_t, 2>(lut),
                                          view<int64_t, 1>(index), view<float, 2>(window),
                                          view<float, 2>(boxes), is_packed(picture, source),
                                          static_cast<uint8_t*>(result.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CUDA, m) { m.impl("overlay", TORCH_BOX(&detcam::overlay)); }

// detcam::elementwise_maps on CUDA, in one launch without scratch memory and without a host sync. Activations
// and gradients are read once, a warp's worth of neighbouring cells at a time, and summed in a fixed order.
#include "cuda/device.h"
#include "elementwise_maps.h"

namespace detcam {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = kWarp;                 // cells of a block of sum_channels
constexpr int kSlices = kThreads / kTile;    // shares of the channels, summed side by side
constexpr int kChannels = kThreads / kWarp;  // of a block of sum_cells: one for each warp

__device__ int64_t checked_image(const Gradients& shape, const View<int64_t, 1>& index, int64_t object) {
  const int64_t image = shape.image(index, object);
  assert(0 <= image && image < shape.images && "elementwise_maps: index out of range");
  return image;
}

// A block sums one tile of cells of one object; thread (slice, lane) takes every kSlices-th channel of a
// cell.
template <Term kTerm, typename In, typename Acc>
__global__ void __launch_bounds__(kThreads)
    sum_channels(Gradients shape, Cells<In> acts, Cells<In> grads, View<int64_t, 1> index,
                 Acc* __restrict__ maps /* [N, h * w] */) {
  __shared__ Acc partial[kSlices][kTile];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int tiles = divide_up(shape.cells(), kTile);
  const int64_t object = blockIdx.x / tiles;
  const int64_t cell = static_cast<int64_t>(blockIdx.x % tiles) * kTile + lane;
  Acc sum = 0;
  if (cell < shape.cells()) {
    const In* a = acts.channel(checked_image(shape, index, object), 0) + acts.offset(cell);
    const In* g = grads.channel(object, 0) + grads.offset(cell);
#pragma unroll 8
    for (int64_t c = slice; c < shape.channels; c += kSlices) {
      sum += term<kTerm>(static_cast<Acc>(a[c * acts.view.strides[1]]),
                         static_cast<Acc>(g[c * grads.view.strides[1]]), Acc(0));
    }
  }
  partial[slice][lane] = sum;
  __syncthreads();
  if (slice > 0 || cell >= shape.cells()) return;
  for (int other = 1; other < kSlices; ++other) sum += partial[other][lane];
  maps[object * shape.cells() + cell] = sum;
}

// A warp sums the cells of one channel of one object.
template <typename In, typename Acc>
__global__ void __launch_bounds__(kThreads)
    sum_cells(Gradients shape, Cells<In> acts, Cells<In> grads, View<int64_t, 1> index,
              Acc* __restrict__ weights /* [N, C] */) {
  const int lane = threadIdx.x % kWarp;
  const int64_t job = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.x / kWarp;
  if (job >= shape.objects * shape.channels) return;  // a whole warp
  const int64_t object = job / shape.channels, c = job % shape.channels;
  const In* a = acts.channel(checked_image(shape, index, object), c);
  const In* g = grads.channel(object, c);
  const int cells = shape.cells();
  const Acc weight = channel_weight<Acc>(shape, [&](auto kind, Acc total) {
    constexpr Term kTerm = decltype(kind)::value;
    Acc sum = 0;
#pragma unroll 4
    for (int cell = lane; cell < cells; cell += kWarp) {
      sum += term<kTerm>(reads_acts(kTerm) ? static_cast<Acc>(a[acts.offset(cell)]) : Acc(0),
                         reads_grads(kTerm) ? static_cast<Acc>(g[grads.offset(cell)]) : Acc(0), total);
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
    return sum;
  });
  if (lane == 0) weights[job] = weight;
}

// ---- the operator ----------

template <typename In, typename Acc>
void launch(const Gradients& shape, const Cells<In>& acts, const Cells<In>& grads,
            const View<int64_t, 1>& index, Acc* out, cudaStream_t stream) {
  const int64_t tiles = divide_up(shape.cells(), kTile), weights = shape.objects * shape.channels;
  checked_count(shape.cells());
  const int blocks = checked_count(shape.cellwise() ? shape.objects * tiles : divide_up(weights, kChannels));
  auto kernel = &sum_cells<In, Acc>;
  if (shape.mode == Mode::kProduct) kernel = &sum_channels<Term::kProduct, In, Acc>;
  if (shape.mode == Mode::kLayerCam) kernel = &sum_channels<Term::kPositiveProduct, In, Acc>;
  kernel<<<blocks, kThreads, 0, stream>>>(shape, acts, grads, index, out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor elementwise_maps(const Tensor& acts, const Tensor& grads, const std::optional<Tensor>& index,
                        const std::string& mode) {
  const Gradients shape = check_elementwise_maps(acts, grads, index, mode);
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const cudaStream_t stream = current_stream(grads.get_device_index());
  Tensor result = new_result(shape, grads);
  if (shape.objects == 0) return result;
  with_input_type(grads.scalar_type(), [&](auto in) {
    using In = decltype(in);
    using Acc = Accumulator<In>;
    launch<In, Acc>(shape, Cells<In>(acts), Cells<In>(grads), view<int64_t, 1>(index),
                    static_cast<Acc*>(result.mutable_data_ptr()), stream);
  });
  return result;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CUDA, m) {
  m.impl("elementwise_maps", TORCH_BOX(&detcam::elementwise_maps));
}

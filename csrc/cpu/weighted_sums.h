// Weighted sums over channels on the CPU, for each cell of each object: each tile of activations is read once
// for all objects of its image.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cam_maps.h"
#include "cpu/resize.h"

namespace detcam {
namespace {  // as in resize.h

constexpr int kTile = 32;  // cells whose sums are held in registers ...
constexpr int kGroup = 4;  // ... for this many objects at once

template <typename Acc>
DETCAM_CLONES void sum_tile(const Acc* __restrict weights,  // [channels, kGroup]
                            const Acc* __restrict acts,     // [channels, kTile]
                            int64_t channels, Acc* __restrict sums /* [kGroup, kTile] */) {
  Acc total[kGroup][kTile] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int object = 0; object < kGroup; ++object) {
      for (int i = 0; i < kTile; ++i) total[object][i] += weights[c * kGroup + object] * acts[c * kTile + i];
    }
  }
  std::copy(&total[0][0], &total[0][0] + kGroup * kTile, sums);
}

// Up to kGroup objects of one image, whose weights lie interleaved in `weights`.
struct Group {
  int64_t image;
  int count = 0;
  int64_t objects[kGroup] = {};
};

std::vector<Group> group_by_image(const Shape& shape, const View<int64_t, 1>& index) {
  std::vector<std::vector<int64_t>> members(shape.images);
  for (int64_t n = 0; n < shape.objects; ++n) {
    const int64_t image = image_of(index, n);
    STD_TORCH_CHECK(0 <= image && image < shape.images, "cam_maps: index ", image, " is outside [0, ",
                    shape.images, ")");
    members[image].push_back(n);
  }
  std::vector<Group> groups;
  for (int64_t image = 0; image < shape.images; ++image) {
    for (size_t i = 0; i < members[image].size(); ++i) {
      if (i % kGroup == 0) groups.push_back({image});
      Group& group = groups.back();
      group.objects[group.count++] = members[image][i];
    }
  }
  return groups;
}

template <typename In, typename Acc>
std::vector<Acc> pack_weights(const Shape& shape, const std::vector<Group>& groups,
                              const View<In, 2>& weights) {
  std::vector<Acc> packed(groups.size() * shape.channels * kGroup);
  Acc* out = packed.data();
  for (const Group& group : groups) {
    for (int64_t c = 0; c < shape.channels; ++c, out += kGroup) {
      for (int i = 0; i < group.count; ++i) {
        out[i] =
            static_cast<Acc>(weights.data[group.objects[i] * weights.strides[0] + c * weights.strides[1]]);
      }
    }
  }
  return packed;
}

// One tile of cells of all channels, converted: [channels, kTile].
template <typename In, typename Acc>
void pack_acts(const Shape& shape, const View<In, 4>& acts, int64_t image, int64_t first, Acc* out) {
  const int count = static_cast<int>(std::min<int64_t>(kTile, shape.cells() - first));
  int64_t offsets[kTile] = {};
  for (int i = 0; i < count; ++i) {
    const int64_t row = (first + i) / shape.columns, column = (first + i) % shape.columns;
    offsets[i] = image * acts.strides[0] + row * acts.strides[2] + column * acts.strides[3];
  }
  const bool adjacent = offsets[count - 1] - offsets[0] == count - 1 && acts.strides[3] == 1;
  for (int64_t c = 0; c < shape.channels; ++c, out += kTile) {
    const In* channel = acts.data + c * acts.strides[1];
    if (adjacent && count == kTile) {
      for (int i = 0; i < kTile; ++i) out[i] = static_cast<Acc>(channel[offsets[0] + i]);
    } else {
      for (int i = 0; i < count; ++i) out[i] = static_cast<Acc>(channel[offsets[i]]);
    }
  }
}

template <typename In, typename Acc>
std::vector<Acc> weighted_sums(const Shape& shape, const View<In, 4>& acts, const View<In, 2>& weights,
                               const View<int64_t, 1>& index) {
  const auto groups = group_by_image(shape, index);
  const auto packed_weights = pack_weights<In, Acc>(shape, groups, weights);
  std::vector<size_t> first_group(shape.images + 1, groups.size());
  for (size_t g = groups.size(); g-- > 0;) first_group[groups[g].image] = g;
  for (int64_t image = shape.images; image-- > 0;) {
    first_group[image] = std::min(first_group[image], first_group[image + 1]);  // images without objects
  }

  std::vector<Acc> cells(shape.objects * shape.cells());
  const int64_t tiles = (shape.cells() + kTile - 1) / kTile;
  const int64_t work = shape.channels * kTile * (1 + shape.objects / shape.images);
  torch::stable::parallel_for(0, shape.images * tiles, grain(work), [&](int64_t begin, int64_t end) {
    std::vector<Acc> packed_acts(shape.channels * kTile);
    Acc sums[kGroup * kTile];
    for (int64_t job = begin; job < end; ++job) {
      const int64_t image = job / tiles, first = job % tiles * kTile;
      const int64_t count = std::min<int64_t>(kTile, shape.cells() - first);
      if (first_group[image] == first_group[image + 1]) continue;
      pack_acts(shape, acts, image, first, packed_acts.data());
      for (size_t g = first_group[image]; g < first_group[image + 1]; ++g) {
        sum_tile(packed_weights.data() + g * shape.channels * kGroup, packed_acts.data(), shape.channels,
                 sums);
        for (int i = 0; i < groups[g].count; ++i) {
          Acc* out = cells.data() + groups[g].objects[i] * shape.cells() + first;
          for (int64_t k = 0; k < count; ++k) {
            const Acc sum = sums[i * kTile + k];
            out[k] = !std::isfinite(sum) || (shape.relu && sum < 0) ? Acc(0) : sum;
          }
        }
      }
    }
  });
  return cells;
}

}  // namespace
}  // namespace detcam

// Bilinear resize on the CPU: the places of pixels between cells, and rows of cells stretched to rows of
// pixels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

// The innermost loops are compiled for several instruction sets; the loader picks one when the binary is
// loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DETCAM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define DETCAM_CLONES
#endif

namespace detcam {
namespace {  // each kernel has its own copy: the loader picks an instruction set for each

// Items of `work` multiplications each that are worth a thread. Waking threads costs more than it brings for
// less, above all on a busy machine.
inline int64_t grain(int64_t work) { return std::max<int64_t>(1, (1 << 19) / work); }

// Comparisons written so that NaN becomes `low`.
template <typename Acc>
inline Acc confine(Acc value, Acc low, Acc high) {
  value = value > low ? value : low;
  return value < high ? value : high;
}

// For each pixel of an axis, the two cells that it lies between and how far it is from the first.
template <typename Acc>
struct Taps {
  std::vector<int32_t> from;
  std::vector<Acc> fraction;
  int32_t step = 0;  // to the second cell; 0 on an axis of one cell

  void aim(double start, double stop, int64_t cells, int64_t pixels) {
    from.resize(pixels);
    fraction.resize(pixels);
    step = cells > 1;
    for (int64_t i = 0; i < pixels; ++i) {
      const double at = confine(start + (i + 0.5) * (stop - start) / pixels - 0.5, 0.0, cells - 1.0);
      from[i] =
          static_cast<int32_t>(std::min<int64_t>(static_cast<int64_t>(at), std::max<int64_t>(cells - 2, 0)));
      fraction[i] = static_cast<Acc>(at - from[i]);
    }
  }
};

template <typename Acc>
DETCAM_CLONES void stretch_row(const Acc* __restrict cells, const int32_t* __restrict from,
                               const Acc* __restrict fraction, int32_t step, int64_t width,
                               Acc* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    const Acc left = cells[from[x]];
    out[x] = left + fraction[x] * (cells[from[x] + step] - left);
  }
}

// One map, row by row: holds the two stretched rows of cells that were asked for last.
template <typename Acc>
class StretchedRows {
 public:
  // Of each row, the pixels [first, first + count).
  void open(const Acc* cells, int64_t columns, const Taps<Acc>& across, int64_t first, int64_t count) {
    cells_ = cells;
    columns_ = columns;
    across_ = &across;
    first_ = first;
    for (auto& row : pixels_) row.resize(count);
    held_[0] = held_[1] = -1;
  }

  const Acc* operator[](int32_t row) {
    const int slot = row % 2;  // neighbours never share one
    if (held_[slot] != row) {
      stretch_row(cells_ + row * columns_, across_->from.data() + first_, across_->fraction.data() + first_,
                  across_->step, static_cast<int64_t>(pixels_[slot].size()), pixels_[slot].data());
      held_[slot] = row;
    }
    return pixels_[slot].data();
  }

 private:
  const Acc* cells_ = nullptr;
  int64_t columns_ = 0, first_ = 0;
  const Taps<Acc>* across_ = nullptr;
  std::vector<Acc> pixels_[2];
  int32_t held_[2] = {-1, -1};
};

}  // namespace
}  // namespace detcam

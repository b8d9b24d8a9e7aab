// Colouring rows of pixels on the CPU. The three colours of a row are rows of their own, in fixed point of 16
// bits: twice as many fit a register as floats, and a layer is off by less than 1/100 of a grey level.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/resize.h"
#include "overlay.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DETCAM_BYTE_SHUFFLES
#include <immintrin.h>
#endif

namespace detcam {
namespace {  // as in resize.h

constexpr int kShift = 7;         // bits of a colour below one grey level
constexpr float kOpaque = 32767;  // a cover of 1
constexpr int kOverrun = 64;      // bytes that look_up may touch beyond a row

struct ColourTable {
  uint8_t planes[kColours][kLevels];
  uint32_t packed[kLevels];

  explicit ColourTable(const View<uint8_t, 2>& lut) {
    for (int level = 0; level < kLevels; ++level) {
      packed[level] = 0;
      for (int c = 0; c < kColours; ++c) {
        planes[c][level] = lut.data[level * lut.strides[0] + c * lut.strides[1]];
        packed[level] |= uint32_t{planes[c][level]} << 8 * c;
      }
    }
  }
};

DETCAM_CLONES void load_pixels(const uint8_t* __restrict pixels, int64_t count, int16_t* __restrict red,
                               int16_t* __restrict green, int16_t* __restrict blue) {
  for (int64_t x = 0; x < count; ++x) {
    red[x] = static_cast<int16_t>(pixels[kColours * x] << kShift);
    green[x] = static_cast<int16_t>(pixels[kColours * x + 1] << kShift);
    blue[x] = static_cast<int16_t>(pixels[kColours * x + 2] << kShift);
  }
}

inline uint8_t to_byte(int16_t value) {
  return static_cast<uint8_t>((value + (1 << (kShift - 1))) >> kShift);
}

DETCAM_CLONES void store_pixels(const int16_t* __restrict red, const int16_t* __restrict green,
                                const int16_t* __restrict blue, int64_t count, uint8_t* __restrict pixels) {
  for (int64_t x = 0; x < count; ++x) {
    pixels[kColours * x] = to_byte(red[x]);
    pixels[kColours * x + 1] = to_byte(green[x]);
    pixels[kColours * x + 2] = to_byte(blue[x]);
  }
}

// Of heat in [0, 1] between two rows: the level of each pixel in the colour table, and how much it covers.
DETCAM_CLONES void shade(const float* __restrict top, const float* __restrict bottom, float fraction,
                         float opacity, int64_t count, uint8_t* __restrict levels,
                         int16_t* __restrict cover) {
  for (int64_t x = 0; x < count; ++x) {
    const float heat = top[x] + fraction * (bottom[x] - top[x]);
    levels[x] = static_cast<uint8_t>(static_cast<int32_t>(std::rint(heat * 255.0f)));
    cover[x] = static_cast<int16_t>(static_cast<int32_t>(opacity * kOpaque * std::sqrt(heat) + 0.5f));
  }
}

// Lays one colour over a row: canvas += cover * (colour - canvas), rounded.
DETCAM_CLONES void lay(const uint8_t* __restrict colour, const int16_t* __restrict cover, int64_t count,
                       int16_t* __restrict canvas) {
  for (int64_t x = 0; x < count; ++x) {
    const int16_t way = static_cast<int16_t>((colour[x] << kShift) - canvas[x]);
    canvas[x] = static_cast<int16_t>(canvas[x] + static_cast<int16_t>(((way * cover[x] >> 14) + 1) >> 1));
  }
}

DETCAM_CLONES void unpack(const uint32_t* __restrict packed, int64_t count, uint8_t* __restrict red,
                          uint8_t* __restrict green, uint8_t* __restrict blue) {
  for (int64_t x = 0; x < count; ++x) {
    red[x] = static_cast<uint8_t>(packed[x]);
    green[x] = static_cast<uint8_t>(packed[x] >> 8);
    blue[x] = static_cast<uint8_t>(packed[x] >> 16);
  }
}

#if defined(DETCAM_BYTE_SHUFFLES)
// A whole plane of the table fits four registers, and one instruction picks 64 bytes from two of them.
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) void shuffle(
    const uint8_t* levels, const uint8_t* plane, int64_t count, uint8_t* colour) {
  const __m512i a = _mm512_loadu_si512(plane), b = _mm512_loadu_si512(plane + 64);
  const __m512i c = _mm512_loadu_si512(plane + 128), d = _mm512_loadu_si512(plane + 192);
  for (int64_t x = 0; x < count; x += 64) {
    const __m512i level = _mm512_loadu_si512(levels + x);
    const __m512i low = _mm512_permutex2var_epi8(a, level, b), high = _mm512_permutex2var_epi8(c, level, d);
    _mm512_storeu_si512(colour + x, _mm512_mask_blend_epi8(_mm512_movepi8_mask(level), low, high));
  }
}
#endif

// Rows of one layer between its heat and its colours.
struct Brush {
  std::vector<uint8_t> levels;
  std::vector<int16_t> cover;
  std::vector<uint32_t> packed;
  std::vector<uint8_t> colours[kColours];

  explicit Brush(int64_t width) : levels(width + kOverrun), cover(width), packed(width) {
    for (auto& colour : colours) colour.resize(width + kOverrun);
  }

  void look_up(const ColourTable& table, int64_t count) {
#if defined(DETCAM_BYTE_SHUFFLES)
    static const bool kShuffles = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw");
    if (kShuffles) {
      for (int c = 0; c < kColours; ++c) shuffle(levels.data(), table.planes[c], count, colours[c].data());
      return;
    }
#endif
    // One by one: gathers, which more instructions would bring, are slower.
    for (int64_t x = 0; x < count; ++x) packed[x] = table.packed[levels[x]];
    unpack(packed.data(), count, colours[0].data(), colours[1].data(), colours[2].data());
  }
};

}  // namespace
}  // namespace detcam

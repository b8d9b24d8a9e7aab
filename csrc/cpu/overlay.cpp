// detcam::overlay on the CPU: every row of the frame is read once, painted while it lies in the first cache,
// and written once. An object costs the pixels of its box, and with "max" no more than a blend of two rows
// and a comparison for each; colour is looked up once per pixel, for the hottest.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/resize.h"
#include "overlay.h"

namespace detcam {
namespace {

constexpr int64_t kFramePixelWork = 16;  // read, coloured and written
constexpr int64_t kObjectPixelWork = 2;

// ---- innermost loops ----------

DETCAM_CLONES void raise_heat(const float* __restrict top, const float* __restrict bottom, float fraction,
                              int64_t count, float* __restrict heat) {
  for (int64_t x = 0; x < count; ++x) {
    const float value = top[x] + fraction * (bottom[x] - top[x]);
    heat[x] = value > heat[x] ? value : heat[x];
  }
}

// Lays the colour of each pixel's heat over the canvas, whose three colours are rows of their own.
DETCAM_CLONES void lay_colour(const float* __restrict heat, const uint32_t* __restrict colours, float opacity,
                              int64_t count, float* __restrict red, float* __restrict green,
                              float* __restrict blue) {
  for (int64_t x = 0; x < count; ++x) {
    const float cover = opacity * std::sqrt(heat[x]);
    const int32_t colour = static_cast<int32_t>(colours[static_cast<int32_t>(std::rint(heat[x] * 255.0f))]);
    red[x] += cover * (static_cast<float>(colour & 255) - red[x]);
    green[x] += cover * (static_cast<float>(colour >> 8 & 255) - green[x]);
    blue[x] += cover * (static_cast<float>(colour >> 16) - blue[x]);
  }
}

DETCAM_CLONES void load_pixels(const uint8_t* __restrict pixels, int64_t count, float* __restrict red,
                               float* __restrict green, float* __restrict blue) {
  for (int64_t x = 0; x < count; ++x) {
    red[x] = pixels[kColours * x];
    green[x] = pixels[kColours * x + 1];
    blue[x] = pixels[kColours * x + 2];
  }
}

DETCAM_CLONES void store_pixels(const float* __restrict red, const float* __restrict green,
                                const float* __restrict blue, int64_t count, uint8_t* __restrict pixels) {
  for (int64_t x = 0; x < count; ++x) {
    pixels[kColours * x] = static_cast<uint8_t>(static_cast<int32_t>(std::rint(red[x])));
    pixels[kColours * x + 1] = static_cast<uint8_t>(static_cast<int32_t>(std::rint(green[x])));
    pixels[kColours * x + 2] = static_cast<uint8_t>(static_cast<int32_t>(std::rint(blue[x])));
  }
}

// ---- what all threads read ----------

struct Places {
  std::array<float, 4> window;
  Taps<float> across, down;
};

// The objects of a call: cells confined to [0, 1], and where the pixels of each lie between them.
struct Objects {
  std::vector<float> cells;                    // [N, h, w]
  std::vector<std::unique_ptr<Places>> kept;   // one for each run of equal windows
  std::vector<const Places*> places;           // [N]
  std::vector<std::vector<int64_t>> of_frame;  // [B], each in order

  Objects(const Picture& picture, const View<float, 3>& maps, const View<int64_t, 1>& index,
          const View<float, 2>& window)
      : cells(picture.objects * picture.rows * picture.columns), of_frame(picture.frames) {
    float* out = cells.data();
    for (int64_t n = 0; n < picture.objects; ++n) {
      const int64_t frame = image_of(index, n);
      STD_TORCH_CHECK(0 <= frame && frame < picture.frames, "overlay: index ", frame, " is outside [0, ",
                      picture.frames, ")");
      of_frame[frame].push_back(n);
      for (int64_t row = 0; row < picture.rows; ++row) {
        const float* source = maps.data + n * maps.strides[0] + row * maps.strides[1];
        for (int64_t column = 0; column < picture.columns; ++column) {
          *out++ = confine(source[column * maps.strides[2]], 0.0f, 1.0f);
        }
      }
      places.push_back(aim(picture, window, n));
    }
  }

 private:
  const Places* aim(const Picture& picture, const View<float, 2>& window, int64_t object) {
    std::array<float, 4> box{0, 0, static_cast<float>(picture.columns), static_cast<float>(picture.rows)};
    if (window.data) {
      for (int i = 0; i < 4; ++i) box[i] = window.data[object * window.strides[0] + i * window.strides[1]];
    }
    if (kept.empty() || kept.back()->window != box) {
      kept.push_back(std::make_unique<Places>());
      kept.back()->window = box;
      kept.back()->across.aim(box[0], box[2], picture.columns, picture.width);
      kept.back()->down.aim(box[1], box[3], picture.rows, picture.height);
    }
    return kept.back().get();
  }
};

// ---- what each thread does ----------

// An object while its rows are painted.
struct Layer {
  Span across, down;
  const Taps<float>* rows_at;
  StretchedRows<float> rows;
};

class Painter {
 public:
  Painter(const Picture& picture, const Objects& objects, const View<float, 2>& boxes,
          const std::array<uint32_t, kLevels>& colours)
      : picture_(picture),
        objects_(objects),
        boxes_(boxes),
        colours_(colours),
        heat_(picture.width),
        red_(picture.width),
        green_(picture.width),
        blue_(picture.width) {}

  // Takes up the objects that reach into these rows of a frame.
  void open(int64_t frame, Span rows) {
    layers_.clear();
    for (const int64_t object : objects_.of_frame[frame]) {
      const Places& places = *objects_.places[object];
      Layer layer{box_across(boxes_, object, picture_.width),
                  box_down(boxes_, object, picture_.height),
                  &places.down,
                  {}};
      if (layer.across.empty() || !layer.down.meets(rows)) continue;
      layer.rows.open(objects_.cells.data() + object * picture_.rows * picture_.columns, picture_.columns,
                      places.across, layer.across.first, layer.across.end - layer.across.first);
      layers_.push_back(std::move(layer));
    }
  }

  // Paints over one row of pixels.
  void paint(int64_t y, uint8_t* pixels) {
    Span touched{static_cast<int32_t>(picture_.width), 0};
    for (const Layer& layer : layers_) {
      if (!layer.down.holds(y)) continue;
      touched = {std::min(touched.first, layer.across.first), std::max(touched.end, layer.across.end)};
    }
    if (touched.empty()) return;
    const int64_t first = touched.first, count = touched.end - touched.first;
    load_pixels(pixels + kColours * first, count, &red_[first], &green_[first], &blue_[first]);
    std::fill_n(&heat_[first], count, 0.0f);
    for (Layer& layer : layers_) {
      if (!layer.down.holds(y)) continue;
      const int32_t row = layer.rows_at->from[y];
      const float *top = layer.rows[row], *bottom = layer.rows[row + layer.rows_at->step];
      const int64_t left = layer.across.first, width = layer.across.end - layer.across.first;
      if (picture_.ordered) std::fill_n(&heat_[left], width, 0.0f);
      raise_heat(top, bottom, layer.rows_at->fraction[y], width, &heat_[left]);
      if (picture_.ordered) lay(left, width);
    }
    if (!picture_.ordered) lay(first, count);
    store_pixels(&red_[first], &green_[first], &blue_[first], count, pixels + kColours * first);
  }

 private:
  void lay(int64_t first, int64_t count) {
    lay_colour(&heat_[first], colours_.data(), picture_.opacity, count, &red_[first], &green_[first],
               &blue_[first]);
  }

  const Picture& picture_;
  const Objects& objects_;
  View<float, 2> boxes_;
  const std::array<uint32_t, kLevels>& colours_;
  std::vector<float> heat_, red_, green_, blue_;
  std::vector<Layer> layers_;
};

void copy_row(const View<uint8_t, 4>& frames, const uint8_t* source, int64_t width, uint8_t* out) {
  if (frames.strides[3] == 1 && frames.strides[2] == kColours) {
    std::memcpy(out, source, kColours * width);
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    for (int c = 0; c < kColours; ++c) *out++ = source[x * frames.strides[2] + c * frames.strides[3]];
  }
}

// ---- the operator ----------

std::array<uint32_t, kLevels> pack_colours(const View<uint8_t, 2>& lut) {
  std::array<uint32_t, kLevels> colours{};
  for (int level = 0; level < kLevels; ++level) {
    for (int c = 0; c < kColours; ++c) {
      colours[level] |= uint32_t{lut.data[level * lut.strides[0] + c * lut.strides[1]]} << 8 * c;
    }
  }
  return colours;
}

Tensor overlay(const Tensor& frames, const Tensor& maps, const Tensor& lut,
               const std::optional<Tensor>& index, const std::optional<Tensor>& window,
               const std::optional<Tensor>& boxes, double opacity, const std::string& blend) {
  const Picture picture = check_overlay(frames, maps, lut, index, window, boxes, opacity, blend);
  const std::array<int64_t, 4> sizes{picture.frames, picture.height, picture.width, kColours};
  Tensor result = torch::stable::new_empty(frames, {sizes.data(), sizes.size()}, ScalarType::Byte);
  const auto source = view<uint8_t, 4>(frames);
  const auto box_view = view<float, 2>(boxes);
  const auto colours = pack_colours(view<uint8_t, 2>(lut));
  const Objects objects(picture, view<float, 3>(maps), view<int64_t, 1>(index), view<float, 2>(window));
  auto* out = static_cast<uint8_t*>(result.mutable_data_ptr());

  const int64_t per_pixel = kFramePixelWork + kObjectPixelWork * picture.objects;
  torch::stable::parallel_for(
      0, picture.frames * picture.height, grain(per_pixel * picture.width), [&](int64_t begin, int64_t end) {
        Painter painter(picture, objects, box_view, colours);
        for (int64_t row = begin; row < end;) {
          const int64_t frame = row / picture.height, start = frame * picture.height;
          const int64_t stop = std::min(end, start + picture.height);
          painter.open(frame, {static_cast<int32_t>(row - start), static_cast<int32_t>(stop - start)});
          for (; row < stop; ++row) {
            uint8_t* pixels = out + row * picture.width * kColours;
            const uint8_t* from = source.data + frame * source.strides[0] + (row - start) * source.strides[1];
            copy_row(source, from, picture.width, pixels);
            painter.paint(row - start, pixels);
          }
        }
      });
  return result;
}

}  // namespace
}  // namespace detcam

STABLE_TORCH_LIBRARY_IMPL(detcam, CPU, m) { m.impl("overlay", TORCH_BOX(&detcam::overlay)); }

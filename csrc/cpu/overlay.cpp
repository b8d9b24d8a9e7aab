// detcam::overlay on the CPU: every row of the frame is read once, painted while it lies in the first cache,
// and written once. An object costs the pixels of its box that have heat, and with "max" no more than a blend
// of two rows and a comparison for each; colour is looked up once per pixel, for the hottest.
#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <vector>

#include "cpu/colours.h"
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

// ---- read by all threads ----------

struct Places {
  std::array<float, 4> window;
  Taps<float> across, down;
};

// The rows and columns of a map that hold all of its heat.
struct Warm {
  int32_t top, bottom = -1, left, right = -1;  // the last ones included

  Warm(const float* cells, int64_t rows, int64_t columns)
      : top(static_cast<int32_t>(rows)), left(static_cast<int32_t>(columns)) {
    const auto warm = [](float cell) { return cell > 0; };
    for (int32_t row = 0; row < rows; ++row, cells += columns) {
      const float* first = std::find_if(cells, cells + columns, warm);
      if (first == cells + columns) continue;
      const auto last = std::find_if(std::reverse_iterator(cells + columns), std::reverse_iterator(first), warm);
      top = std::min(top, row), bottom = row;
      left = std::min(left, static_cast<int32_t>(first - cells));
      right = std::max(right, static_cast<int32_t>(last.base() - 1 - cells));
    }
  }
};

// The pixels of a span that lie beside one of the cells [first, last]: elsewhere there is no heat.
Span reached(const Taps<float>& taps, int32_t first, int32_t last, Span span) {
  const auto cold = [&](int32_t pixel) {
    return taps.from[pixel] > last || taps.from[pixel] + taps.step < first;
  };
  while (!span.empty() && cold(span.first)) ++span.first;
  while (!span.empty() && cold(span.end - 1)) --span.end;
  return span;
}

// The objects of a call: cells confined to [0, 1], and where the pixels of each lie between them.
struct Objects {
  std::vector<float> cells;                    // [N, h, w]
  std::vector<std::unique_ptr<Places>> kept;   // one for each run of equal windows
  std::vector<const Places*> places;           // [N]
  std::vector<Warm> warm;                      // [N]
  std::vector<std::vector<int64_t>> of_frame;  // [B], each in order

  Objects(const Picture& picture, const View<float, 3>& maps, const View<int64_t, 1>& index,
          const View<float, 2>& window)
      : cells(picture.objects * picture.rows * picture.columns), of_frame(picture.frames) {
    for (int64_t n = 0; n < picture.objects; ++n) {
      const int64_t frame = image_of(index, n);
      STD_TORCH_CHECK(0 <= frame && frame < picture.frames, "overlay: index ", frame, " is outside [0, ",
                      picture.frames, ")");
      of_frame[frame].push_back(n);
      float* out = cells.data() + n * picture.rows * picture.columns;
      for (int64_t row = 0; row < picture.rows; ++row) {
        const float* source = maps.data + n * maps.strides[0] + row * maps.strides[1];
        for (int64_t column = 0; column < picture.columns; ++column) {
          out[row * picture.columns + column] = confine(source[column * maps.strides[2]], 0.0f, 1.0f);
        }
      }
      warm.emplace_back(out, picture.rows, picture.columns);
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

// ---- run by each thread ----------

// An object while its rows are painted.
struct Layer {
  Span across, down;
  const Taps<float>* rows_at;
  StretchedRows<float> rows;
};

class Painter {
 public:
  Painter(const Picture& picture, const Objects& objects, const View<float, 2>& boxes,
          const ColourTable& colours)
      : picture_(picture),
        objects_(objects),
        boxes_(boxes),
        colours_(colours),
        heat_(picture.width),
        brush_(picture.width) {
    for (auto& canvas : canvas_) canvas.resize(picture.width);
  }

  // Takes up the objects that reach into these rows of a frame.
  void open(int64_t frame, Span rows) {
    layers_.clear();
    for (const int64_t object : objects_.of_frame[frame]) {
      const Places& places = *objects_.places[object];
      const Warm& warm = objects_.warm[object];
      const Span across = box_across(boxes_, object, picture_.width);
      const Span down = box_down(boxes_, object, picture_.height);
      Layer layer{reached(places.across, warm.left, warm.right, across),
                  reached(places.down, warm.top, warm.bottom, down),
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
    load_pixels(pixels + kColours * first, count, &canvas_[0][first], &canvas_[1][first], &canvas_[2][first]);
    if (!picture_.ordered) std::fill_n(&heat_[first], count, 0.0f);
    for (Layer& layer : layers_) {
      if (!layer.down.holds(y)) continue;
      const int32_t row = layer.rows_at->from[y];
      const float *top = layer.rows[row], *bottom = layer.rows[row + layer.rows_at->step];
      const int64_t left = layer.across.first, width = layer.across.end - layer.across.first;
      const float fraction = layer.rows_at->fraction[y];
      if (picture_.ordered) {
        lay(top, bottom, fraction, left, width);
      } else {
        raise_heat(top, bottom, fraction, width, &heat_[left]);
      }
    }
    if (!picture_.ordered) lay(&heat_[first], &heat_[first], 0, first, count);
    store_pixels(&canvas_[0][first], &canvas_[1][first], &canvas_[2][first], count,
                 pixels + kColours * first);
  }

 private:
  void lay(const float* top, const float* bottom, float fraction, int64_t first, int64_t count) {
    shade(top, bottom, fraction, picture_.opacity, count, brush_.levels.data(), brush_.cover.data());
    brush_.look_up(colours_, count);
    for (int c = 0; c < kColours; ++c) {
      detcam::lay(brush_.colours[c].data(), brush_.cover.data(), count, &canvas_[c][first]);
    }
  }

  const Picture& picture_;
  const Objects& objects_;
  View<float, 2> boxes_;
  const ColourTable& colours_;
  std::vector<float> heat_;
  std::vector<int16_t> canvas_[kColours];
  Brush brush_;
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

Tensor overlay(const Tensor& frames, const Tensor& maps, const Tensor& lut,
               const std::optional<Tensor>& index, const std::optional<Tensor>& window,
               const std::optional<Tensor>& boxes, double opacity, const std::string& blend) {
  const Picture picture = check_overlay(frames, maps, lut, index, window, boxes, opacity, blend);
  const std::array<int64_t, 4> sizes{picture.frames, picture.height, picture.width, kColours};
  Tensor result = torch::stable::new_empty(frames, {sizes.data(), sizes.size()}, ScalarType::Byte);
  const auto source = view<uint8_t, 4>(frames);
  const auto box_view = view<float, 2>(boxes);
  const ColourTable colours(view<uint8_t, 2>(lut));
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

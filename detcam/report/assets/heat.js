// Heatmaps: coarse maps to coloured pixels; bilinear, half-pixel centres, clamped at the border, like detcam.ops.cam_maps.

const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** 256 packed pixels: the colour of each grey level; opacity is the square root of the heat, as in overlays. */
function colourTable(text) {
  const colours = decode(text);
  const pixels = new Uint8ClampedArray(1024);
  for (let level = 0; level < 256; level++) {
    pixels.set(colours.subarray(3 * level, 3 * level + 3), 4 * level);
    pixels[4 * level + 3] = Math.round(255 * Math.sqrt(level / 255));
  }
  return new Uint32Array(pixels.buffer);
}
const tables = Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, colourTable(text)]));

class Heat {
  /**
   * map: rows, columns, low, high and compressed levels.
   * span: left, top, right, bottom of the map as shares of the image.
   */
  constructor(map, span) {
    Object.assign(this, map);
    this.span = span;
  }

  async ready() {
    if (!this.levels) {
      const stream = new Blob([decode(this.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
      this.levels = new Uint8Array(await new Response(stream).arrayBuffer());
    }
    return this;
  }

  /** For each of `pixels` along an axis: the two nearest cells, the weight of the second, and whether the network saw it. */
  static axis(pixels, cells, start, stop) {
    const first = new Int32Array(pixels), second = new Int32Array(pixels);
    const weight = new Float32Array(pixels), seen = new Uint8Array(pixels);
    for (let i = 0; i < pixels; i++) {
      const share = (i + 0.5) / pixels;
      const at = clamp(((share - start) / (stop - start)) * cells - 0.5, 0, cells - 1);
      first[i] = Math.floor(at);
      second[i] = Math.min(first[i] + 1, cells - 1);
      weight[i] = at - first[i];
      seen[i] = share >= start && share < stop;
    }
    return { first, second, weight, seen };
  }

  /** Call `put(pixel, level)` with the grey level, 0 to 255, of each pixel of an image of width x height. */
  each(width, height, put) {
    const [left, top, right, bottom] = this.span;
    const x = Heat.axis(width, this.columns, left, right), y = Heat.axis(height, this.rows, top, bottom);
    const { levels, columns } = this;
    for (let row = 0, pixel = 0; row < height; row++) {
      const upper = y.first[row] * columns, lower = y.second[row] * columns, down = y.weight[row];
      for (let column = 0; column < width; column++, pixel++) {
        const a = x.first[column], b = x.second[column], over = x.weight[column];
        const above = levels[upper + a] + (levels[upper + b] - levels[upper + a]) * over;
        const below = levels[lower + a] + (levels[lower + b] - levels[lower + a]) * over;
        put(pixel, y.seen[row] && x.seen[column] ? above + (below - above) * down : 0);
      }
    }
  }

  /** Heat in [0, 1] at (u, v), given as shares of the image. */
  at(u, v) {
    const [left, top, right, bottom] = this.span;
    if (u < left || u >= right || v < top || v >= bottom) return 0;
    const x = clamp(((u - left) / (right - left)) * this.columns - 0.5, 0, this.columns - 1);
    const y = clamp(((v - top) / (bottom - top)) * this.rows - 0.5, 0, this.rows - 1);
    const a = Math.floor(x), c = Math.floor(y);
    const b = Math.min(a + 1, this.columns - 1), d = Math.min(c + 1, this.rows - 1);
    const level = (row, column) => this.levels[row * this.columns + column];
    const above = level(c, a) + (level(c, b) - level(c, a)) * (x - a);
    const below = level(d, a) + (level(d, b) - level(d, a)) * (x - a);
    return (above + (below - above) * (y - c)) / 255;
  }

  paint(canvas, colours) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer), table = tables[colours];
    this.each(canvas.width, canvas.height, (pixel, level) => {
      pixels[pixel] = table[(level + 0.5) | 0];
    });
    context.putImageData(image, 0, 0);
  }
}

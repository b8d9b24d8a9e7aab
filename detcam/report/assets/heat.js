// Heatmaps: coarse maps to coloured pixels; bilinear, half-pixel centres, clamped at the border, like detcam.ops.cam_maps.

const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Name of a colour map -> 256 packed pixels, one for each grey level. */
const tables = Object.fromEntries(
  Object.entries(data.colours).map(([name, text]) => [name, new Uint32Array(decode(text).buffer)]),
);
find("colours").append(...Object.keys(tables).map((name) => option(name, name)));

class Heat {
  /** map: rows, columns, low, high, compressed levels; span and crop: see spans() in pack.py. */
  constructor(map) {
    Object.assign(this, map);
  }

  async ready() {
    if (!this.levels) {
      const stream = new Blob([decode(this.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
      this.levels = new Uint8Array(await new Response(stream).arrayBuffer());
    }
    return this;
  }

  /** For each place along an axis: the two nearest cells, the weight of the second, and whether the network saw it. */
  static axis(places, cells, start, stop, from, to) {
    const first = new Int32Array(places.length), second = new Int32Array(places.length);
    const weight = new Float32Array(places.length), seen = new Uint8Array(places.length);
    for (const [i, share] of places.entries()) {
      const at = clamp(((share - start) / (stop - start)) * cells - 0.5, 0, cells - 1);
      first[i] = Math.floor(at);
      second[i] = Math.min(first[i] + 1, cells - 1);
      weight[i] = at - first[i];
      seen[i] = share >= Math.max(start, from) && share < Math.min(stop, to);
    }
    return { first, second, weight, seen };
  }

  /** Call `put(i, level)` with the grey level, 0 to 255, at each point of the grid of us and vs, as shares of the image. */
  each(us, vs, put) {
    const [left, top, right, bottom] = this.span, [x1, y1, x2, y2] = this.crop;
    const x = Heat.axis(us, this.columns, left, right, x1, x2), y = Heat.axis(vs, this.rows, top, bottom, y1, y2);
    const { levels, columns } = this;
    for (let row = 0, i = 0; row < vs.length; row++) {
      const upper = y.first[row] * columns, lower = y.second[row] * columns, down = y.weight[row];
      for (let column = 0; column < us.length; column++, i++) {
        const a = x.first[column], b = x.second[column], over = x.weight[column];
        const above = levels[upper + a] + (levels[upper + b] - levels[upper + a]) * over;
        const below = levels[lower + a] + (levels[lower + b] - levels[lower + a]) * over;
        put(i, y.seen[row] && x.seen[column] ? above + (below - above) * down : 0);
      }
    }
  }

  /** Heat in [0, 1] at (u, v), given as shares of the image. */
  at(u, v) {
    let heat;
    this.each([u], [v], (_, level) => (heat = level / 255));
    return heat;
  }

  /** Paint the colours on a canvas; `alpha` 0xff000000 makes them opaque. */
  paint(canvas, alpha = 0) {
    const { width, height } = canvas;
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer), table = tables[find("colours").value];
    const centres = (count) => Array.from({ length: count }, (_, i) => (i + 0.5) / count);
    this.each(centres(width), centres(height), (i, level) => {
      pixels[i] = table[(level + 0.5) | 0] | alpha;
    });
    context.putImageData(image, 0, 0);
  }
}

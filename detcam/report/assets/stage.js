// Stage: a view of an image with heat and boxes. Stages on a page share zoom and position.

const SVG = "http://www.w3.org/2000/svg";
const TAG = 18; // height of the number on a box, in screen pixels

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** What all stages show: zoom, and the centre as shares of the image. */
const look = { zoom: 1, x: 0.5, y: 0.5 };
let stages = [];

function lookAgain() {
  for (const stage of stages) stage.place();
  find("whole").textContent = `${Math.round(look.zoom * 100)} %`;
  find("out").disabled = look.zoom <= 1;
}

const moving = {
  zoom(by, place = null) {
    const zoom = clamp(look.zoom * by, 1, 20);
    if (place) {
      look.x = place.u + ((look.x - place.u) * look.zoom) / zoom;
      look.y = place.v + ((look.y - place.v) * look.zoom) / zoom;
    }
    look.zoom = zoom;
    lookAgain();
  },
  pan(dx, dy) {
    look.x += dx;
    look.y += dy;
    lookAgain();
  },
  whole() {
    Object.assign(look, { zoom: 1, x: 0.5, y: 0.5 });
    lookAgain();
  },
};

class Stage {
  /** on: what the page does when the pointer chooses a box, points at a place, or leaves. */
  constructor(on) {
    this.on = on;
    this.shown = null;
    this.pointers = new Map();
    this.image = make("img", { src: data.picture, alt: "", draggable: false });
    this.canvas = make("canvas", { role: "img" });
    this.marks = shape("svg", { viewBox: `0 0 ${data.width} ${data.height}`, "aria-hidden": "true" });
    this.scene = make("div", { className: "scene" }, this.image, this.canvas, this.marks);
    this.caption = make("p", { className: "caption" });
    const ariaLabel = "Image; plus and minus zoom, shift and arrow keys move it";
    const style = `aspect-ratio: ${data.width} / ${data.height}`; // used where the height is free: on a phone
    const facts = { className: "stage", tabIndex: 0, role: "group", ariaLabel, style };
    this.root = make("div", facts, this.scene, this.caption);
    this.listen();
    new ResizeObserver(() => this.place()).observe(this.root);
  }

  /** Show object `number` of `variant`, or for null the plain image. */
  async show(variant, number) {
    const object = number === null ? null : variant.objects[number];
    const heat = object && (object.heat ??= new Heat(object.map));
    const key = [variant, number, find("colours").value];
    this.heat = heat;
    this.root.classList.toggle("unboxed", !find("boxes").checked);
    this.root.classList.toggle("heated", heat !== null);
    this.canvas.style.opacity = find("opacity").value / 100;
    this.draw(variant, number);
    if (this.shown && key.every((part, i) => part === this.shown[i])) return;
    this.shown = key;
    delete this.root.dataset.painted; // set again once the new content is painted
    await Promise.all([this.image.decode(), heat?.ready()]);
    if (this.shown !== key) return; // something else was chosen meanwhile
    this.canvas.width = this.image.naturalWidth;
    this.canvas.height = this.image.naturalHeight;
    heat?.paint(this.canvas);
    this.root.dataset.painted = number === null ? "none" : String(number + 1);
  }

  draw(variant, number) {
    if (this.drawn !== variant) {
      this.drawn = variant;
      this.boxes = variant.objects.map((object, i) => this.box(object, i));
      this.marks.replaceChildren(...this.boxes);
      this.place();
    }
    this.boxes.forEach((box, i) => box.classList.toggle("chosen", i === number));
    if (number !== null) this.marks.append(this.boxes[number]); // on top
  }

  box({ box: [x1, y1, x2, y2] }, i) {
    const frame = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const width = 9 + 7 * String(i + 1).length;
    const text = shape("text", { x: width / 2, y: 13 }, String(i + 1));
    const tag = shape("g", {}, shape("rect", { class: "tag", width, height: TAG, rx: 4 }), text);
    tag.place = (unit) => {
      // Above the box where there is room.
      const y = y1 - TAG * unit >= 0 ? y1 - TAG * unit : y1;
      tag.setAttribute("transform", `translate(${x1} ${y}) scale(${unit})`);
    };
    const sides = [shape("rect", { class: "under", ...frame }), shape("rect", { class: "line", ...frame })];
    const whole = shape("g", { class: "box" }, ...sides, tag);
    whole.tag = tag;
    return whole;
  }

  /** Fit the image into the stage, then apply the shared zoom and position. */
  place() {
    const { clientWidth, clientHeight } = this.root;
    if (!clientWidth || !clientHeight) return;
    this.scale = Math.min(clientWidth / data.width, clientHeight / data.height) * look.zoom;
    const width = data.width * this.scale, height = data.height * this.scale;
    const middle = (share, length, room) => {
      const half = room / length / 2;
      return half >= 0.5 ? 0.5 : clamp(share, half, 1 - half);
    };
    look.x = middle(look.x, width, clientWidth);
    look.y = middle(look.y, height, clientHeight);
    this.left = clientWidth / 2 - look.x * width;
    this.top = clientHeight / 2 - look.y * height;
    this.scene.style.width = `${width}px`;
    this.scene.style.height = `${height}px`;
    this.scene.style.transform = `translate(${this.left}px, ${this.top}px)`;
    this.root.classList.toggle("zoomed", look.zoom > 1);
    for (const box of this.boxes ?? []) box.tag.place(1 / this.scale);
  }

  /** The position of an event as shares of the image. */
  where(event) {
    const bounds = this.root.getBoundingClientRect();
    const u = (event.clientX - bounds.left - this.left) / (data.width * this.scale);
    const v = (event.clientY - bounds.top - this.top) / (data.height * this.scale);
    return { u, v, inside: u >= 0 && u < 1 && v >= 0 && v < 1 };
  }

  /** The number of the smallest box around a position, or null. */
  hit({ u, v, inside }) {
    const [x, y] = [u * data.width, v * data.height];
    const around = this.drawn.objects
      .map(({ box: [x1, y1, x2, y2] }, i) => ({ i, in: x >= x1 && x < x2 && y >= y1 && y < y2, area: (x2 - x1) * (y2 - y1) }))
      .filter((box) => inside && box.in)
      .sort((a, b) => a.area - b.area);
    return around.length ? around[0].i : null;
  }

  listen() {
    const { root, pointers } = this;
    root.addEventListener("wheel", (event) => {
      event.preventDefault();
      moving.zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 250), this.where(event));
    }, { passive: false });
    root.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      root.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      this.moved = pointers.size > 1;
    });
    root.addEventListener("pointermove", (event) => this.move(event));
    const end = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      root.classList.remove("moving");
      const hit = this.hit(this.where(event));
      if (event.type === "pointerup" && !this.moved && hit !== null) this.on.choose(hit);
    };
    root.addEventListener("pointerup", end);
    root.addEventListener("pointercancel", end);
    root.addEventListener("pointerleave", () => this.on.leave());
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const place = this.where(event);
      this.on.point(this, place, event.pointerType === "mouse" ? this.hit(place) : null);
      return;
    }
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (!this.moved && Math.hypot(dx, dy) < 4) return;
    this.moved = true;
    this.root.classList.add("moving");
    const others = [...this.pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (others.length) {
      const [other] = others;
      const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY) || 1;
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      moving.zoom(apart(event) / apart(before), this.where(middle));
    }
    const share = others.length ? 2 : 1; // two fingers move the middle between them
    moving.pan(-dx / share / (data.width * this.scale), -dy / share / (data.height * this.scale));
  }
}

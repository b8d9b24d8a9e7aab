// Cards: an object in a thumbnail of its image; heat is painted when the card comes near the viewport.

function thumb({ picture, object }) {
  const { width, height } = picture;
  const image = make("img", { alt: "", width, height }), canvas = make("canvas", { ariaHidden: "true" });
  const style = `${width / height > 4 / 3 ? "width" : "height"}: 100%; aspect-ratio: ${width} / ${height}`;
  const frame = make("div", { className: "frame", style }, image, canvas);
  if (object) {
    const [x1, y1, x2, y2] = object.box;
    const inset = [y1 / height, 1 - x2 / width, 1 - y2 / height, x1 / width].map((share) => `${100 * share}%`);
    frame.append(make("span", { className: "mark", style: `inset: ${inset.join(" ")}` }));
  }
  return make("div", { className: "thumb" }, frame);
}

/** A card that links to `href`: label and score, further lines, name of the image. An entry has a picture, and an object or null. */
function card(entry, href, ...lines) {
  const { picture, object } = entry;
  const facts = make(
    "div",
    { className: "facts" },
    make("span", { className: "label" }, object ? named(object.label) : "no object"),
    ...(object ? [scoreSpan(object.score), ...lines] : []),
    make("span", { className: "quiet wide" }, named(picture.name)),
  );
  const item = make("li", { className: "card" }, make("a", { href }, thumb(entry), facts));
  item.entry = entry;
  near.observe(item);
  return item;
}

function clearCards() {
  near.disconnect();
  find("cards").replaceChildren();
}

function repaintCards() {
  for (const item of document.querySelectorAll(".card[data-painted]")) paint(item);
}

/** Decodes the image and paints the heat of a card that comes near the viewport. */
const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    paint(target);
  }
}, { rootMargin: "400px" });

async function paint(item) {
  const { picture, object } = item.entry;
  const image = item.querySelector("img"), canvas = item.querySelector("canvas");
  if (!image.src) image.src = picture.thumbnail;
  if (!object?.map) return;
  delete item.dataset.painted;
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  object.heat ??= new Heat(object.map);
  (await object.heat.ready()).paint(canvas);
  item.dataset.painted = "yes";
}

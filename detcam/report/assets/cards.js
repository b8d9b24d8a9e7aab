// Cards: an object in a thumbnail of its image; heat is painted when the card comes near the viewport.

/** "1 object", "2,000 objects". */
const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

function thumb({ picture, object }) {
  const image = make("img", { alt: "", width: picture.width, height: picture.height });
  const canvas = make("canvas", {});
  canvas.setAttribute("aria-hidden", "true");
  const frame = make("div", { className: "frame" }, image, canvas);
  const wide = picture.width / picture.height > 4 / 3;
  frame.style[wide ? "width" : "height"] = "100%";
  frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
  if (object) {
    const [x1, y1, x2, y2] = object.box;
    const mark = make("span", { className: "mark" });
    mark.style.inset = [y1 / picture.height, 1 - x2 / picture.width, 1 - y2 / picture.height, x1 / picture.width]
      .map((share) => `${100 * share}%`)
      .join(" ");
    frame.append(mark);
  }
  return make("div", { className: "thumb" }, frame);
}

/** A card that links to `href`. An entry has a picture, and an object or null. */
function card(entry, href, facts) {
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
  object.heat ??= new Heat(object.map, picture.span);
  (await object.heat.ready()).paint(canvas, find("colours").value);
  item.dataset.painted = "yes";
}

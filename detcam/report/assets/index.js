// The page of many pictures: a card for each object, filters, and cards made as the reader scrolls.

const BATCH = 60;

/** One entry for each object, and one for each picture without any. */
const entries = data.pictures.flatMap((picture) =>
  picture.objects.length
    ? picture.objects.map((object, number) => ({ picture, object, number }))
    : [{ picture, object: null, number: 0 }],
);
const total = entries.filter((entry) => entry.object).length;
let chosen = entries, made = 0;

const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

/** A filter's number; its end of the range while nothing sensible is typed. */
function limit(id, otherwise) {
  const value = find(id).valueAsNumber;
  return Number.isNaN(value) ? otherwise : value;
}

function passes() {
  const label = find("label").value;
  const [low, high] = [limit("score-low", 0), limit("score-high", 1)];
  const [least, most] = [limit("energy-low", 0) / 100, limit("energy-high", 100) / 100];
  const everything = label === "" && low <= 0 && high >= 1 && least <= 0 && most >= 1;
  return ({ object }) => {
    if (everything || !object) return everything;
    const energy = object.energy ?? 0;
    const fits = label === "" || object.label === labels[Number(label)][0];
    return fits && object.score >= low && object.score <= high && energy >= least && energy <= most;
  };
}

const by = (value, sign) => (a, b) => sign * ((value(a) ?? Infinity * sign) - (value(b) ?? Infinity * sign)) || 0;
const orders = {
  picture: null,
  outside: by((entry) => entry.object?.energy, 1),
  inside: by((entry) => entry.object?.energy, -1),
  weak: by((entry) => entry.object?.score, 1),
  strong: by((entry) => entry.object?.score, -1),
};

/** Labels with their counts, the most frequent first. */
const labels = (() => {
  const counts = new Map();
  for (const { object } of entries) if (object) counts.set(object.label, (counts.get(object.label) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
})();

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

function facts({ picture, object }) {
  const name = make("span", { className: "quiet wide" }, named(picture.name));
  if (!object) return make("div", { className: "facts" }, make("span", { className: "label" }, "no object"), name);
  return make(
    "div",
    { className: "facts" },
    make("span", { className: "label" }, named(object.label)),
    make("span", { className: "score" }, make("span", { className: "unseen" }, "score "), object.score.toFixed(2)),
    meter(object.energy ?? 0),
    make("span", { className: "quiet wide" }, energyText(object.energy)),
    name,
  );
}

function card(entry) {
  const href = entry.object ? `${entry.picture.page}#${entry.number + 1}` : entry.picture.page;
  const item = make("li", { className: "card" }, make("a", { href }, thumb(entry), facts(entry)));
  item.entry = entry;
  near.observe(item);
  return item;
}

/** Pictures are decoded and heat is painted when a card comes near the window. */
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
  if (!object) return;
  delete item.dataset.painted;
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  object.heat ??= new Heat(object.map, picture.span);
  (await object.heat.ready()).paint(canvas, find("colours").value);
  item.dataset.painted = "yes";
}

function showMore() {
  const next = chosen.slice(made, made + BATCH);
  made += next.length;
  find("cards").append(...next.map(card));
  find("more").hidden = made >= chosen.length;
  end.unobserve(find("more")); // observed afresh it reports again, if it is still near
  end.observe(find("more"));
}

const end = new IntersectionObserver(([more]) => more.isIntersecting && showMore(), { rootMargin: "600px" });

function filter() {
  chosen = entries.filter(passes());
  const order = orders[find("order").value];
  if (order) chosen.sort(order);
  const shown = chosen.filter((entry) => entry.object);
  const pictures = new Set(chosen.map((entry) => entry.picture)).size;
  find("count").textContent = `${counted(shown.length, "object")} in ${counted(pictures, "picture")}`;
  near.disconnect();
  find("cards").replaceChildren();
  made = 0;
  showMore();
}

function setUp() {
  find("name").append(named(data.name));
  find("all").textContent = `${counted(total, "object")} in ${counted(data.pictures.length, "picture")}`;
  const options = labels.map(([label, count], i) => make("option", { value: i }, `${label} (${count})`));
  find("label").append(make("option", { value: "" }, "all"), ...options);
  find("colours").append(...Object.keys(data.colours).map((name) => make("option", { value: name }, name)));
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").addEventListener("input", (event) => {
    if (event.target.id !== "colours") filter();
    else for (const item of document.querySelectorAll(".card[data-painted]")) paint(item);
  });
  find("filters").addEventListener("reset", () => setTimeout(filter)); // the form is reset after this event
  find("more").addEventListener("click", showMore);
  filter();
}

setUp();

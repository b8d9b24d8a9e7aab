// Index page: a card for each object, filters, and cards that are made as the reader scrolls.

const BATCH = 60;

/** An entry for each object, and an entry for each image without objects. */
const entries = data.pictures.flatMap((picture) =>
  picture.objects.length
    ? picture.objects.map((object, number) => ({ picture, object, number }))
    : [{ picture, object: null, number: 0 }],
);
const total = entries.filter((entry) => entry.object).length;
let chosen = entries, made = 0;

/** The number in a filter; `otherwise` while the field has no valid number. */
const limit = (id, otherwise) => (Number.isNaN(find(id).valueAsNumber) ? otherwise : find(id).valueAsNumber);

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

const labels = countLabels(entries.flatMap(({ object }) => object ?? [])).sort(byCount);

function cardOf(entry) {
  const { picture, object, number } = entry;
  if (!object) return card(entry, picture.page);
  const said = object.energy === null ? "no heat" : `${percent(object.energy)} of the heat in its box`;
  const lines = object.check ? checkOf(object.check) : [meter(object.energy ?? 0)];
  return card(entry, `${picture.page}#${number + 1}`, ...lines, make("span", { className: "quiet wide" }, said));
}

function showMore() {
  const next = chosen.slice(made, made + BATCH);
  made += next.length;
  find("cards").append(...next.map(cardOf));
  find("more").hidden = made >= chosen.length;
  end.unobserve(find("more")); // a new observation reports again if the button is still near
  end.observe(find("more"));
}

const end = new IntersectionObserver(([more]) => more.isIntersecting && showMore(), { rootMargin: "600px" });

function filter() {
  chosen = entries.filter(passes());
  const order = orders[find("order").value];
  if (order) chosen.sort(order);
  const shown = chosen.filter((entry) => entry.object);
  const pictures = new Set(chosen.map((entry) => entry.picture)).size;
  find("count").textContent = `${counted(shown.length, "object")} in ${counted(pictures, "image")}`;
  clearCards();
  made = 0;
  showMore();
}

function setUp() {
  find("name").append(named(data.name));
  if (data.summary) Object.assign(find("summary"), { href: data.summary, hidden: false });
  find("all").textContent = `${counted(total, "object")} in ${counted(data.pictures.length, "image")}`;
  find("label").append(...labelOptions("all", labels));
  find("filters").addEventListener("input", (event) => {
    if (event.target.id !== "colours") filter();
    else repaintCards();
  });
  find("filters").addEventListener("reset", () => setTimeout(filter)); // the form is reset after this event
  find("more").addEventListener("click", showMore);
  filter();
}

setUp();

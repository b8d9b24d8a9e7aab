// Image page: the chosen object, and the controls.

const state = { variant: data.variants[0], number: null, preview: null, beside: "" };
const PLAIN = "plain";

const on = {
  choose(number) {
    state.number = number;
    state.preview = null;
    find("said").textContent = sentence(state.variant, number);
    history.replaceState(null, "", number === null ? "#none" : `#${number + 1}`);
    refresh();
  },
  preview(number) {
    if (state.preview === number) return;
    state.preview = number;
    refresh();
  },
  count: () => state.variant.objects.length,
  at: () => state.number,
  refresh,
  view: nextView,
  beside: () => setBeside(state.beside ? "" : data.variants.length > 1 ? find("beside").options[2].value : PLAIN),
  point(stage, place, hit) {
    on.preview(hit);
    readOut(stage, place);
  },
  leave() {
    on.preview(null);
    find("value").textContent = "Point at the image to read the heat.";
  },
};

stages = [new Stage(on), new Stage(on)];

/** Show the object under the pointer, else the chosen object. */
function refresh() {
  const number = state.preview ?? state.number;
  markInList(state.number);
  find("detail").textContent = number === null ? "" : detail(state.variant.objects[number]);
  const [variant, other] = besideOf(number);
  const shown = [[state.variant, number], [variant, other]];
  stages.forEach((stage, i) => {
    if (i && !state.beside) return;
    stage.show(...shown[i]);
    caption(stage, ...shown[i]);
  });
}

function caption(stage, variant, number) {
  const title = number === null ? "plain image" : titleOf(variant, number);
  const made = state.beside && number !== null ? data.facets.map((facet) => variant.choices[facet]).join(" · ") : "";
  stage.caption.replaceChildren(named(title), ...(made ? [" · ", named(made)] : []));
  stage.canvas.ariaLabel =
    number === null ? "No heatmap" : `Heatmap of object ${number + 1}, ${variant.objects[number].label}`;
}

/** The content of the second stage: [variant, number]. */
function besideOf(number) {
  const [kind, which] = state.beside.split(" ");
  if (kind === "variant") {
    const variant = data.variants[Number(which)];
    return [variant, number === null ? null : same(state.variant.objects[number], variant)];
  }
  return [state.variant, kind === "object" && Number(which) < on.count() ? Number(which) : null];
}

/** The matching object of another explanation: same label, largest overlap. */
function same(object, variant) {
  const overlap = ([a, b, c, d], [e, f, g, h]) => {
    const inner = Math.max(Math.min(c, g) - Math.max(a, e), 0) * Math.max(Math.min(d, h) - Math.max(b, f), 0);
    return inner / ((c - a) * (d - b) + (g - e) * (h - f) - inner || 1);
  };
  const places = variant.objects.map((other, i) => [other.label === object.label ? overlap(object.box, other.box) : 0, i]);
  const [best, i] = places.reduce((a, b) => (b[0] > a[0] ? b : a), [0, null]);
  return best > 0.3 ? i : null;
}

function readOut(stage, { u, v, inside }) {
  if (!inside) return;
  const at = `x ${Math.floor(u * data.width)}, y ${Math.floor(v * data.height)}`;
  const { heat } = stage;
  if (!heat?.levels) {
    find("value").textContent = at;
    return;
  }
  const value = heat.at(u, v);
  const raw = heat.low + (heat.high - heat.low) * value;
  find("value").textContent = `${at} · heat ${value.toFixed(3)} · raw ${raw.toPrecision(3)}`;
}

/** A menu for each setting in which the explanations differ; a choice keeps as many other settings as possible. */
function fillFacets() {
  for (const facet of data.facets) {
    const values = [...new Set(data.variants.map((variant) => variant.choices[facet]))];
    const title = facet[0].toUpperCase() + facet.slice(1);
    if (facet === "view") {
      find("facets").append(viewSwitch(title, values));
      continue;
    }
    const select = make("select", { id: `facet-${facet}` }, ...values.map((value) => option(value, value)));
    select.addEventListener("change", () => chooseVariant(facet, select.value));
    find("facets").append(make("label", { className: "field", htmlFor: select.id }, make("span", {}, title), select));
  }
}

/** A button for each view. */
function viewSwitch(title, views) {
  const buttons = views.map((view) => {
    const button = make("button", { className: "plain view", type: "button", value: view }, view);
    button.addEventListener("click", () => chooseVariant("view", view));
    return button;
  });
  const group = make("div", { className: "field", role: "group", ariaLabel: title }, make("span", {}, title));
  group.append(make("span", { className: "zoom" }, ...buttons));
  return group;
}

function nextView() {
  const views = [...document.querySelectorAll("button.view")].map((button) => button.value);
  if (views.length) chooseVariant("view", views[(views.indexOf(state.variant.choices.view) + 1) % views.length]);
}

function chooseVariant(facet, value) {
  const kept = (variant) => data.facets.filter((name) => variant.choices[name] === state.variant.choices[name]).length;
  const fitting = data.variants.filter((variant) => variant.choices[facet] === value);
  const next = fitting.reduce((a, b) => (kept(b) > kept(a) ? b : a));
  const number = state.number === null ? null : same(state.variant.objects[state.number], next);
  setVariant(next);
  on.choose(number);
}

function setVariant(variant) {
  state.variant = variant;
  for (const facet of data.facets.filter((name) => name !== "view")) find(`facet-${facet}`).value = variant.choices[facet];
  for (const button of document.querySelectorAll("button.view")) button.ariaPressed = String(button.value === variant.choices.view);
  find("reading").textContent = variant.reading;
  find("made").textContent = described(variant.choices);
  const counts = countLabels(variant.objects).map(([label, count]) => `${count} ${label}`).join(", ");
  for (const stage of stages) stage.image.alt = `${data.name}: ${counts || "no objects"}`;
  fillList(variant, on);
  fillBeside();
}

function fillBeside() {
  const others = data.variants
    .map((variant, i) => [`variant ${i}`, data.facets.map((facet) => variant.choices[facet]).join(" · ")])
    .filter((_, i) => data.variants[i] !== state.variant);
  const objects = state.variant.objects.map((_, i) => [`object ${i}`, titleOf(state.variant, i)]);
  const groups = [["Same object, by", others], ["Another object", objects]]
    .filter(([, choices]) => choices.length)
    .map(([label, choices]) => make("optgroup", { label }, ...choices.map((choice) => option(...choice))));
  find("beside").replaceChildren(option("", "nothing"), option(PLAIN, "the plain image"), ...groups);
  find("beside").value = state.beside;
  if (find("beside").selectedIndex < 0) setBeside("");
}

function setBeside(value) {
  state.beside = value;
  find("beside").value = value;
  find("stages").replaceChildren(...(value ? stages : stages.slice(0, 1)).map((stage) => stage.root));
  refresh();
}

function setUp() {
  find("name").append(named(data.name));
  if (data.index) Object.assign(find("index"), { href: data.index, hidden: false });
  fillFacets();
  setVariant(state.variant);
  setBeside("");
  find("beside").addEventListener("change", (event) => setBeside(event.target.value));
  setUpControls(on);
  lookAgain();
  const wanted = Number(location.hash.slice(1));
  on.choose(on.count() === 0 || location.hash === "#none" ? null : clamp(Number.isInteger(wanted) ? wanted : 1, 1, on.count()) - 1);
}

setUp();

// Heat summary page: statistics over all objects or one class, a list of classes, and cards of single objects.

const KINDS = {
  found: { option: "all detections", title: "Recognised mostly by their surroundings" },
  right: { option: "right: they match a label", title: "Right, but recognised mostly by their surroundings" },
  wrong: { option: "false positives: they match no label", title: "False positives" },
  missed: { option: "missed: labels that no object matches", title: "Missed" },
};
const MEAN = 288; // pixels of a mean map
const FEW = 12; // classes that are shown at first

const state = { way: data.ways[0], kind: "found", label: null, few: true };
const group = () => state.way.groups[state.kind];
const shown = () => (state.label === null ? group().all : group().classes.find(({ label }) => label === state.label));
const rounded = (share) => (share > 0 && share < 0.005 ? "under 1 %" : percent(share));

/** The mean map of a summary, and the box on it. */
function meanMap(summary) {
  const canvas = make("canvas", { width: MEAN, height: MEAN, ariaHidden: "true" });
  paintMean(canvas, summary.mean);
  return [canvas, make("span", { className: "mark", style: `inset: ${(100 * data.margin) / (1 + 2 * data.margin)}%` })];
}

async function paintMean(canvas, map) {
  const heat = await new Heat(map).ready();
  heat.paint(canvas, 0xff000000);
  canvas.dataset.painted = "yes";
}

/** Shares of the heat: in the box, on each side of the box, around it, farther away. */
function places({ zones, farther }) {
  const [[a, above, b], [left, inside, right], [c, below, d]] = zones;
  const sides = [["above", above], ["to the left", left], ["to the right", right], ["below", below]];
  return { inside, around: above + left + right + below + a + b + c + d, sides, farther };
}

function fillWhole() {
  const summary = shown();
  const { measured } = summary;
  find("whole-title").replaceChildren(...(state.label === null ? ["All classes"] : [named(state.label)]));
  find("counts").textContent = countsText(summary);
  find("whole").hidden = !measured;
  if (!measured) return;
  for (const id of ["lies", "histogram"]) find(id).hidden = !summary.quartiles;
  find("refused").hidden = Boolean(summary.quartiles);
  find("mean").replaceChildren(...meanMap(summary));
  find("mean-caption").textContent = `Mean of ${counted(measured - (summary.quartiles ? summary.blind : 0), "map")}, stretched so that each box fills the cyan frame`;
  if (!summary.quartiles) {
    const { method, layers } = state.way.choices;
    find("refused").textContent =
      `These maps cannot tell whether the model uses evidence outside the boxes: ${method} at ${layers} has heat only next ` +
      "to the place that an object was read from, whatever the model looks at. Explain the images with --view why.";
    return;
  }
  const { inside, around, sides, farther } = places(summary);
  const most = sides.reduce((a, b) => (b[1] > a[1] ? b : a));
  const rows = [
    ["in the box", inside, `for an even spread over the images: ${rounded(1 - summary.even)}`],
    ["around it, up to one box length away", around, `mostly ${most[0]}: ${rounded(most[1])}`],
    ["farther away", farther, ""],
    ["in boxes of other objects", summary.others, "also counted above"],
  ];
  find("shares").replaceChildren(
    ...rows.map(([name, share, more], i) =>
      make("div", { className: i === 3 ? "apart" : "" },
        make("dt", {}, name, ...(more ? [make("span", { className: "quiet" }, more)] : [])),
        make("dd", {}, rounded(share))),
    ),
  );
  fillBars(summary);
}

function countsText({ objects, measured, blind, unexplained, mostly, small, quartiles }) {
  if (!objects) return state.kind === "missed" ? "Every label is matched." : "There are none.";
  const parts = [counted(objects, state.kind === "missed" ? "label" : "object")];
  if (unexplained) parts.push(`${unexplained.toLocaleString("en")} without a map, because the model was not asked about them`);
  const dark = objects - measured - unexplained;
  if (dark) parts.push(`${dark.toLocaleString("en")} without heat, left out`);
  if (blind) parts.push(`${blind.toLocaleString("en")} whose maps cannot show heat around the box`);
  if (quartiles) parts.push(`${mostly.toLocaleString("en")} with more than half of the heat outside the box`);
  if (small) parts.push(`${small.toLocaleString("en")} too small for their maps to tell`);
  return parts.join(" · ");
}

function fillBars({ histogram, quartiles, even }) {
  const measured = histogram.reduce((a, b) => a + b);
  const tallest = Math.max(...histogram);
  const bars = histogram.map((count, i) => {
    const className = (i + 0.5) / histogram.length > data.mostly ? "bar most" : "bar";
    return make("span", { className, style: `height: ${count ? `max(3px, ${(100 * count) / tallest}%)` : "0"}` });
  });
  find("bars").replaceChildren(...bars, make("span", { className: "median", style: `left: ${100 * quartiles[2]}%` }));
  const [least, lower, median, upper, largest] = quartiles.map(rounded);
  find("spread").textContent =
    measured === 1
      ? `One object: ${median}`
      : `Median ${median}; half of the ${measured.toLocaleString("en")} between ${lower} and ${upper}; from ${least} to ${largest}. ` +
        `For an even spread over the images: ${rounded(even)}`;
}

/** Box plot of the shares outside the box. */
function boxPlot([least, lower, median, upper, largest]) {
  const part = (className, from, to) =>
    make("span", { className, style: `left: ${100 * from}%; width: ${100 * (to - from)}%` });
  const parts = [part("reach", least, largest), part("half", lower, upper), part("middle", median, median)];
  return make("span", { className: "plot", ariaHidden: "true" }, ...parts);
}

function classButton(summary) {
  const { label, objects, measured, mostly, small, quartiles } = summary;
  const quiet = (text) => make("span", { className: "quiet" }, text);
  const lines = [];
  if (quartiles) lines.push(boxPlot(quartiles), quiet(`${measured > 1 ? "median " : ""}${rounded(quartiles[2])} outside`));
  if (mostly) lines.push(quiet(`${mostly.toLocaleString("en")} mostly outside`));
  if (small) lines.push(quiet(`${small.toLocaleString("en")} too small to tell`));
  if (!quartiles) lines.push(quiet(measured ? "cannot tell" : "no map"));
  const count = make("span", { className: "count" }, objects.toLocaleString("en"), make("span", { className: "unseen" }, " objects "));
  const head = make("span", { className: "head" }, make("span", { className: "label" }, named(label)), count);
  const seen = measured ? [make("span", { className: "seen" }, ...meanMap(summary))] : [];
  const ariaPressed = String(label === state.label);
  const button = make("button", { type: "button", className: "class", ariaPressed }, ...seen, head, ...lines);
  button.addEventListener("click", () => choose({ label: label === state.label ? null : label }));
  return make("li", {}, button);
}

function fillClasses() {
  const telling = ({ mostly, objects, quartiles }) => mostly / objects + (quartiles?.[2] ?? 0) / 1000; // the median decides ties
  const classes = [...group().classes];
  if (find("order").value === "surroundings") classes.sort((a, b) => telling(b) - telling(a));
  const few = state.few && classes.length > FEW;
  find("classes").replaceChildren(...(few ? classes.slice(0, FEW) : classes).map(classButton));
  find("more").hidden = !few;
  find("more").textContent = `Show all ${classes.length} classes`;
  find("by-class").hidden = !classes.length;
}

function cardOf(entry) {
  const { spread, note, map } = entry.object;
  const lines = [];
  if (spread) {
    const others = spread.others >= 0.005 ? `, ${percent(spread.others)} on other objects` : "";
    lines.push(meter(spread.outside), make("span", { className: "quiet note" }, `${rounded(spread.outside)} outside the box${others}`));
  } else lines.push(make("span", { className: "quiet wide" }, map ? "no heat" : "no map"));
  if (note) lines.push(make("span", { className: "quiet note" }, named(note)));
  return card(entry, entry.picture.page, ...lines);
}

function fillCards() {
  const { cards } = group();
  const chosen = cards.filter(({ object }) => state.label === null || object.label === state.label);
  clearCards();
  find("cards").append(...chosen.map(cardOf));
  find("cards-title").textContent = KINDS[state.kind].title;
  const { objects, measured, mostly, quartiles } = shown();
  const mistakes = state.kind === "wrong" || state.kind === "missed";
  const all = mistakes ? objects : mostly;
  const some = chosen.length < all ? `${chosen.length} of ${all.toLocaleString("en")}: the` : "The";
  const hint = mistakes
    ? `${some} largest share outside the box comes first.`
    : `${some} largest share outside the box comes first. A large share hints at a cue beside the object, in its background or on its neighbours: check whether it should count.`;
  const none = mistakes || !measured
    ? "There are none."
    : quartiles
      ? "There are none: the heat of every object lies mostly in its box."
      : "These maps cannot tell.";
  find("cards-said").textContent = chosen.length ? hint : none;
}

function fillChoices() {
  const kinds = Object.keys(state.way.groups);
  find("kind").replaceChildren(...kinds.map((kind) => option(kind, `${KINDS[kind].option} (${state.way.groups[kind].all.objects})`)));
  find("kind").value = state.kind;
  find("kinds").hidden = kinds.length < 2;
  const { classes } = group();
  find("label").replaceChildren(...labelOptions("all", classes.map(({ label, objects }) => [label, objects])));
  find("label").value = state.label === null ? "" : String(classes.findIndex(({ label }) => label === state.label));
  const made = [named(data.name), ` · ${counted(state.way.pictures, "image")} · `, named(described(state.way.choices))];
  find("made").replaceChildren(...made);
}

/** Choose explanations, a kind of objects or a class; if the kind has no objects of the class, show all classes. */
function choose(wanted) {
  Object.assign(state, wanted);
  if (state.label !== null && !shown()) state.label = null;
  fillChoices();
  fillWhole();
  fillCards();
  if (Object.keys(wanted).join() !== "label") fillClasses();
  for (const button of document.querySelectorAll("button.class")) {
    button.ariaPressed = String(button.querySelector(".label").textContent === state.label);
  }
}

function fillReading() {
  const lines = [
    "Heat is the evidence that the method assigns to each place for the object’s score; negative values count as 0, and the minimum of the map is subtracted.",
    "Before averaging, the heat of each object is divided by its sum over the image, so all objects count the same. A mean map is coloured from its minimum to its maximum.",
    `Boxes smaller than ${data.fine} cells of their map are averaged, but not counted as recognised by their surroundings: the map cannot tell inside from outside.`,
    "A map that has no heat in most of the surroundings of its box, up to one box length away, cannot show evidence there. If most maps are like that, the share outside is not reported.",
    "Maps blur over the edges of a box, the more the smaller it is: compare classes and models with each other, and with an even spread.",
    "Heat beyond the edges of an image is not counted.",
  ];
  if (state.way.groups.missed) {
    lines.push("An object is right if it has the class of a label and overlaps its box by more than half (IoU), in the order of decreasing scores; each label matches one object.");
    lines.push("The map of a miss is that of the best candidate when the model was asked about it (detcam explain --ask); the box is that of the label.");
  }
  find("reading").replaceChildren(...lines.map((line) => make("li", {}, line)));
}

function setUp() {
  find("back").href = data.back.page;
  find("back").textContent = data.back.title;
  find("ways").hidden = data.ways.length < 2;
  const title = ({ choices }) => Object.values(choices).filter(Boolean).join(" · ");
  find("way").append(...data.ways.map((way, i) => option(i, title(way))));
  find("way").addEventListener("change", ({ target }) => choose({ way: data.ways[target.value] }));
  find("kind").addEventListener("change", ({ target }) => choose({ kind: target.value }));
  find("label").addEventListener("change", ({ target }) => choose({ label: target.value === "" ? null : group().classes[target.value].label }));
  find("colours").addEventListener("change", () => {
    fillWhole();
    fillClasses();
    repaintCards();
  });
  find("order").addEventListener("change", fillClasses);
  find("more").addEventListener("click", () => {
    state.few = false;
    fillClasses();
    document.querySelectorAll("button.class")[FEW].focus(); // the pressed button is gone
  });
  fillReading();
  choose({ kind: "found" });
}

setUp();

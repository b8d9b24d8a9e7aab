// Comparison page: a list of objects, and the heatmaps of both sides for the chosen object.

const SIDES = ["a", "b"], MARKS = ["A", "B"];
const HINT = "Point at an image to read the heat of both sides.";

const state = { rows: data.rows, at: null, picture: null, swapped: false };

const figure = (value) => (value === null ? "–" : value.toFixed(2).replace(/^-(0\.00)$/, "$1"));
const kindOf = (row) => (row.a === null ? "b" : row.b === null ? "a" : "both");
const objectOf = (row, side) => {
  const number = row[SIDES[side]];
  return number === null ? null : data.pictures[row.picture].sides[side].objects[number];
};
/** The object of a row: that of side A, else that of side B. */
const mainOf = (row) => objectOf(row, 0) ?? objectOf(row, 1);
const scoreOf = (row) => Math.max(...[0, 1].map((side) => objectOf(row, side)?.score ?? 0));
const sideAt = (place) => (state.swapped ? 1 - place : place);

const on = {
  count: () => state.rows.length,
  at: () => state.at,
  refresh,
  choose(at) {
    state.at = at;
    const row = state.rows[at];
    if (row && state.picture !== row.picture) setPicture(row.picture);
    history.replaceState(null, "", row ? `#${data.rows.indexOf(row) + 1}` : "#none");
    find("said").textContent = row ? sentence(row) : "No object: the plain image";
    lookClose();
    refresh();
  },
  point(stage, { u, v, inside }) {
    if (!inside) return;
    const heats = [0, 1].map((side) => stages[sideAt(side)].heat);
    const values = heats.map((heat, side) => (heat?.levels ? ` · ${MARKS[side]} ${heat.at(u, v).toFixed(3)}` : ""));
    find("value").textContent = `x ${Math.floor(u * data.width)}, y ${Math.floor(v * data.height)}${values.join("")}`;
  },
  leave() {
    find("value").textContent = HINT;
  },
  beside() {
    state.swapped = !state.swapped;
    find("swap").ariaPressed = String(state.swapped);
    refresh();
  },
  /** A box was clicked: choose its row, even if the filters hide it. */
  hit(side, number) {
    const fits = (row) => row.picture === state.picture && row[SIDES[side]] === number;
    const row = data.rows.find(fits);
    if (!row) return; // a row that the page does not contain
    if (!state.rows.includes(row)) {
      find("filters").reset();
      filter(row);
    } else on.choose(state.rows.indexOf(row));
  },
};

/** Switch to an image; stages read `data.picture`, `data.width` and `data.height`. */
function setPicture(number) {
  state.picture = number;
  const { picture, width, height, name } = data.pictures[number];
  Object.assign(data, { picture, width, height });
  Object.assign(look, { zoom: 1, x: 0.5, y: 0.5 });
  stages = [0, 1].map((place) => new Stage({ ...on, choose: (hit) => on.hit(sideAt(place), hit) }));
  for (const stage of stages) stage.image.alt = name;
  find("stages").replaceChildren(...stages.map((stage) => stage.root));
  lookAgain();
}

/** If "Zoom to object" is checked, zoom so that the box or both boxes fill half of the stage. */
function lookClose() {
  const row = state.rows[state.at];
  if (!row || !find("close").checked) return;
  const boxes = [0, 1].flatMap((side) => (objectOf(row, side) ? [objectOf(row, side).box] : []));
  const edge = (i, pick, size) => pick(...boxes.map((box) => box[i])) / size;
  const [left, top] = [edge(0, Math.min, data.width), edge(1, Math.min, data.height)];
  const [right, bottom] = [edge(2, Math.max, data.width), edge(3, Math.max, data.height)];
  look.zoom = clamp(0.5 / Math.max(right - left, bottom - top), 1, 20);
  [look.x, look.y] = [(left + right) / 2, (top + bottom) / 2];
  lookAgain();
}

function refresh() {
  const row = state.rows[state.at] ?? null;
  stages.forEach((stage, place) => {
    const side = sideAt(place), shown = data.pictures[state.picture].sides[side];
    const missing = row !== null && row[SIDES[side]] === null;
    const number = row && (missing ? row.instead : row[SIDES[side]]);
    stage.show(shown, number);
    stage.root.classList.toggle("missing", missing);
    const object = number === null ? null : shown.objects[number];
    const title = object && `${object.label} ${figure(object.score)}`;
    const said = row === null ? "plain image" : missing ? absent(row, object, title) : title;
    stage.caption.replaceChildren(make("span", { className: "mark" }, MARKS[side]), named(said));
    stage.canvas.ariaLabel = object ? `Heatmap of ${MARKS[side]}, ${object.label}` : `${MARKS[side]}: no heatmap`;
  });
  markInList(state.at);
  fillMeasures(row);
}

/** Class names are compared without case, as in the matching. */
const isTwin = (row, other) => other !== null && other.label.toLowerCase() === mainOf(row).label.toLowerCase();

/** The caption of a side that lacks the object; names the object that the side has in its place. */
function absent(row, other, title) {
  if (isTwin(row, other)) return `${title}, paired with another box`;
  return other ? `not found; instead ${title}` : "not found";
}

/** What a screen reader hears when an object is chosen. */
function sentence(row) {
  const scores = [0, 1].map((side) => {
    const object = objectOf(row, side);
    if (object) return `${MARKS[side]} score ${figure(object.score)}`;
    const other = row.instead === null ? null : data.pictures[row.picture].sides[side].objects[row.instead];
    return isTwin(row, other) ? `${MARKS[side]} pairs it with another box` : `not found by ${MARKS[side]}`;
  });
  const alike = kindOf(row) === "both" ? `similarity ${figure(row.similarity)}, ` : "";
  return `${mainOf(row).label} in ${data.pictures[row.picture].name}: ${alike}${scores.join(", ")}`;
}

function fillMeasures(row) {
  const objects = [0, 1].map((side) => row && objectOf(row, side));
  const inBox = (object) => (object.energy === null ? "no heat" : percent(object.energy));
  const facts = [
    ...(row && kindOf(row) === "both"
      ? [["Similarity", figure(row.similarity)], ["Rank correlation", figure(row.rank_correlation)], ["Box overlap", figure(row.iou)]]
      : []),
    ...objects.flatMap((object, side) => (object ? [[`Heat in box, ${MARKS[side]}`, inBox(object)]] : [])),
  ];
  find("measures").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const notes = objects.flatMap((object, side) => (object?.note ? [make("li", {}, `${MARKS[side]}: `, named(object.note))] : []));
  find("notes").replaceChildren(...notes);
}

function listItem(row, at) {
  const kind = kindOf(row), alone = kind !== "both";
  const scores = [0, 1].flatMap((side) => (objectOf(row, side) ? [`${MARKS[side]} ${figure(objectOf(row, side).score)}`] : []));
  const facts = make(
    "span",
    { className: "quiet" },
    make("span", { className: "scores" }, make("span", { className: "unseen" }, "scores "), scores.join(" · ")),
    make("span", { className: "picture" }, data.pictures.length > 1 ? named(data.pictures[row.picture].name) : ""),
  );
  const alike = alone ? `only ${kind.toUpperCase()}` : figure(row.similarity);
  const button = make(
    "button",
    { className: "object row", type: "button" },
    make("span", { className: "number" }, String(at + 1)),
    make("span", { className: "label" }, named(mainOf(row).label)),
    make("span", { className: "alike" }, ...(alone ? [] : [make("span", { className: "unseen" }, "similarity ")]), alike),
    make("span", { className: "rest" }, ...(alone ? [] : [meter(row.similarity ?? 0)]), facts),
  );
  button.addEventListener("click", () => on.choose(state.rows.indexOf(row)));
  return make("li", {}, button);
}

const unmatchedLast = (a, b) => (a.similarity === null) - (b.similarity === null);
const orders = {
  least: () => 0, // as they come
  most: (a, b) => unmatchedLast(a, b) || b.similarity - a.similarity,
  score: (a, b) => scoreOf(b) - scoreOf(a),
  picture: (a, b) => a.picture - b.picture,
};

/** Show the rows that pass the filters, and keep `row` chosen if it is among them. */
function filter(row = state.rows[state.at]) {
  const kind = find("kind").value, label = find("label").value;
  const passes = (item) => (kind === "" || kindOf(item) === kind) && (label === "" || mainOf(item).label === labels[Number(label)][0]);
  state.rows = data.rows.filter(passes).sort(orders[find("order").value]);
  const count = state.rows.length;
  find("rows-title").textContent = counted(count, "object");
  const none = make("li", { className: "quiet" }, data.rows.length ? "No object passes the filters." : "Neither side found an object.");
  find("rows").replaceChildren(...(count ? state.rows.map(listItem) : [none]));
  const at = state.rows.indexOf(row);
  on.choose(at >= 0 ? at : count ? 0 : null);
}

const labels = countLabels(data.rows.map(mainOf)).sort(byCount);

function fillHead() {
  const side = (i) => [make("span", { className: "mark" }, MARKS[i]), " ", named(data.names[i])];
  find("name").append(...side(0), make("span", { className: "versus" }, " and "), ...side(1));
  const { pictures, both, only_a, only_b, similarity } = data.summary;
  const parts = [counted(pictures, "image"), `${counted(both, "object")} in both`, `${only_a} in A only`, `${only_b} in B only`];
  if (similarity !== null) parts.splice(2, 0, `mean similarity ${figure(similarity)}`);
  find("summary").textContent = parts.join(" · ");
  const made = data.settings.map(({ method, layers, target }) => {
    return described({ method, layers: [layers ?? []].flat().join(", "), target }); // pixel methods have no layers
  });
  const lines = made[0] === made[1] ? [["A and B", made[0]]] : made.map((line, i) => [MARKS[i], line]);
  find("made").append(...lines.flatMap(([who, line], i) => (line ? [i ? " — " : "", `${who}: `, named(line)] : [])));
  find("more").hidden = !data.left_out;
  find("more").textContent = `${counted(data.left_out, "more object")} in compare.json.`;
}

function fillFilters() {
  const kinds = [["", "all objects"], ["both", "in both"], ["a", "in A only"], ["b", "in B only"]];
  find("kind").append(...kinds.map((kind) => option(...kind)));
  find("label").append(...labelOptions("all classes", labels));
}

function setUp() {
  fillHead();
  fillFilters();
  find("viewer").hidden = !data.rows.length;
  on.leave();
  find("filters").addEventListener("input", () => filter());
  find("swap").addEventListener("click", on.beside);
  find("close").addEventListener("change", () => (find("close").checked ? lookClose() : moving.whole()));
  setUpControls(on);
  filter(data.rows[Number(location.hash.slice(1)) - 1]);
}

setUp();

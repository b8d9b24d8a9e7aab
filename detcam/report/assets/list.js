// The list of objects, and texts about them.

/** "person 0.92", for captions and options. */
const titleOf = (variant, number) => `${number + 1} · ${variant.objects[number].label} ${variant.objects[number].score.toFixed(2)}`;

/** What a screen reader hears when an object is chosen. */
function sentence(variant, number) {
  if (number === null) return "No object: the plain image";
  const object = variant.objects[number];
  const note = object.note ? `. ${object.note}` : "";
  return `Object ${number + 1}, ${object.label}, score ${object.score.toFixed(2)}${note}. ${detail(object)}`;
}

/** What the check and the box say about an object's map. */
function detail({ energy, check }) {
  const verdict = check ? `${check.text[0].toUpperCase()}${check.text.slice(1)}. ` : "";
  const where = energy === null ? "No heat." : `${percent(energy)} of the heat lies in the box: where the map is hot, not whether it is right.`;
  return verdict + where;
}

function listItem(object, number, on) {
  const rest = make("span", { className: "rest" });
  if (object.check) rest.append(...checkOf(object.check));
  else if (object.energy === null) rest.append(make("span", { className: "note" }, "no heat"));
  if (object.note) rest.append(make("span", { className: "note" }, named(object.note)));
  const button = make(
    "button",
    { className: "object", type: "button" },
    make("span", { className: "number" }, String(number + 1)),
    make("span", { className: "label" }, named(object.label)),
    scoreSpan(object.score),
    rest,
  );
  button.addEventListener("click", () => on.choose(number));
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && on.preview(number));
  button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && on.preview(null));
  return make("li", {}, button);
}

function fillList(variant, on) {
  const count = variant.objects.length;
  find("checked").hidden = !variant.objects.some((object) => object.check);
  find("objects-title").textContent = counted(count, "object");
  const items = variant.objects.map((object, i) => listItem(object, i, on));
  const empty = make("li", { className: "quiet" }, "The model found nothing in this image above its threshold.");
  find("objects").replaceChildren(...(count ? items : [empty]));
}

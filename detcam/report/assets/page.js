// Shared by all pages: the data, small helpers, light and dark theme.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (share) => `${Math.round(share * 100)} %`;
/** "1 object", "2,000 objects". */
const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
/** The settings of explanations as a line of text. */
const described = ({ model, method, layers, target }) =>
  [model, method, layers && `layers ${layers}`, target && `target ${target}`].filter(Boolean).join(" · ");

/** An element with properties; children are elements or text, which always stays text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Untrusted text in an element that isolates its writing direction. */
const named = (text) => make("bdi", {}, text);

const option = (value, text) => make("option", { value }, text);

function meter(share) {
  return make("span", { className: "meter", ariaHidden: "true" }, make("span", { style: `width: ${share * 100}%` }));
}

/** The fall of the score without the map's hottest pixels, and whether the map passed its check. */
function checkOf({ hottest, passed, text }) {
  const change = hottest === null ? "undefined" : `${hottest > 0 ? "−" : "+"}${percent(Math.abs(hottest))}`;
  const badge = make("span", { className: passed ? "badge passed" : "badge", title: text }, `${passed ? "✓" : "✗"} ${change}`);
  return [meter(clamp(hottest ?? 0, 0, 1)), badge];
}

/** A score or null; only a screen reader hears what the number is. */
function scoreSpan(score) {
  const said = score === null ? [] : [make("span", { className: "unseen" }, "score "), score.toFixed(2)];
  return make("span", { className: "score" }, ...said);
}

/** [label, count] of each label, in the order in which they first occur. */
function countLabels(objects) {
  const counts = new Map();
  for (const { label } of objects) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts];
}
/** Options for all labels, and for each of [label, count] by its position. */
const labelOptions = (all, labels) =>
  [option("", all), ...labels.map(([label, count], i) => option(i, `${label} (${count})`))];
const byCount = (a, b) => b[1] - a[1] || a[0].localeCompare(b[0]); // the most frequent first

function setUpTheme() {
  const order = ["auto", "light", "dark"];
  const set = (theme) => {
    document.documentElement.dataset.theme = theme;
    find("theme").textContent = `Theme: ${theme}`;
  };
  const attempt = (use) => {
    try {
      return use(localStorage);
    } catch {
      return null; // browsers may deny storage to local files
    }
  };
  const stored = attempt((storage) => storage.getItem("detcam-theme"));
  set(order.includes(stored) ? stored : "auto");
  find("theme").addEventListener("click", () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
    set(next);
    attempt((storage) => storage.setItem("detcam-theme", next));
  });
}
setUpTheme();
document.addEventListener("submit", (event) => event.preventDefault()); // the forms are read as they are filled in

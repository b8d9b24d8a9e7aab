// Shared by all pages: the data, small helpers, light and dark theme.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (share) => `${Math.round(share * 100)} %`;

/** An element with properties; children are elements or text, which always stays text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Untrusted text in an element that isolates its writing direction. */
const named = (text) => make("bdi", {}, text);

function meter(share) {
  const bar = make("span");
  bar.style.width = `${share * 100}%`;
  const whole = make("span", { className: "meter" }, bar);
  whole.setAttribute("aria-hidden", "true");
  return whole;
}

/** The fall of the score without the map's hottest pixels, and whether the map passed its check. */
function checkOf({ hottest, passed, text }) {
  const change = hottest === null ? "undefined" : `${hottest > 0 ? "−" : "+"}${percent(Math.abs(hottest))}`;
  const badge = make("span", { className: passed ? "badge passed" : "badge", title: text }, `${passed ? "✓" : "✗"} ${change}`);
  return [meter(clamp(hottest ?? 0, 0, 1)), badge];
}

function energyText(energy) {
  return energy === null ? "no heat" : `${percent(energy)} of the heat in its box`;
}

function setUpTheme() {
  const order = ["auto", "light", "dark"];
  const set = (theme) => {
    document.documentElement.dataset.theme = theme;
    find("theme").textContent = `Theme: ${theme}`;
  };
  let theme = "auto";
  try {
    theme = localStorage.getItem("detcam-theme") ?? "auto";
  } catch {
    // Browsers may deny storage to local files.
  }
  set(order.includes(theme) ? theme : "auto");
  find("theme").addEventListener("click", () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
    set(next);
    try {
      localStorage.setItem("detcam-theme", next);
    } catch {
      // As above.
    }
  });
}
setUpTheme();

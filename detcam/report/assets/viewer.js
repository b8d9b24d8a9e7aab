// Controls of the pages with stages: the list of objects, the colours, zooming and keyboard shortcuts.

const PAUSE = 700; // ms; digits typed in quicker succession make one number

/** Mark the chosen object in the list, and scroll the list, not the page, to it. */
function markInList(number) {
  for (const [i, button] of document.querySelectorAll("button.object").entries()) {
    button.ariaPressed = String(i === number);
    if (i !== number) continue;
    const list = button.closest("ol"), row = button.getBoundingClientRect(), frame = list.getBoundingClientRect();
    if (row.top < frame.top) list.scrollTop += row.top - frame.top - 6;
    if (row.bottom > frame.bottom) list.scrollTop += row.bottom - frame.bottom + 6;
  }
}

function drawRamp() {
  const context = find("ramp").getContext("2d");
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(tables[find("colours").value].map((pixel) => pixel | 0xff000000));
  context.putImageData(image, 0, 0);
}

/**
 * on: count() of the objects, at() the position of the chosen one or null, choose(position or null), refresh(), and
 * beside() and view(), which the keys s and v call; view may be missing.
 */
function setUpControls(on) {
  find("tools").addEventListener("input", () => {
    drawRamp();
    on.refresh();
  });
  find("in").addEventListener("click", () => moving.zoom(1.25));
  find("out").addEventListener("click", () => moving.zoom(0.8));
  find("whole").addEventListener("click", moving.whole);
  drawRamp();
  listenToKeys(on);
}

function listenToKeys(on) {
  let typed = "", last = 0;

  function digit(key) {
    const now = performance.now();
    const longer = now - last < PAUSE ? typed + key : key;
    typed = Number(longer) <= on.count() ? longer : key;
    last = now;
    const number = Number(typed);
    if (number === 0) moving.whole();
    else if (number <= on.count()) on.choose(number - 1);
  }

  function step(by) {
    const count = on.count(), at = on.at();
    if (!count) return;
    on.choose(at === null ? (by > 0 ? 0 : count - 1) : (at + by + count) % count);
    if (document.activeElement.matches("button.object")) document.querySelectorAll("button.object")[on.at()].focus();
  }

  const pan = (dx, dy) => moving.pan((dx * 0.1) / look.zoom, (dy * 0.1) / look.zoom);
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const plain = {
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    Escape: () => on.choose(null),
    "+": () => moving.zoom(1.25),
    "=": () => moving.zoom(1.25),
    "-": () => moving.zoom(0.8),
    b: () => find("boxes").click(),
    s: () => on.beside(),
    v: () => on.view?.(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    if (!/^[0-9]$/.test(event.key)) typed = ""; // any other key ends a number
    if (event.shiftKey && moves[event.key]) pan(...moves[event.key]);
    else if (/^[0-9]$/.test(event.key)) digit(event.key);
    else if (plain[event.key]) plain[event.key]();
    else return;
    event.preventDefault();
  });
}

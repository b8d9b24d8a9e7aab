// Keyboard shortcuts. Digits typed in quick succession make one number.

const PAUSE = 700; // ms

function listenToKeys(on) {
  let typed = "", last = 0;

  function digit(key) {
    const now = performance.now();
    const longer = now - last < PAUSE ? typed + key : key;
    typed = Number(longer) <= on.count() ? longer : key;
    last = now;
    const number = Number(typed);
    if (number === 0) on.whole();
    else if (number <= on.count()) on.choose(number - 1);
  }

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const plain = {
    ArrowDown: () => on.step(1),
    ArrowUp: () => on.step(-1),
    Escape: () => on.choose(null),
    "+": () => on.zoom(1.25),
    "=": () => on.zoom(1.25),
    "-": () => on.zoom(0.8),
    b: () => on.boxes(),
    s: () => on.beside(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    if (!/^[0-9]$/.test(event.key)) typed = ""; // any other key ends a number
    if (event.shiftKey && moves[event.key]) on.pan(...moves[event.key]);
    else if (/^[0-9]$/.test(event.key)) digit(event.key);
    else if (plain[event.key]) plain[event.key]();
    else return;
    event.preventDefault();
  });
}

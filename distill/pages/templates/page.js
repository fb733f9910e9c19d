"use strict";

// --- dark and light: the system's choice, until someone chooses
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function startTheme(button) {
  const show = () => { button.textContent = isDark() ? "Light mode" : "Dark mode"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

// --- tables: a heading is a button that sorts by its column, first upward, then downward
function sortKey(cell) {
  const number = parseFloat(cell.textContent.replace(/[,%]/g, "").replace("−", "-"));
  return Number.isNaN(number) ? cell.textContent : number;
}

function compare(one, other) {
  if (typeof one === typeof other) return typeof one === "number" ? one - other : one.localeCompare(other);
  return typeof one === "number" ? -1 : 1;
}

function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? -1 : 1) * compare(sortKey(a.cells[column]), sortKey(b.cells[column])));
  table.tBodies[0].append(...rows);
}

function startTable(table) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(heading));
    heading.append(button);
  }
}

// --- canvases that fill: without this script they are full, which is a picture as well
function startStrip(strip) {
  const last = Number(strip.dataset.passes);
  const player = strip.querySelector(".player");
  const [button, slider, said] = player.children;
  const pieces = [...strip.querySelectorAll("[data-pass]")].map((piece) => {
    const earlier = JSON.parse(piece.dataset.earlier ?? "[]");
    return [piece, [...earlier, [piece.textContent, Number(piece.dataset.pass)]]];
  });
  let timer = null;

  function show() {
    const now = Number(slider.value);
    for (const [piece, writes] of pieces) {
      const here = writes.findLast(([, pass]) => pass <= now);
      const blank = !here || here[0] === "" && here !== writes.at(-1);
      piece.classList.toggle("later", blank);
      if (writes.length === 1) continue;
      const [text, pass] = blank ? writes.at(-1) : here;
      piece.textContent = text;
      piece.style.setProperty("--at", (pass - 1) / Math.max(1, last - 1));
    }
    said.textContent = `pass ${now} of ${last}`;
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  function step() {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) >= last) stop();
  }
  function play() {
    if (Number(slider.value) >= last) slider.value = 0;
    show();
    button.textContent = "Pause";
    timer = setInterval(step, Math.min(650, Math.max(40, 6000 / last)));
  }
  button.addEventListener("click", () => (timer === null ? play() : stop()));
  slider.addEventListener("input", () => { stop(); show(); });
  player.hidden = false;
  show();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const watch = new IntersectionObserver((seen) => {
      if (!seen[0].isIntersecting) return;
      watch.disconnect();
      if (timer === null) play();
    }, { threshold: 0.9 });
    watch.observe(strip);
  }
}

startTheme(document.getElementById("theme"));
document.querySelectorAll("table.sortable").forEach(startTable);
document.querySelectorAll(".strip").forEach(startStrip);

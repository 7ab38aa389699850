"use strict";
const pairs = JSON.parse(document.getElementById("pairs").textContent);
const place = "magpie-labels-" + pairs.map((pair) => pair.id).join("").slice(0, 120) + pairs.length;
const show = (id) => document.getElementById(id);
let labels = {};
try { labels = JSON.parse(localStorage.getItem(place)) || {}; } catch (error) { labels = {}; }
let at = Math.max(0, pairs.findIndex((pair) => !(pair.id in labels)));

function keep() {
  try { localStorage.setItem(place, JSON.stringify(labels)); } catch (error) { /* private window */ }
}
function draw() {
  const pair = pairs[at];
  if (!pair) { return; }
  for (const part of ["prompt", "A", "B"]) { show(part).textContent = pair[part]; show(part).scrollTop = 0; }
  for (const button of document.querySelectorAll(".choice")) {
    button.setAttribute("aria-pressed", String(labels[pair.id] === button.dataset.label));
  }
  const done = Object.keys(labels).length;
  show("done").value = done;
  show("count").textContent = "pair " + (at + 1) + ", " + done + " of " + pairs.length + " labelled";
}
function move(steps) { at = Math.min(pairs.length - 1, Math.max(0, at + steps)); draw(); }
function choose(label) { labels[pairs[at].id] = label; keep(); move(1); draw(); }
function save() {
  const rows = pairs.map((pair) => pair.id + "," + (labels[pair.id] || ""));
  const file = new Blob([["pair,label", ...rows].join("\n") + "\n"], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "labels.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}
for (const button of document.querySelectorAll(".choice")) {
  button.addEventListener("click", () => choose(button.dataset.label));
}
show("back").addEventListener("click", () => move(-1));
show("next").addEventListener("click", () => move(1));
show("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) { return; }
  const labelOf = { "1": "A", "2": "B", "0": "tie" };
  if (event.key in labelOf) { choose(labelOf[event.key]); }
  if (event.key === "ArrowLeft") { move(-1); }
  if (event.key === "ArrowRight") { move(1); }
});
draw();

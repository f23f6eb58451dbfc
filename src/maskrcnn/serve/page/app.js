// The page: pictures come in, objects are shown; whatever a server says is put in as text, never as HTML.

import { coco, jsonBlob, labelme, png, save, stem } from "./files.js";
import { classColor, objectsOf, shown } from "./objects.js";
import * as server from "./server.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const pictures = []; // {name, blob, image, width, height, objects, state, item}
const classes = []; // names, in the order in which they were met
const hidden = new Set(); // of classes
let current = null;

const viewer = new Viewer($("canvas"), $("tip"), markRow);

function classIndex(name) {
  if (!classes.includes(name)) classes.push(name);
  return classes.indexOf(name);
}

const visible = (picture) => shown(picture.objects, Number($("threshold").value), hidden);

// --- pictures

async function add(blob, name) {
  const picture = { name, blob, image: null, width: 0, height: 0, objects: [], state: "waiting" };
  pictures.push(picture);
  addThumbnail(picture);
  try {
    picture.image = await createImageBitmap(blob, { imageOrientation: "from-image" });
    Object.assign(picture, { width: picture.image.width, height: picture.image.height });
  } catch { /* of a format that only the server knows, or no picture at all: it will say */ }
  drawThumbnail(picture);
  open(picture);
  await find(picture);
}

async function find(picture) {
  picture.state = "waiting";
  tellState();
  try {
    const answer = await server.predict(picture.blob, $("model").value, $("token").value);
    const [height, width] = answer.image_size;
    Object.assign(picture, { width, height, objects: objectsOf(answer, classIndex), state: "done" });
    if (!picture.image) tell(`This browser cannot show ${picture.name}; its objects are there.`);
  } catch (error) {
    picture.state = "failed";
    complain(`${picture.name}: ${error.message}`);
    if (error.status === 401) $("access").open = true;
  }
  listClasses();
  drawThumbnail(picture);
  if (picture === current) refresh();
  tellState();
}

function addAll(files) {
  $("error").hidden = true;
  for (const file of files) add(file, file.name || "pasted picture");
}

function open(picture) {
  current = picture;
  for (const p of pictures) p.item.setAttribute("aria-current", String(p === picture));
  $("empty").hidden = true;
  $("canvas").hidden = $("zoom").hidden = false;
  refresh();
  viewer.fit();
}

function addThumbnail(picture) {
  const item = document.createElement("button"), name = document.createElement("span"), row = document.createElement("li");
  item.type = "button";
  name.textContent = picture.name;
  item.append(document.createElement("canvas"), name);
  item.addEventListener("click", () => open(picture));
  row.append(item);
  $("pictures").append(row);
  picture.item = item;
}

function drawThumbnail({ item, image, width, height, state }) {
  const canvas = item.querySelector("canvas");
  if (image) {
    const scale = Math.min(1, 160 / Math.max(width, height));
    canvas.width = Math.max(1, width * scale);
    canvas.height = Math.max(1, height * scale);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  item.title = { waiting: "waiting", done: "", failed: "failed" }[state];
}

// --- what is seen of the current picture

function refresh() {
  if (!current) return;
  const objects = visible(current);
  if (current.width) viewer.show(current, objects);
  fillTable(objects);
  const done = current.state === "done";
  for (const id of ["save-coco", "save-labelme", "save-png"]) $(id).disabled = !done;
  const counts = new Map();
  for (const o of objects) counts.set(o.category, (counts.get(o.category) ?? 0) + 1);
  const told = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  $("canvas").setAttribute("aria-label", `${current.name}: ${told || (done ? "no objects" : current.state)}`);
}

function fillTable(objects) {
  const of = current.objects.length > objects.length ? ` of ${current.objects.length}` : "";
  $("count").textContent = `${objects.length}${of} object${objects.length === 1 && !of ? "" : "s"}`;
  $("rows").replaceChildren(...objects.map((object) => {
    const row = document.createElement("tr"), [, , w, h] = object.box;
    row.dataset.index = object.index;
    const button = document.createElement("button"), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${object.color.join(" ")})`;
    button.type = "button";
    button.append(swatch, object.category);
    button.addEventListener("focus", () => viewer.choose(object, { reveal: true }));
    button.addEventListener("keydown", moveInTable);
    row.addEventListener("pointerenter", () => viewer.choose(object));
    row.addEventListener("click", () => viewer.reveal(object));
    const cells = [button, object.score.toFixed(3), `${Math.round(w)} × ${Math.round(h)}`].map((content) => {
      const cell = document.createElement("td");
      cell.append(content);
      return cell;
    });
    row.append(...cells);
    return row;
  }));
}

function moveInTable(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const row = step && event.target.closest("tr")[step];
  if (!row) return;
  row.querySelector("button").focus();
  event.preventDefault();
}

function markRow(object) {
  for (const row of $("rows").children) {
    row.classList.toggle("chosen", object !== null && Number(row.dataset.index) === object.index);
  }
}

function listClasses() {
  $("classes").hidden = classes.length === 0;
  $("class-list").replaceChildren(...classes.map((name, index) => {
    const label = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("span");
    box.type = "checkbox";
    box.checked = !hidden.has(name);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(name);
      else hidden.add(name);
      refresh();
    });
    swatch.className = "swatch";
    swatch.style.background = `rgb(${classColor(index).join(" ")})`;
    label.append(box, swatch, name);
    return label;
  }));
}

// --- words

function tell(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

function tellState() {
  const count = (state) => pictures.filter((p) => p.state === state).length;
  const waits = count("waiting"), failed = count("failed");
  tell([waits ? `${waits} waiting` : "", `${count("done")} done`, failed ? `${failed} failed` : ""].filter(Boolean).join(", "));
}

// --- controls

$("files").addEventListener("change", (event) => {
  addAll(event.target.files);
  event.target.value = "";
});
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  refresh();
});
$("opacity").addEventListener("input", () => {
  viewer.opacity = Number($("opacity").value);
  viewer.draw();
});
$("model").addEventListener("change", () => pictures.forEach(find));
$("classes-all").addEventListener("click", () => showClasses(true));
$("classes-none").addEventListener("click", () => showClasses(false));
$("zoom-in").addEventListener("click", () => viewer.zoom(1.25));
$("zoom-out").addEventListener("click", () => viewer.zoom(0.8));
$("zoom-fit").addEventListener("click", () => viewer.fit());
$("token").addEventListener("change", () => {
  $("error").hidden = true;
  listModels();
  pictures.filter((p) => p.state === "failed").forEach(find);
});

function showClasses(all) {
  for (const name of classes) {
    if (all) hidden.delete(name);
    else hidden.add(name);
  }
  listClasses();
  refresh();
}

let samples = 0;
$("sample").addEventListener("click", async () => {
  const number = samples++ % 6;
  const response = await fetch(`samples/${number}.jpg`).catch(() => null);
  if (response?.ok) addAll([new File([await response.blob()], `sample ${number + 1}.jpg`)]);
  else complain("The server cannot be reached.");
});

$("save-coco").addEventListener("click", () => {
  const done = pictures.filter((p) => p.state === "done").map((p) => ({ ...p, objects: visible(p) }));
  save("objects.json", jsonBlob(coco(done)));
});
$("save-labelme").addEventListener("click", () => {
  save(`${stem(current.name)}.json`, jsonBlob(labelme({ ...current, objects: visible(current) })));
});
$("save-png").addEventListener("click", () => {
  const name = `${stem(current.name)}.png`;
  png(current, visible(current), viewer.opacity).then((blob) => save(name, blob), (error) => complain(error.message));
});

document.addEventListener("paste", (event) => addAll(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = false;
});
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (kind === "drop" || !event.relatedTarget) $("drop").hidden = true;
  });
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  addAll(event.dataTransfer.files);
});

async function listModels() {
  try {
    const all = await server.models($("token").value);
    $("model").replaceChildren(...all.map(({ name }) => new Option(name, name)));
    $("model-choice").hidden = all.length < 2;
    const own = Math.max(...all.map((m) => m.score_threshold));
    $("threshold").value = Math.max(Number($("threshold").value), own);
  } catch (error) {
    if (error.status === 401) $("access").open = true;
    else complain(error.message);
  }
}

listModels();

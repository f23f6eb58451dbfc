// The large picture: fitted, zoomed and moved by wheel, fingers and keys; tells which object is pointed at.

import { drawObjects, objectAt } from "./objects.js";

export class Viewer {
  constructor(canvas, tip, onChoose) {
    this.canvas = canvas;
    this.tip = tip;
    this.onChoose = onChoose;
    this.picture = null; // {image, width, height}
    this.objects = [];
    this.chosen = null;
    this.opacity = 0.45;
    this.place = { scale: 1, x: 0, y: 0 }; // screen = scale * picture + (x, y)
    this.pointers = new Map();
    this.asked = false;
    new ResizeObserver(() => this.fit()).observe(canvas);
    canvas.addEventListener("wheel", (e) => this.#wheel(e), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(kind, (e) => this.#pointer(e));
    }
    canvas.addEventListener("keydown", (e) => this.#key(e));
  }

  show(picture, objects) {
    const other = picture !== this.picture;
    this.picture = picture;
    this.objects = objects;
    if (!objects.includes(this.chosen)) this.choose(null);
    if (other) this.fit();
    this.draw();
  }

  choose(object, { reveal = false } = {}) {
    if (object === this.chosen) return;
    this.chosen = object;
    if (reveal && object) this.reveal(object);
    this.draw();
    this.onChoose(object);
  }

  fit() {
    if (!this.picture) return;
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !height) return;
    const scale = Math.min(width / this.picture.width, height / this.picture.height, 8);
    this.place = {
      scale, x: (width - scale * this.picture.width) / 2, y: (height - scale * this.picture.height) / 2,
    };
    this.draw();
  }

  zoom(factor, x, y) {
    const { width, height } = this.canvas.getBoundingClientRect();
    x ??= width / 2;
    y ??= height / 2;
    const scale = Math.min(64, Math.max(0.01, this.place.scale * factor)), ratio = scale / this.place.scale;
    this.place = { scale, x: x - (x - this.place.x) * ratio, y: y - (y - this.place.y) * ratio };
    this.draw();
  }

  reveal(object) {
    const [x, y, w, h] = object.box, { width, height } = this.canvas.getBoundingClientRect();
    const left = this.place.scale * x + this.place.x, top = this.place.scale * y + this.place.y;
    const inside = left >= 0 && top >= 0 && left + this.place.scale * w <= width && top + this.place.scale * h <= height;
    if (inside) return;
    this.place.x = width / 2 - this.place.scale * (x + w / 2);
    this.place.y = height / 2 - this.place.scale * (y + h / 2);
  }

  draw() { // once a frame, however often it is asked for
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.#draw();
    });
  }

  #draw() {
    const { width, height } = this.canvas.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
    if (!this.picture || !width) return;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    const context = this.canvas.getContext("2d"), { scale, x, y } = this.place;
    context.setTransform(dense * scale, 0, 0, dense * scale, dense * x, dense * y);
    drawPicture(context, this.picture, scale * dense < 3);
    drawObjects(context, this.objects, { opacity: this.opacity, line: 1.5 / scale, chosen: this.chosen, texts: true });
  }

  #at(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), ...this.#at(event));
  }

  #pointer(event) {
    const [x, y] = this.#at(event), before = this.pointers.get(event.pointerId);
    if (event.type === "pointerdown") {
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [x, y]);
    } else if (event.type === "pointermove" && before) {
      this.#drag(event.pointerId, before, [x, y]);
    } else if (event.type !== "pointermove") {
      this.pointers.delete(event.pointerId);
    }
    if (event.type === "pointerleave") this.#hover(null);
    else if (this.pointers.size < 2) this.#hover([x, y]);
  }

  #drag(id, before, now) {
    const others = [...this.pointers].filter(([other]) => other !== id).map(([, at]) => at);
    if (others.length) { // two fingers: the picture's point between them stays there
      const [a] = others, far = (p) => Math.hypot(p[0] - a[0], p[1] - a[1]) || 1;
      this.zoom(far(now) / far(before), (now[0] + a[0]) / 2, (now[1] + a[1]) / 2);
    } else {
      this.place.x += now[0] - before[0];
      this.place.y += now[1] - before[1];
      this.draw();
    }
    this.pointers.set(id, now);
  }

  #hover(at) {
    const { scale, x, y } = this.place;
    const object = at && objectAt(this.objects, (at[0] - x) / scale, (at[1] - y) / scale);
    this.choose(object);
    this.tip.hidden = !object;
    if (!object) return;
    this.tip.textContent = `${object.category} ${object.score.toFixed(2)}`;
    this.tip.style.left = `${at[0] + 14}px`;
    this.tip.style.top = `${at[1] + 14}px`;
  }

  #key(event) {
    const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else if (event.key in steps) {
      this.place.x += steps[event.key][0];
      this.place.y += steps[event.key][1];
      this.draw();
    } else return;
    event.preventDefault();
  }
}

// A picture that the browser cannot show is a grey surface of its size.
export function drawPicture(context, picture, smooth = true) {
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#808080";
  if (picture.image) context.drawImage(picture.image, 0, 0, picture.width, picture.height);
  else context.fillRect(0, 0, picture.width, picture.height);
}

// A picture as large as there is room, with zoom by wheel, pinch, double click and keys.

const MOST = 20; // times the size that fits
const SMOOTH = 2; // screen pixels a pixel from which on they are shown as squares

export class Zoom {
  constructor(stage) {
    this.stage = stage;
    this.layers = [];
    this.pointers = new Map();
    this.reset();
    new ResizeObserver(() => this.draw()).observe(stage);
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("dblclick", (event) => this.toggle(event));
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      stage.addEventListener(kind, (event) => this.pointers.delete(event.pointerId));
    }
  }

  /** Show a picture of this size; `layers` are the elements that lie on each other. */
  show(layers, width, height) {
    this.layers = layers;
    [this.width, this.height] = [width, height];
    this.draw();
  }

  reset() {
    [this.zoom, this.x, this.y] = [1, 0, 0];
    this.draw?.();
  }

  draw() {
    if (!this.layers.length || !this.width) return;
    const box = this.stage.getBoundingClientRect();
    const fits = Math.min(box.width / this.width, box.height / this.height);
    const [w, h] = [this.width * fits * this.zoom, this.height * fits * this.zoom];
    const room = [Math.max(0, (w - box.width) / 2), Math.max(0, (h - box.height) / 2)];
    this.x = Math.min(room[0], Math.max(-room[0], this.x));
    this.y = Math.min(room[1], Math.max(-room[1], this.y));
    for (const layer of this.layers) {
      Object.assign(layer.style, {
        width: `${w}px`, height: `${h}px`,
        left: `${(box.width - w) / 2 + this.x}px`, top: `${(box.height - h) / 2 + this.y}px`,
        imageRendering: fits * this.zoom > SMOOTH && layer.tagName === "IMG" ? "pixelated" : "auto",
      });
    }
    this.stage.classList.toggle("zoomed", this.zoom > 1);
  }

  /** Zoom by a factor about a point of the window, which stays where it is. */
  by(factor, clientX = null, clientY = null) {
    const box = this.stage.getBoundingClientRect();
    const px = clientX === null ? 0 : clientX - box.left - box.width / 2;
    const py = clientY === null ? 0 : clientY - box.top - box.height / 2;
    const zoom = Math.min(MOST, Math.max(1, this.zoom * factor));
    const real = zoom / this.zoom;
    this.x = px - (px - this.x) * real;
    this.y = py - (py - this.y) * real;
    this.zoom = zoom;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    this.by(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }

  toggle(event) {
    if (this.zoom > 1) this.reset();
    else this.by(3, event.clientX, event.clientY);
  }

  down(event) {
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.stage.setPointerCapture(event.pointerId);
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const now = [event.clientX, event.clientY];
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    if (others.length) {
      const [other] = others;
      const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
      this.by(apart(now) / Math.max(1, apart(last)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      this.x += now[0] - last[0];
      this.y += now[1] - last[1];
      this.draw();
    }
    this.pointers.set(event.pointerId, now);
  }
}

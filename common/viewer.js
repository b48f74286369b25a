// Shows volumes in three planes with one crosshair.

// Sagittal slices face left, as `upright` in drawing.py draws them: there, columns run against the axis.
const PLANES = [
  { name: "Sagittal", through: 0, across: 1, up: 2, toward: -1, ends: ["A", "P"] },
  { name: "Coronal", through: 1, across: 0, up: 2, toward: 1, ends: ["L", "R"] },
  { name: "Axial", through: 2, across: 0, up: 1, toward: 1, ends: ["L", "R"] },
];
const ARROWS = { ArrowLeft: ["across", -1], ArrowRight: ["across", 1], ArrowDown: ["up", -1], ArrowUp: ["up", 1],
  PageDown: ["through", -1], PageUp: ["through", 1] };

export class Viewer {
  // Draws each plane into `holder` as a copy of `template`, which has one canvas, named by its figcaption, per volume.
  // A volume has `voxels`, the `white` value that is drawn as white, and perhaps a `palette` of 256 colours instead of greys.
  // An axis has the `count` of its voxels, their `stride` and the `first` one in memory, and their size in `mm`.
  constructor(holder, template, volumes, axes) {
    this.volumes = volumes;
    this.axes = axes;
    this.place = this.axes.map((axis) => Math.floor(axis.count / 2));
    holder.replaceChildren();
    this.views = PLANES.map((plane) => this.addPlane(plane, holder, template));
    this.draw();
  }

  addPlane(plane, holder, template) {
    const node = template.content.cloneNode(true);
    node.querySelector("h3").textContent = plane.name;
    const slider = node.querySelector("input");
    const canvases = [...node.querySelectorAll("canvas")];
    slider.max = this.axes[plane.through].count - 1;
    slider.setAttribute("aria-label", `${plane.name} slice`);
    slider.addEventListener("input", () => this.move(plane.through, Number(slider.value)));
    canvases.forEach((canvas) => {
      canvas.width = this.axes[plane.across].count;
      canvas.height = this.axes[plane.up].count;
      const { across, up } = plane;
      const tall = (canvas.height * this.axes[up].mm) / (canvas.width * this.axes[across].mm);
      canvas.style.aspectRatio = `${1 / tall}`;
      canvas.setAttribute("role", "application");
      const name = canvas.parentElement.querySelector("figcaption")?.textContent;
      canvas.setAttribute("aria-label", `${plane.name}${name ? `, ${name}` : ""}: arrow keys move the crosshair`);
      canvas.addEventListener("keydown", (event) => this.onKey(event, plane));
      canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); this.onPointer(event, plane); });
      canvas.addEventListener("pointermove", (event) => { if (event.buttons) this.onPointer(event, plane); });
    });
    const view = { plane, canvases, slider, output: node.querySelector("output") };
    holder.append(node);
    return view;
  }

  onKey(event, plane) {
    const arrow = ARROWS[event.key];
    if (!arrow || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const axis = plane[arrow[0]];
    const step = arrow[0] === "across" ? arrow[1] * plane.toward : arrow[1];
    this.move(axis, this.place[axis] + step * (event.shiftKey ? 10 : 1));
  }

  onPointer(event, plane) {
    const box = event.target.getBoundingClientRect();
    const share = (value, from, size) => Math.min(Math.max((value - from) / size, 0), 1);
    const { across, up } = plane;
    this.move(across, this.column(plane, Math.floor(share(event.clientX, box.left, box.width) * this.axes[across].count)));
    this.move(up, Math.floor((1 - share(event.clientY, box.top, box.height)) * this.axes[up].count));
  }

  // Returns the column of a place on the axis across, or the place of a column.
  column({ across, toward }, index) {
    return toward > 0 ? index : this.axes[across].count - 1 - index;
  }

  move(axis, index) {
    this.place[axis] = Math.min(Math.max(index, 0), this.axes[axis].count - 1);
    this.pending ??= requestAnimationFrame(() => { this.pending = undefined; this.draw(); });
  }

  draw() {
    for (const { plane, canvases, slider, output } of this.views) {
      const index = this.place[plane.through];
      slider.value = index;
      output.textContent = `${index + 1} of ${this.axes[plane.through].count}`;
      canvases.forEach((canvas, side) => this.paint(canvas, plane, this.volumes[side]));
    }
  }

  paint(canvas, plane, { voxels, white, palette }) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const [through, across, up] = [plane.through, plane.across, plane.up].map((axis) => this.axes[axis]);
    const start = through.first + this.place[plane.through] * through.stride + across.first + up.first
      + this.column(plane, 0) * across.stride;
    let pixel = 0;
    for (let row = up.count - 1; row >= 0; row--) {
      let voxel = start + row * up.stride;
      for (let column = 0; column < across.count; column++, voxel += plane.toward * across.stride, pixel += 4) {
        // image.data is a clamped array, which rounds and clips the values.
        const level = (voxels[voxel] * 255) / white;
        if (palette) image.data.set(palette[Math.round(level)], pixel);
        else image.data[pixel] = image.data[pixel + 1] = image.data[pixel + 2] = level;
        image.data[pixel + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    this.paintCrosshair(context, plane, canvas);
  }

  paintCrosshair(context, plane, canvas) {
    const { width, height } = canvas;
    const x = this.column(plane, this.place[plane.across]), y = height - 1 - this.place[plane.up], gap = 6;
    context.fillStyle = "rgba(90, 200, 250, 0.75)";
    context.fillRect(0, y, x - gap, 1);
    context.fillRect(x + gap + 1, y, width, 1);
    context.fillRect(x, 0, 1, y - gap);
    context.fillRect(x, y + gap + 1, 1, height);
    // The letters have the same size on every screen, although the canvas is scaled.
    const letter = (13 * width) / (canvas.clientWidth || width);
    context.fillStyle = "#ffd866";
    context.font = `${letter}px system-ui, sans-serif`;
    context.textBaseline = "top";
    context.fillText(plane.ends[0], letter / 3, letter / 3);
    context.textAlign = "right";
    context.fillText(plane.ends[1], width - letter / 3, letter / 3);
    context.textAlign = "left";
  }
}

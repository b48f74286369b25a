// Shows two volumes on one grid, side by side in three planes, with one crosshair.

const FLOAT32 = 16;
const PLANES = [
  { name: "Sagittal", through: 0, across: 1, up: 2, ends: ["P", "A"] },
  { name: "Coronal", through: 1, across: 0, up: 2, ends: ["L", "R"] },
  { name: "Axial", through: 2, across: 0, up: 1, ends: ["L", "R"] },
];
const ARROWS = { ArrowLeft: ["across", -1], ArrowRight: ["across", 1], ArrowDown: ["up", -1], ArrowUp: ["up", 1],
  PageDown: ["through", -1], PageUp: ["through", 1] };

// Reads a .nii.gz file with float32 voxels, as written by the service.
export async function readVolume(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const header = new DataView(buffer);
  if (header.getInt32(0, true) !== 348 || header.getInt16(70, true) !== FLOAT32) {
    throw new Error("The service sent a file that is not NIfTI-1 with 32-bit floats. Reload the page and try again.");
  }
  const shape = [42, 44, 46].map((place) => header.getInt16(place, true));
  const affine = affineOf(header);
  const offset = header.getFloat32(108, true);
  return { shape, affine, voxels: new Float32Array(buffer, offset, shape[0] * shape[1] * shape[2]) };
}

function affineOf(header) {
  const float = (place) => header.getFloat32(place, true);
  if (header.getInt16(254, true) > 0) {
    return [280, 296, 312].map((row) => [0, 4, 8, 12].map((column) => float(row + column)));
  }
  // nifti1.h, method 2: a quaternion, voxel sizes, and the sign of the third axis.
  const [b, c, d] = [256, 260, 264].map(float);
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const [i, j, k] = [80, 84, 88].map(float);
  const s = float(76) < 0 ? -k : k;
  return [
    [(a * a + b * b - c * c - d * d) * i, 2 * (b * c - a * d) * j, 2 * (b * d + a * c) * s, float(268)],
    [2 * (b * c + a * d) * i, (a * a + c * c - b * b - d * d) * j, 2 * (c * d - a * b) * s, float(272)],
    [2 * (b * d - a * c) * i, 2 * (c * d + a * b) * j, (a * a + d * d - b * b - c * c) * s, float(276)],
  ];
}

// Returns the nearest voxel axis for each world axis: number of voxels, stride and first voxel in memory, and spacing.
function anatomicalAxes({ shape, affine }) {
  const strides = [1, shape[0], shape[0] * shape[1]];
  const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const length = (axis) => Math.hypot(...affine.map((row) => row[axis])) || 1;
  const fit = (order) => order.reduce((sum, axis, world) => sum + Math.abs(affine[world][axis]) / length(axis), 0);
  const best = orders.reduce((one, other) => (fit(other) > fit(one) + 1e-9 ? other : one));
  return best.map((axis, world) => {
    const forward = affine[world][axis] >= 0;
    const stride = forward ? strides[axis] : -strides[axis];
    return { count: shape[axis], stride, first: forward ? 0 : strides[axis] * (shape[axis] - 1), mm: length(axis) };
  });
}

export class Viewer {
  // Draws into `holder` from `template`; both volumes have the shape and the affine of `after`.
  constructor(holder, template, before, after) {
    this.volumes = [before, after];
    this.axes = anatomicalAxes(after);
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
    canvases.forEach((canvas, side) => {
      canvas.width = this.axes[plane.across].count;
      canvas.height = this.axes[plane.up].count;
      const { across, up } = plane;
      const tall = (canvas.height * this.axes[up].mm) / (canvas.width * this.axes[across].mm);
      canvas.style.aspectRatio = `${1 / tall}`;
      canvas.setAttribute("role", "application");
      canvas.setAttribute("aria-label", `${plane.name}, ${side ? "after" : "before"}: arrow keys move the crosshair`);
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
    this.move(axis, this.place[axis] + arrow[1] * (event.shiftKey ? 10 : 1));
  }

  onPointer(event, plane) {
    const box = event.target.getBoundingClientRect();
    const share = (value, from, size) => Math.min(Math.max((value - from) / size, 0), 1);
    const { across, up } = plane;
    this.move(across, Math.floor(share(event.clientX, box.left, box.width) * this.axes[across].count));
    this.move(up, Math.floor((1 - share(event.clientY, box.top, box.height)) * this.axes[up].count));
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
      canvases.forEach((canvas, side) => this.paint(canvas, plane, this.volumes[side].voxels));
    }
  }

  paint(canvas, plane, voxels) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const [through, across, up] = [plane.through, plane.across, plane.up].map((axis) => this.axes[axis]);
    const start = through.first + this.place[plane.through] * through.stride + across.first + up.first;
    let pixel = 0;
    for (let row = up.count - 1; row >= 0; row--) {
      let voxel = start + row * up.stride;
      for (let column = 0; column < across.count; column++, voxel += across.stride, pixel += 4) {
        // image.data is a clamped array, which rounds and clips the values.
        image.data[pixel] = image.data[pixel + 1] = image.data[pixel + 2] = voxels[voxel] * 255;
        image.data[pixel + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    this.paintCrosshair(context, plane, canvas);
  }

  paintCrosshair(context, plane, { width, height }) {
    const x = this.place[plane.across], y = height - 1 - this.place[plane.up], gap = 6;
    context.fillStyle = "rgba(90, 200, 250, 0.75)";
    context.fillRect(0, y, x - gap, 1);
    context.fillRect(x + gap + 1, y, width, 1);
    context.fillRect(x, 0, 1, y - gap);
    context.fillRect(x, y + gap + 1, 1, height);
    // The letters have the same size on every screen, although the canvas is scaled.
    const letter = (13 * width) / (this.views?.[0].canvases[0].clientWidth || width);
    context.fillStyle = "#ffd866";
    context.font = `${letter}px system-ui, sans-serif`;
    context.textBaseline = "top";
    context.fillText(plane.ends[0], letter / 3, letter / 3);
    context.textAlign = "right";
    context.fillText(plane.ends[1], width - letter / 3, letter / 3);
    context.textAlign = "left";
  }
}

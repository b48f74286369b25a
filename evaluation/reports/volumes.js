// Shows one of several volumes, which are stored as mosaics of their sagittal slices.

const { shape, spacing_mm: mm, columns, images } = JSON.parse(document.getElementById("volumes").textContent);
const [X, Y, Z] = shape;
const AXES = [
  { count: X, stride: Y * Z, first: 0, mm: mm[0] },
  { count: Y, stride: 1, first: 0, mm: mm[1] },
  { count: Z, stride: Y, first: 0, mm: mm[2] },
];
const box = document.getElementById("viewer");
const choices = [...box.querySelectorAll("input[name=image]")];
const decoded = [];
let viewer;

// In a mosaic, a column of a tile is a place on the axis to the front, and its first row is at the bottom of the head.
async function decode({ jpeg, palette }) {
  const picture = new Image();
  picture.src = `data:image/jpeg;base64,${jpeg}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const voxels = new Uint8Array(X * Y * Z);
  for (let x = 0, voxel = 0; x < X; x++) {
    for (let z = 0; z < Z; z++) {
      let pixel = 4 * ((Math.floor(x / columns) * Z + z) * canvas.width + (x % columns) * Y);
      for (let y = 0; y < Y; y++, pixel += 4) voxels[voxel++] = data[pixel];
    }
  }
  return { voxels, white: 255, palette };
}

async function show(number) {
  decoded[number] ??= decode(images[number]);
  const volume = await decoded[number];
  if (!choices[number].checked) return; // Another image was chosen meanwhile.
  box.classList.add("live");
  viewer ??= new Viewer(document.getElementById("planes"), document.getElementById("plane"), [volume], AXES);
  viewer.volumes = [volume];
  viewer.draw();
  box.dataset.shown = number;
}

choices.forEach((choice, number) => choice.addEventListener("change", () => show(number)));
box.addEventListener("keydown", (event) => {
  if (!event.ctrlKey && !event.altKey && !event.metaKey) choices[Number(event.key) - 1]?.click();
});
show(choices.findIndex((choice) => choice.checked));

// Reads the NIfTI files that the service sends.

const FLOAT32 = 16;

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
  return { shape, affine, white: 1, voxels: new Float32Array(buffer, offset, shape[0] * shape[1] * shape[2]) };
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

// Returns the axes that Viewer needs, for the world axes x, y and z; each is the nearest voxel axis.
export function anatomicalAxes({ shape, affine }) {
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

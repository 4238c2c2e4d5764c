// Reads .npy and .safetensors. What is wrong with a file is an Error that says
// what came and what was wanted. A tensor: {shape, data, type}.

const MOST_FILE_BYTES = 256 * 2 ** 20;

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24
                        : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function bfloatToNumber(bits) {
  narrowBits[0] = bits << 16;
  return narrow[0];
}

// Bytes per element, and element number i of a DataView.
const ELEMENTS = {
  FLOAT64: [8, (view, i) => view.getFloat64(8 * i, true)],
  FLOAT32: [4, (view, i) => view.getFloat32(4 * i, true)],
  FLOAT16: [2, (view, i) => halfToNumber(view.getUint16(2 * i, true))],
  BFLOAT16: [2, (view, i) => bfloatToNumber(view.getUint16(2 * i, true))],
  INT64: [8, (view, i) => Number(view.getBigInt64(8 * i, true))],
  INT32: [4, (view, i) => view.getInt32(4 * i, true)],
  INT8: [1, (view, i) => view.getInt8(i)],
  UINT8: [1, (view, i) => view.getUint8(i)],
};
const NPY_TYPES = {"<f8": "FLOAT64", "<f4": "FLOAT32", "<f2": "FLOAT16",
                   "<i8": "INT64", "<i4": "INT32", "|i1": "INT8",
                   "|u1": "UINT8", "|b1": "UINT8"};
const SAFETENSORS_TYPES = {F64: "FLOAT64", F32: "FLOAT32", F16: "FLOAT16",
                           BF16: "BFLOAT16", I64: "INT64", I32: "INT32",
                           I8: "INT8", U8: "UINT8", BOOL: "UINT8"};

const countOf = (shape) => shape.reduce((a, b) => a * b, 1);

function readElements(buffer, begin, bytes, type, shape, name) {
  const [size, read] = ELEMENTS[type];
  const count = countOf(shape);
  if (!shape.every((n) => Number.isSafeInteger(n) && n >= 0) ||
      count * size !== bytes) {
    throw new Error(`${name}: got ${bytes} bytes, wanted ${count * size} for shape (${shape.join(", ")}) of ${type}`);
  }
  const view = new DataView(buffer, begin, bytes);
  const data = new Float64Array(count);
  for (let i = 0; i < count; ++i) data[i] = read(view, i);
  return {shape, data, type};
}

/** The same elements in row-major order, where they lie in column-major. */
function rowMajor(tensor) {
  const {shape, data} = tensor;
  const strides = shape.map((_, axis) => countOf(shape.slice(0, axis)));
  const out = new Float64Array(data.length);
  const index = shape.map(() => 0);
  for (let n = 0; n < out.length; ++n) {
    out[n] = data[index.reduce((sum, i, axis) => sum + i * strides[axis], 0)];
    for (let axis = shape.length - 1; axis >= 0; --axis) {
      if (++index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
  }
  return {...tensor, data: out};
}

function readNpy(buffer, name) {
  const bytes = new Uint8Array(buffer);
  const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
  if (bytes.length < 12 || !magic.every((b, i) => bytes[i] === b)) {
    throw new Error(`${name}: this is no .npy file, which begins with \\x93NUMPY`);
  }
  const view = new DataView(buffer);
  const long = bytes[6] >= 2;
  const begin = long ? 12 : 10;
  const data = begin + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  if (data > bytes.length) throw new Error(`${name}: the header goes past the file's end`);
  const header = new TextDecoder().decode(bytes.subarray(begin, data));
  const type = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1];
  if (shape === undefined || !(type in NPY_TYPES)) {
    throw new Error(`${name}: got elements of type ${type ?? "unknown"}, wanted one of ${Object.keys(NPY_TYPES).join(" ")}`);
  }
  const sizes = shape.split(",").map((s) => s.trim()).filter(Boolean).map(Number);
  const tensor = readElements(buffer, data, bytes.length - data, NPY_TYPES[type], sizes, name);
  return /'fortran_order':\s*True/.test(header) ? rowMajor(tensor) : tensor;
}

function readSafetensors(buffer, name) {
  const broken = (what) => new Error(`${name}: this is no .safetensors file: ${what}`);
  if (buffer.byteLength < 8) throw broken("it has fewer than 8 bytes");
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > buffer.byteLength - 8) throw broken("the header goes past the file's end");
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  } catch {
    throw broken("the header is no JSON");
  }
  if (header === null || typeof header !== "object") throw broken("the header is no object");
  const tensors = new Map();
  for (const [key, entry] of Object.entries(header)) {
    if (key === "__metadata__") continue;
    const [begin, end] = entry?.data_offsets ?? [];
    if (!(begin >= 0 && end >= begin && 8 + length + end <= buffer.byteLength) ||
        !Array.isArray(entry.shape)) {
      throw broken(`the place of tensor ${key} is not in the file`);
    }
    if (!(entry.dtype in SAFETENSORS_TYPES)) continue;  // not for Q, K or V
    tensors.set(key, readElements(buffer, 8 + length + begin, end - begin,
      SAFETENSORS_TYPES[entry.dtype], entry.shape, `${name}: ${key}`));
  }
  return tensors;
}

/** The tensors of a File, by name. */
async function readTensors(file) {
  if (file.size > MOST_FILE_BYTES) {
    throw new Error(`${file.name}: got ${file.size} bytes, wanted at most ${MOST_FILE_BYTES}`);
  }
  const stem = file.name.replace(/\.[^.]*$/, "");
  const buffer = await file.arrayBuffer();
  if (/\.npy$/i.test(file.name)) return new Map([[stem, readNpy(buffer, file.name)]]);
  if (/\.safetensors$/i.test(file.name)) return readSafetensors(buffer, file.name);
  throw new Error(`${file.name}: got this name, wanted one that ends in .npy or .safetensors`);
}

/**
 * The matrix [rows, columns] of one batch entry and head. Axes are (S, D),
 * (H, S, D), (B, H, S, D), or with `tokensFirst` (S, H, D) and (B, S, H, D).
 */
function headsOf(tensor, tokensFirst) {
  const shape = [1, 1, 1, 1].slice(tensor.shape.length).concat(tensor.shape);
  if (tokensFirst && tensor.shape.length > 2) {
    const [B, S, H, D] = shape;
    return {B, H, S, D, data: tensor.data, row: (b, h, s) => ((b * S + s) * H + h) * D};
  }
  const [B, H, S, D] = shape;
  return {B, H, S, D, data: tensor.data, row: (b, h, s) => ((b * H + h) * S + s) * D};
}

const rowOf = (heads, b, h, s) => {
  const begin = heads.row(b, h, s);
  return heads.data.subarray(begin, begin + heads.D);
};

// Run a model from `learnkit onnx MODEL model.onnx` in Node; in a browser the same lines work with
// <script type="module"> and the file fetched instead of read.
//
//     npm install onnxruntime-web
//     node examples/onnx_web.mjs model.onnx pixels.rgb
//
// pixels.rgb holds raw bytes, N images of height x width x channels, resized to the size that the
// model says. How they are to be resized and what the classes are called stands in the metadata of
// the file, which onnxruntime-web does not show: `learnkit onnx --about model.json` writes it, too.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const [model, pixels] = process.argv.slice(2);
const session = await ort.InferenceSession.create(await readFile(model));
const [height, width, channels] = session.inputMetadata[0].shape.slice(1);

const bytes = new Uint8Array(await readFile(pixels));
const n = bytes.length / (height * width * channels);
const image = new ort.Tensor("uint8", bytes, [n, height, width, channels]);
const { probabilities, ood_score } = await session.run({ image });

const [, classes] = probabilities.dims;
const rows = Array.from({ length: n }, (_, i) => ({
  probabilities: [...probabilities.data.slice(i * classes, (i + 1) * classes)],
  ood_score: ood_score?.data[i], // above `ood_threshold` of the metadata: unknown
}));
console.log(JSON.stringify(rows));

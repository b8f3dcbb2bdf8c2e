// transformers.js: its own tokenizer, the hidden states of the ONNX file of export.py, and its feature extraction.

import { readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { AutoModel, AutoTokenizer, Tensor, env, pipeline } from "@huggingface/transformers";

const [folder, requestFile, out] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);

const tokenizer = await AutoTokenizer.from_pretrained(name);
const ids = request.texts.map((text) => tokenizer.encode(text));

const model = await AutoModel.from_pretrained(name, { dtype: "fp32" });
const asTensor = (rows) => new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
const states = await model({
  input_ids: asTensor(request.input_ids),
  attention_mask: asTensor(request.attention_mask),
});
const tensors = {};
for (const [key, tensor] of Object.entries(states)) {
  const layer = key.match(/^hidden_states\.(\d+)$/)?.[1];
  if (layer !== undefined) tensors[layer === "0" ? "embeddings.output" : `layers.${layer - 1}.output`] = tensor;
}

const extractor = await pipeline("feature-extraction", name, { dtype: "fp32" });
const vectors = [];
for (const texts of request.batches) {
  vectors.push(...(await extractor(texts, { pooling: "mean", normalize: true })).tolist());
}

writeSafetensors(join(out, "dump.safetensors"), tensors);
writeFileSync(join(out, "answer.json"), JSON.stringify({ ids, vectors, taps: Object.keys(tensors), errors: {} }));

// The length of the header, the header, and the numbers.
function writeSafetensors(file, tensors) {
  const header = {};
  const parts = [];
  let end = 0;
  for (const [key, tensor] of Object.entries(tensors)) {
    const bytes = Buffer.from(Float32Array.from(tensor.data).buffer);
    header[key] = { dtype: "F32", shape: tensor.dims, data_offsets: [end, end + bytes.length] };
    parts.push(bytes);
    end += bytes.length;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(file, Buffer.concat([length, text, ...parts]));
}

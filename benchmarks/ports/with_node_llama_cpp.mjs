// llama.cpp through node-llama-cpp, whose binaries come with npm: its own tokenizer and
// its vectors, brought to length 1 here, from the GGUF file.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { getLlama } from "node-llama-cpp";

const [folder, requestFile, out] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));

const llama = await getLlama({ build: "never", gpu: false });
const model = await llama.loadModel({ modelPath: join(folder, "model.gguf") });
const ids = request.texts.map((text) => [0, ...model.tokenize(text, false), 2]);

const context = await model.createEmbeddingContext({ contextSize: model.trainContextSize + 1 });
const vectors = [];
for (const text of request.batches.flat()) {
  const tokens = model.tokenize(text, false).slice(0, model.trainContextSize - 2); // it refuses longer ones
  const vector = [...(await context.getEmbeddingFor([0, ...tokens, 2])).vector];
  const length = Math.hypot(...vector);
  vectors.push(vector.map((number) => number / length));
}
writeFileSync(join(out, "answer.json"), JSON.stringify({ ids, vectors, taps: [], errors: {} }));
process.exit(0);

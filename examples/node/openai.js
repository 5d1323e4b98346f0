// openai-node as published: a screenshot and a spoken instruction in, one phone action out, whole and streamed.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] ?? "http://localhost:8000/v1", apiKey: "EMPTY" });
const base64 = (name) => readFileSync(new URL(`../${name}`, import.meta.url)).toString("base64");
const content = [
  { type: "image_url", image_url: { url: `data:image/png;base64,${base64("home.png")}` } },
  { type: "input_audio", input_audio: { data: base64("instruction.wav"), format: "wav" } },
];
const question = { model: "autoglm-phone-9b", temperature: 0, messages: [{ role: "user", content }] };

const whole = await client.chat.completions.create(question);
console.log(whole.choices[0].message.content);

const stream = await client.chat.completions.create({ ...question, stream: true });
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
console.log();

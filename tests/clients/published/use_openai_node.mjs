// openai-node, as published. It is installed with the examples in JavaScript, so it is imported from there.

import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import test from "node:test";

const examples = new URL("../../../examples/", import.meta.url);
const OpenAI = createRequire(new URL("node/package.json", examples))("openai");

const client = new OpenAI({ baseURL: process.env.MESH_URL, apiKey: "EMPTY", maxRetries: 0 });
const locked = new OpenAI({ baseURL: process.env.LOCKED_MESH_URL, apiKey: "wrong", maxRetries: 0 });
const base64 = (name) => readFileSync(new URL(name, examples)).toString("base64");
const image = { type: "image_url", image_url: { url: `data:image/png;base64,${base64("home.png")}` } };
const audio = { type: "input_audio", input_audio: { data: base64("instruction.wav"), format: "wav" } };
const hello = [{ role: "user", content: "Introduce yourself" }];
const asked = { model: "autoglm-phone-9b", temperature: 0, max_tokens: 80 };
const respond = { model: "autoglm-phone-9b", temperature: 0, max_output_tokens: 80 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "北京"] } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", parameters } };
const schema = {
  type: "object",
  properties: { locked: { type: "boolean" } },
  required: ["locked"],
  additionalProperties: false,
};

test("chat", async () => {
  const answer = await client.chat.completions.create({ messages: hello, ...asked });
  assert.match(answer.choices[0].message.content, /AutoGLM-Phone/);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(answer.usage.total_tokens > answer.usage.prompt_tokens);
});

test("stream", async () => {
  const stream = client.chat.completions.stream({ messages: hello, stream_options: { include_usage: true }, ...asked });
  let pieces = 0;
  stream.on("content", () => pieces++);
  const whole = await stream.finalChatCompletion();
  assert.match(whole.choices[0].message.content, /AutoGLM-Phone/);
  assert.ok(pieces > 5);
  assert.ok(whole.usage.completion_tokens > 0);
});

test("images", async () => {
  const messages = [{ role: "user", content: [image, { type: "text", text: "Open the game" }] }];
  const answer = await client.chat.completions.create({ messages, ...asked });
  assert.match(answer.choices[0].message.content, /do\(action=/);
});

test("audio", async () => {
  const answer = await client.chat.completions.create({ messages: [{ role: "user", content: [image, audio] }], ...asked });
  assert.match(answer.choices[0].message.content, /do\(action=/);
});

test("tools", async () => {
  const required = { messages: hello, tools: [tool], tool_choice: "required", parallel_tool_calls: false, ...asked, max_tokens: 400 };
  const { message } = (await client.chat.completions.create(required)).choices[0];
  const [call] = message.tool_calls;
  assert.ok(["Paris", "北京"].includes(JSON.parse(call.function.arguments).city));
  const streamed = await client.chat.completions.stream(required).finalMessage();
  assert.equal(streamed.tool_calls[0].function.arguments, call.function.arguments);
  const result = { role: "tool", tool_call_id: call.id, content: "clear" };
  const last = await client.chat.completions.create({ messages: [...hello, message, result], tools: [tool], ...asked });
  assert.ok(last.choices[0].message.content);
});

test("structured", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "screen", schema, strict: true } };
  const answer = await client.chat.completions.parse({ messages: hello, response_format, ...asked });
  assert.equal(typeof answer.choices[0].message.parsed.locked, "boolean");
});

test("responses", async () => {
  const whole = await client.responses.create({ input: hello, ...respond });
  assert.match(whole.output_text, /AutoGLM-Phone/);
  const streamed = await client.responses.stream({ input: hello, ...respond }).finalResponse();
  assert.equal(streamed.output_text, whole.output_text);
  const again = [...hello, ...whole.output, { role: "user", content: "3 + 4 = ?" }];
  assert.ok((await client.responses.create({ input: again, ...respond })).output_text);
});

test("embeddings", async () => {
  const input = ["Open the camera", "打开相机"];
  const packed = await client.embeddings.create({ model: asked.model, input });
  const plain = await client.embeddings.create({ model: asked.model, input, encoding_format: "float" });
  assert.deepEqual(packed.data.map((row) => row.embedding), plain.data.map((row) => row.embedding.map(Math.fround)));
});

test("transcriptions", async () => {
  const recording = () => createReadStream(new URL("instruction.wav", examples));
  const transcribe = (more) => client.audio.transcriptions.create({ model: asked.model, file: recording(), ...more });
  const { text } = await transcribe({});
  assert.ok(text);
  assert.equal((await transcribe({ response_format: "verbose_json" })).segments[0].text, text);
  assert.match(await transcribe({ response_format: "vtt" }), /^WEBVTT/);
  const events = [];
  for await (const event of await transcribe({ stream: true })) events.push(event);
  assert.equal(events.at(-1).text, text);
});

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(asked.model));
  assert.equal((await client.models.retrieve(asked.model)).id, asked.model);
});

test("errors", async () => {
  const refused = (fields, kind, found) =>
    assert.rejects(client.chat.completions.create({ messages: hello, ...asked, ...fields }), (error) => {
      assert.ok(error instanceof kind);
      for (const [name, value] of Object.entries(found)) assert.equal(error[name], value);
      return true;
    });
  await refused({ model: "gpt-9" }, OpenAI.NotFoundError, { code: "model_not_found" });
  await refused({ temperature: 9 }, OpenAI.BadRequestError, { param: "temperature" });
  await assert.rejects(locked.chat.completions.create({ messages: hello, ...asked }), OpenAI.AuthenticationError);
});

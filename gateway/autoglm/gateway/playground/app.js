/** The playground: a conversation with the phone assistant. */

import { complete } from "./api.js";
import * as composer from "./composer.js";
import { byId } from "./dom.js";
import { Exchange } from "./exchange.js";
import * as screen from "./screen.js";
import * as settings from "./settings.js";
import { switchLanguage, translate } from "./words.js";

let messages = []; // the conversation so far, as the server is sent it
let answering = new AbortController(); // ends the answer that is being written

/** Send what the user has written, and show the answer as it comes. */
async function ask() {
  answering = new AbortController();
  composer.setBusy(true);
  try {
    const draft = await composer.take();
    if (draft) await answer(draft, answering.signal);
  } finally {
    composer.setBusy(false);
  }
}

async function answer(draft, signal) {
  const history = messages;
  const shown = screen.shown();
  const exchange = begin(draft);
  const question = { role: "user", content: await parts(draft) };
  try {
    const body = { ...settings.fields(), messages: [...history, question] };
    for await (const chunk of complete(body, settings.apiKey(), signal)) exchange.take(chunk);
    exchange.finish();
  } catch (error) {
    if (signal.aborted) exchange.stop();
    else fail(exchange, error);
  }
  if (history !== messages) return; // a new conversation has begun
  if (exchange.failed || !exchange.content) composer.giveBack(draft);
  else history.push(question, { role: "assistant", content: exchange.content });
  if (exchange.action && shown === screen.shown()) screen.mark(exchange.action);
}

function begin(draft) {
  byId("welcome").hidden = true;
  for (const open of document.querySelectorAll("details.figures[open]")) open.open = false;
  return new Exchange(draft);
}

function fail(exchange, error) {
  exchange.fail(error);
  settings.heed(error);
}

async function parts({ text, image, speech }) {
  const content = [];
  if (image) content.push({ type: "image_url", image_url: { url: await dataUrl(image) } });
  if (speech) content.push({ type: "input_audio", input_audio: { data: await dataUrl(speech) } });
  if (text) content.push({ type: "text", text });
  return content;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

function stop() {
  answering.abort();
}

function startAfresh() {
  stop();
  messages = [];
  for (const part of document.querySelectorAll(".question, .answer")) part.remove();
  byId("welcome").hidden = false;
  composer.clear();
}

translate();
settings.start();
composer.start(ask, stop);
byId("language").addEventListener("click", switchLanguage);
byId("fresh").addEventListener("click", startAfresh);
for (const example of document.querySelectorAll(".examples button")) {
  example.addEventListener("click", () => composer.write(example.textContent));
}

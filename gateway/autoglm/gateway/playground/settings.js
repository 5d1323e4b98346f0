/** How answers are asked for: the model, its settings and the key. */

import { listModels } from "./api.js";
import { byId, make } from "./dom.js";
import { say } from "./words.js";

const LOOK_AGAIN = 15_000; // milliseconds until what is missing is looked for again
const key = byId("key");
const model = byId("model");
const modalities = new Map(); // of each model, by its name
let looking = 0;

/** Make the form work, and fill it. */
export function start() {
  key.value = sessionStorage.getItem("api-key") ?? "";
  key.addEventListener("change", () => {
    sessionStorage.setItem("api-key", key.value.trim());
    loadModels();
  });
  model.addEventListener("change", showWhatIsThere);
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  loadModels();
}

/** Return the key; empty when there is none. */
export const apiKey = () => key.value.trim();

/** Tell whether the model chosen understands a modality now. */
export const understands = (modality) => modalities.get(model.value)?.includes(modality) ?? true;

/** Return the fields of a request that the form decides. */
export function fields() {
  const temperature = byId("temperature").valueAsNumber;
  const maxTokens = byId("max-tokens").valueAsNumber;
  return {
    model: model.value,
    enable_thinking: byId("thinking").checked,
    return_reasoning: true,
    stream_options: { include_usage: true },
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Number.isNaN(maxTokens) ? {} : { max_tokens: maxTokens }),
  };
}

/** Act on a failure of a request: a key that is refused is asked for, and what has gone is no longer offered. */
export function heed(failure) {
  if (failure.code === "authentication_error") askForKey();
  else loadModels();
}

function askForKey() {
  showKey(false);
  byId("more").open = true;
  key.focus();
}

function showKey(accepted) {
  key.setAttribute("aria-invalid", !accepted);
  say(byId("key-note"), accepted ? "keyNote" : "authentication_error");
}

async function loadModels() {
  clearTimeout(looking);
  try {
    take(await listModels(apiKey()));
    showKey(true);
    if (!document.querySelector("[data-needs][hidden]")) return;
  } catch (failure) {
    if (failure.code === "authentication_error") return askForKey();
  }
  looking = setTimeout(loadModels, LOOK_AGAIN);
}

function take(cards) {
  const chosen = model.value;
  modalities.clear();
  for (const card of cards) modalities.set(card.id, card.modalities);
  model.replaceChildren(...cards.map((card) => make("option", "", card.id)));
  if (modalities.has(chosen)) model.value = chosen;
  showWhatIsThere();
}

function showWhatIsThere() {
  for (const element of document.querySelectorAll("[data-needs]")) {
    element.hidden = !understands(element.dataset.needs);
  }
}

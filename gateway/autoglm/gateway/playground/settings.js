/** How answers are asked for: the model, its settings and the key. */

import { listModels, ServerError } from "./api.js";
import { byId, make } from "./dom.js";

const key = byId("key");

/** Make the form work, and fill it. */
export function start() {
  key.value = sessionStorage.getItem("key") ?? "";
  key.addEventListener("change", () => {
    sessionStorage.setItem("key", key.value.trim());
    loadModels();
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  loadModels();
}

/** Return the key; empty when there is none. */
export const apiKey = () => key.value.trim();

/** Return the fields of a request that the form decides. */
export function fields() {
  const temperature = byId("temperature").valueAsNumber;
  const maxTokens = byId("max-tokens").valueAsNumber;
  return {
    model: byId("model").value,
    enable_thinking: byId("thinking").checked,
    return_reasoning: true,
    stream_options: { include_usage: true },
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Number.isNaN(maxTokens) ? {} : { max_tokens: maxTokens }),
  };
}

/** Lead the user to the key when it was the key that failed. */
export function pointOut(error) {
  const refused = error instanceof ServerError && error.status === 401;
  key.setAttribute("aria-invalid", refused);
  if (!refused) return;
  byId("more").open = true;
  key.focus();
}

/** Fill the choice of models. Without them the server's own choice answers, and says itself what is wrong. */
async function loadModels() {
  try {
    const names = await listModels(apiKey());
    byId("model").replaceChildren(...names.map((name) => make("option", "", name)));
    pointOut(null);
  } catch (error) {
    pointOut(error);
  }
}

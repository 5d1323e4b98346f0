/** What an answer took: its stages, the gates of its modalities and its tokens. */

import { make } from "./dom.js";
import { say } from "./words.js";

/** Return the figures of an answer, from the `autoglm` object and the usage of its last chunks. */
export function figures({ stages, gates }, usage) {
  const details = make("details", "figures", make("summary", "", say(make("span", ""), "figures"), time(stages.total)));
  details.open = true;
  details.append(table(stageRows(stages)));
  if (Object.keys(gates).length) details.append(say(make("p", "soft"), "gates"), table(gateRows(gates)));
  if (usage) details.append(tokens(usage));
  return details;
}

function stageRows(stages) {
  const row = (name, took, note) => ({ name, note, share: took / stages.total, value: time(took) });
  return [
    row("fetch", stages.fetch),
    ...stages.media.map((part) => row(part.modality, part.encode, part.cache)),
    row("queue", stages.queue),
    row("prefill", stages.prefill),
    row("decode", stages.decode),
  ];
}

function gateRows(gates) {
  return Object.entries(gates).map(([name, mean]) => ({ name, share: mean, value: mean.toFixed(2) }));
}

function table(rows) {
  const body = make("table", "");
  for (const { name, note, share, value } of rows) {
    const bar = make("span", "bar");
    bar.style.setProperty("--share", Math.min(1, share));
    const heading = say(make("th", ""), name);
    heading.scope = "row";
    const noted = make("td", "soft");
    if (note) say(noted, note);
    body.append(make("tr", "", heading, make("td", "", bar), make("td", "number", value), noted));
  }
  return body;
}

function tokens({ prompt_tokens, completion_tokens, prompt_tokens_details }) {
  const counts = [
    [prompt_tokens, "tokensIn"],
    [prompt_tokens_details.cached_tokens, "tokensCached"],
    [completion_tokens, "tokensOut"],
  ];
  const said = counts.map(([count, what]) => make("span", "", `${count} `, say(make("span", ""), what)));
  return make("p", "tokens soft", ...said);
}

function time(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

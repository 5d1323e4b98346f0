/** A question and its answer in the log. What the model says is only ever inserted as text. */

import { readAction } from "./action.js";
import { byId, make } from "./dom.js";
import { figures } from "./figures.js";
import { name, say, speaks } from "./words.js";

const end = byId("end");
const SLACK = 60; // pixels below the last line where the reader still counts as following it

/** One exchange: built from what was asked, it grows with the chunks of the answer. */
export class Exchange {
  constructor({ text, image, speech }) {
    this.content = "";
    this.action = null;
    this.failed = false;
    this.answer = make("div", "answer");
    this.said = make("p", "said");
    this.answer.setAttribute("aria-busy", "true"); // so that it is read out whole
    this.answer.append(this.said);
    this.question = make("div", "question");
    if (image) this.question.append(picture(image));
    if (speech) this.question.append(player(speech));
    if (text) this.question.append(make("p", "", text));
    end.before(this.question, this.answer);
    end.scrollIntoView({ block: "end" });
  }

  /** Take one chunk of the stream. */
  take({ choices, usage, autoglm }) {
    const delta = choices[0]?.delta ?? {};
    this.content += delta.content ?? "";
    this.usage = usage ?? this.usage;
    this.telemetry = autoglm ?? this.telemetry;
    this.grow(() => {
      if (delta.reasoning_content) this.reason(delta.reasoning_content);
      if (delta.content) this.said.append(delta.content);
    });
  }

  /** The answer is whole. */
  finish() {
    this.action = readAction(this.content);
    this.close(() => {
      if (this.action) this.answer.append(call(this.action));
      if (this.telemetry) this.answer.append(figures(this.telemetry, this.usage));
    });
  }

  /** The user stopped the answer. */
  stop() {
    this.close(() => this.answer.append(say(make("p", "soft"), "stopped")));
  }

  /** The answer failed. */
  fail(error) {
    this.failed = true;
    this.close(() => this.answer.append(explanation(error)));
  }

  reason(text) {
    if (!this.reasoning) {
      this.reasoning = make("p", "");
      this.answer.prepend(make("details", "reasoning", say(make("summary", ""), "reasoning"), this.reasoning));
    }
    this.reasoning.append(text);
  }

  close(change) {
    this.grow(change);
    this.answer.setAttribute("aria-busy", "false");
  }

  /** Change the answer, and keep its end in sight if it was. */
  grow(change) {
    const following = end.getBoundingClientRect().top <= byId("composer").getBoundingClientRect().top + SLACK;
    change();
    if (following) end.scrollIntoView({ block: "end" });
  }
}

/** Return a small picture of a screenshot. */
export function picture(image) {
  const shown = name(make("img", ""), "screen");
  shown.addEventListener("load", () => URL.revokeObjectURL(shown.src));
  shown.src = URL.createObjectURL(image);
  return shown;
}

/** Return a player of a recording. */
export function player(speech) {
  const shown = name(make("audio", ""), "speech");
  shown.controls = true;
  shown.src = URL.createObjectURL(speech);
  return shown;
}

/** Return what went wrong: in the page's words where it has some, then in the server's. */
function explanation({ code, message, retryAfter }) {
  const shown = make("div", "error");
  shown.setAttribute("role", "alert");
  if (speaks(code)) shown.append(say(make("p", ""), code));
  if (message) shown.append(make("p", "soft", message));
  if (retryAfter) shown.append(say(make("p", ""), "retryAfter", retryAfter));
  return shown;
}

function call({ name: what, points, texts }) {
  const where = points.map((point) => point.join(", ")).join(" → ");
  return make("p", "action", say(make("strong", ""), what), " ", [where, ...texts].filter(Boolean).join(" · "));
}

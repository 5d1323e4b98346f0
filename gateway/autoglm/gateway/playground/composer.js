/** What the user is about to send: text, a screenshot, a recording. */

import { byId, icon, make } from "./dom.js";
import { picture, player } from "./exchange.js";
import * as screen from "./screen.js";
import { understands } from "./settings.js";
import { readable, record } from "./speech.js";
import { name, say } from "./words.js";

const IMAGES = ["image/png", "image/jpeg", "image/webp"];
const LONGEST = 29; // seconds: the server hears at most thirty
const form = byId("composer");
const text = byId("text");
const draft = { image: null, speech: null };
let endRecording = null; // while one is made
let clock = 0;
let turning = false;

/** Make the parts of the form work; `submit` is called when the user sends, `stop` when an answer is to stop. */
export function start(submit, stop) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy()) stop();
    else submit();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!busy()) form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  for (const [button, input] of [["add-image", "image-file"], ["add-speech", "speech-file"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", () => receive(byId(input)));
  }
  byId("record").addEventListener("click", toggleRecording);
  document.addEventListener("paste", (event) => attachAll(event, event.clipboardData));
  document.addEventListener("drop", (event) => attachAll(event, event.dataTransfer));
  document.addEventListener("dragover", (event) => event.preventDefault());
}

/** Take what is to be sent, and leave the form empty; null when there is nothing. */
export async function take() {
  if (endRecording) await finishRecording();
  const taken = { text: text.value.trim(), ...draft };
  if (!taken.text && !taken.image && !taken.speech) return null;
  text.value = "";
  set({ image: null, speech: null });
  return taken;
}

/** Put back what could not be answered, except where the user has gone on. */
export function giveBack(taken) {
  text.value ||= taken.text;
  set({ image: draft.image ?? taken.image, speech: draft.speech ?? taken.speech });
}

/** Write a text for the user, and send it. */
export function write(words) {
  text.value = words;
  form.requestSubmit();
}

/** Forget everything that is not sent. */
export function clear() {
  text.value = "";
  screen.show(null);
  set({ image: null, speech: null });
  text.focus();
}

/** Tell the form whether an answer is being written: then its button stops it. */
export function setBusy(answering) {
  form.classList.toggle("busy", answering);
  say(byId("send").firstElementChild, answering ? "stop" : "send");
}

const busy = () => form.classList.contains("busy");

function receive(input) {
  const [file] = input.files;
  input.value = ""; // so that the same file can be chosen again
  if (file) attach(file);
}

function attachAll(event, { files }) {
  if (files.length) event.preventDefault();
  for (const file of files) attach(file);
}

async function attach(file) {
  if (IMAGES.includes(file.type)) attachImage(file);
  else if (understands("audio")) await attempt(async () => set({ speech: await readable(file) }), "unreadable");
  else warn("noSpeech");
}

function attachImage(file) {
  if (!understands("image")) return warn("noImages");
  screen.show(file);
  set({ image: file });
}

async function toggleRecording() {
  if (turning) return; // a second click while the browser asks for permission
  turning = true;
  await (endRecording ? finishRecording() : startRecording());
  turning = false;
}

async function startRecording() {
  await attempt(async () => {
    endRecording = await record();
    showSeconds(0);
    clock = setInterval(tick, 1000, Date.now());
  }, "noMicrophone");
}

async function finishRecording() {
  const end = endRecording;
  endRecording = null;
  clearInterval(clock);
  showSeconds(null);
  await attempt(async () => set({ speech: await end() }), "unreadable");
}

function tick(started) {
  const seconds = Math.round((Date.now() - started) / 1000);
  if (seconds < LONGEST) showSeconds(seconds);
  else finishRecording();
}

function showSeconds(seconds) {
  const running = seconds !== null;
  name(byId("record"), running ? "recording" : "record").setAttribute("aria-pressed", running);
  byId("timer").textContent = running ? `0:${String(seconds).padStart(2, "0")}` : "";
}

/** Do `work`, or tell what is wrong. */
async function attempt(work, failure) {
  try {
    await work();
  } catch {
    warn(failure);
  }
}

function warn(what) {
  say(byId("notice"), what).hidden = false;
}

function set(change) {
  Object.assign(draft, change);
  byId("notice").hidden = true;
  byId("attached").replaceChildren();
  if (draft.image) show(picture(draft.image), () => (screen.show(null), set({ image: null })));
  if (draft.speech) show(player(draft.speech), () => set({ speech: null }));
}

function show(media, remove) {
  const button = name(make("button", "icon", icon("close")), "remove");
  button.type = "button";
  button.addEventListener("click", remove);
  byId("attached").append(make("span", "attachment", media, button));
}

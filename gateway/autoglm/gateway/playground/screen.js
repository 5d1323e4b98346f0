/** The phone beside the conversation: the screenshot, and on it what an answer does. */

import { byId, make } from "./dom.js";

const shot = byId("shot");
const swipe = byId("swipe");

/** Show a screenshot (a Blob), or the invitation to choose one. */
export function show(image) {
  clear();
  if (shot.src) URL.revokeObjectURL(shot.src);
  if (image) shot.src = URL.createObjectURL(image);
  else shot.removeAttribute("src");
  shot.hidden = !image;
}

/** Return what is shown: another value for another screenshot. */
export const shown = () => shot.src;

/** Mark the points of an action: where it taps, or from where to where it swipes. */
export function mark({ points }) {
  clear();
  for (const [x, y] of points) {
    const tap = make("span", "tap");
    tap.style.left = `${x / 10}%`; // of a thousand
    tap.style.top = `${y / 10}%`;
    shot.after(tap);
  }
  swipe.setAttribute("points", points.join(" "));
  if (points.length) byId("screen").scrollIntoView({ block: "nearest" }); // it is out of sight where the page is narrow
}

function clear() {
  for (const tap of document.querySelectorAll(".tap")) tap.remove();
  swipe.setAttribute("points", "");
}

/** Phone actions in an answer, such as do(action="Tap", element=[500,120]) and finish(message="Done"). */

const CALL = /\b(do|finish)\(/;
const ARGUMENT = /\s*(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|\[\s*(\d+)\s*,\s*(\d+)\s*\])\s*,?/y;

/**
 * Return the action that `answer` calls, or null: its name, its points [x, y] from 0 to 999 counted from the top
 * left, and its texts.
 */
export function readAction(answer) {
  const call = CALL.exec(answer);
  if (!call) return null;
  const action = { name: call[1], points: [], texts: [] };
  ARGUMENT.lastIndex = call.index + call[0].length;
  for (let found; (found = ARGUMENT.exec(answer)); ) {
    const [, argument, text, x, y] = found;
    if (x) action.points.push([Number(x), Number(y)]);
    else if (argument === "action") action.name = text;
    else action.texts.push(text.replace(/\\(.)/g, "$1"));
  }
  return action;
}

/** The gateway's API as the page uses it. */

/** Why a request failed: a code, the server's words where it had some, and the seconds until trying again may help. */
export class Failure extends Error {
  constructor(code, message = "", retryAfter = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Return the cards of the models; throws Failure. */
export async function listModels(key) {
  const response = await request("v1/models", key);
  return (await response.json()).data;
}

/** Yield the chunks of a streamed answer; throws Failure, and AbortError after `signal`. */
export async function* complete(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const { event, data } of events(response.body)) {
    if (data === "[DONE]") return;
    const content = JSON.parse(data);
    if (event === "error") throw new Failure(content.error.type, content.error.message);
    yield content;
  }
  throw new Failure("broke_off");
}

async function request(path, key, options = {}) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await reach(fetch(path, { ...options, headers }), "unreachable");
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({})); // a proxy's error has no body of OpenAI's
  const { type, message } = error ?? { type: null, message: `${response.status} ${response.statusText}` };
  throw new Failure(type, message, response.headers.get("retry-after"));
}

/** Yield the events of a text/event-stream as {event, data}. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reach(reader.read(), "broke_off");
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    yield* blocks.map(parse);
  }
}

function parse(block) {
  const fields = { event: "message", data: [] };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^(\w*):? ?(.*)$/.exec(line) ?? [];
    if (field === "data") fields.data.push(value);
    if (field === "event") fields.event = value;
  }
  return { event: fields.event, data: fields.data.join("\n") };
}

/** Wait for the network, whose failure browsers report as a TypeError in words of their own. */
async function reach(promise, code) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new Failure(code) : error;
  }
}

/** The gateway's API as the page uses it. */

/** What the server has to say about a request that failed. */
export class ServerError extends Error {
  constructor(status, { message, param }) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The connection failed or broke; the message is a key of WORDS. */
export class ConnectionError extends Error {}

/** Return the names of the models. */
export async function listModels(key) {
  const response = await request("v1/models", key);
  return (await response.json()).data.map((card) => card.id);
}

/** Yield the chunks of a streamed answer; throws ServerError, ConnectionError, and AbortError after `signal`. */
export async function* complete(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const { event, data } of events(response.body)) {
    if (data === "[DONE]") return;
    const content = JSON.parse(data);
    if (event === "error") throw new ServerError(response.status, content.error);
    yield content;
  }
  throw new ConnectionError("brokeOff");
}

async function request(path, key, options = {}) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await reach(fetch(path, { ...options, headers }), "unreachable");
  if (response.ok) return response;
  const fallback = { message: `${response.status} ${response.statusText}` }; // a proxy's error has no body of OpenAI's
  const body = await response.json().catch(() => ({}));
  throw new ServerError(response.status, body.error ?? fallback);
}

/** Yield the events of a text/event-stream as {event, data}. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reach(reader.read(), "brokeOff");
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
async function reach(promise, failure) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new ConnectionError(failure) : error;
  }
}

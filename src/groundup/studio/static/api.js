// The public HTTP API, with the session cookie that the browser adds by itself.

/** A request that failed: a message, what to do, or the key of a text where the server said nothing. */
export class Problem extends Error {
  constructor(message, { fix = "", status = 0, key, values, fixKey, waitS = 0 } = {}) {
    super(message);
    Object.assign(this, { fix, status, key, values, fixKey, waitS });
  }
}

/** What a GET gives: plain data, or text. */
export async function get(path) {
  const reply = await ask(path, {});
  return reply.headers.get("content-type")?.startsWith("application/json") ? reply.json() : reply.text();
}

/** What a POST of plain data gives. */
export async function post(path, body, signal) {
  return (await ask(path, sending(body, signal))).json();
}

/** What a POST of a form with one file gives. */
export async function postFile(path, fields, file, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("file", file.content, file.name);
  return (await ask(path, { method: "POST", body, signal })).json();
}

/** The events of a stream, each as plain data. Leaving the loop, or aborting the signal, ends the work. */
export async function* stream(path, body, signal) {
  const reply = await ask(path, sending({ ...body, stream: true, stream_options: { include_usage: true } }, signal));
  for await (const line of linesOf(reply.body)) {
    if (!line.startsWith("data: ")) continue;
    if (line === "data: [DONE]") return;
    const data = JSON.parse(line.slice(6));
    if (data.error) throw told(data.error, reply);
    yield data;
  }
  if (!signal?.aborted) throw new Problem("", { key: "cutOff" });
}

/** A request as a line for a shell. The key is left for the reader to put in. */
export function asCurl(path, body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const url = new URL(path, document.baseURI);
  return `curl ${url} \\\n  -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

/** A form with one file, as a line for a shell. */
export function asCurlForm(path, fields, name) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = Object.entries(fields).map(([key, value]) => `-F ${quoted(`${key}=${value}`)}`);
  const url = new URL(path, document.baseURI);
  return [`curl ${url}`, '  -H "Authorization: Bearer $KEY"', `  ${[...parts, `-F ${quoted(`file=@${name}`)}`].join(" ")}`].join(" \\\n");
}

function sending(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, { ...options, redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("", { key: "unreachable" });
  }
  if (reply.ok) return reply;
  let found = null;
  try {
    found = (await reply.json()).error;
  } catch {
    // Not ours: a proxy in between may say anything.
  }
  throw told(found, reply);
}

function told(error, reply) {
  const status = reply.ok ? 0 : reply.status;
  if (status === 401) return new Problem("", { key: "signedOut", status });
  const waitS = Number(reply.headers.get("retry-after")) || 0;
  if (!error?.message) return new Problem("", { key: "failed", values: { status }, status, waitS });
  return new Problem(error.message, { fix: error.fix ?? "", status, waitS });
}

async function* linesOf(body) {
  let rest = "";
  // A stream's reader, not its iterator: some browsers have no iterator yet.
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

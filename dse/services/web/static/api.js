// The gateway's HTTP interface: requests, and event streams that come back by themselves without a gap.
// fetch is used for streams too, because EventSource cannot send a token.

let token = sessionStorage.getItem("dse-token") ?? "";

export function setToken(text) {
  token = text.trim();
  sessionStorage.setItem("dse-token", token);
}

export class Refused extends Error {
  constructor(status, body) {
    super(body?.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.body = body ?? {};
  }
}

const headers = (more) => (token ? { Authorization: `Bearer ${token}`, ...more } : { ...more });

async function checked(response) {
  if (response.ok) return response;
  let body = null;
  try { body = await response.json(); } catch { /* not ours */ }
  throw new Refused(response.status, body);
}

export const get = async (path, options) =>
  (await checked(await fetch(`api/${path}`, { headers: headers(), ...options }))).json();

export const post = async (path, body) =>
  (await checked(await fetch(`api/${path}`, {
    method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body),
  }))).json();

export const path = (...parts) => parts.map(encodeURIComponent).join("/");

// Follow a stream until the signal is aborted. `seen(event, data)` gets each event; `state(connected, error)` how it stands.
// After a loss it asks for what came after the last id it saw.
export async function follow(url, { signal, since, seen, state }) {
  let last = since;
  let delay = 500;
  while (!signal.aborted) {
    try {
      const from = last ? `${url.includes("?") ? "&" : "?"}since=${encodeURIComponent(last)}` : "";
      const response = await checked(await fetch(`api/${url}${from}`, { headers: headers(), signal }));
      state?.(true);
      delay = 500;
      for await (const event of events(response.body)) {
        if (event.id) last = event.id;
        if (event.data) seen(event.event, JSON.parse(event.data), event.id);
      }
      if (!signal.aborted) state?.(false, new Error("the gateway is gone"));
    } catch (error) {
      if (signal.aborted) return;
      state?.(false, error);
      if (error instanceof Refused && [401, 403, 404].includes(error.status)) return;
    }
    await new Promise((done) => setTimeout(done, delay * (0.7 + 0.6 * Math.random())));
    delay = Math.min(delay * 1.7, 5000);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = { event: "message", data: "", id: "" };
        for (const line of text.slice(0, end).split("\n")) {
          const colon = line.indexOf(":");
          const field = line.slice(0, colon);
          if (field in event) event[field] = line.slice(colon + 1).replace(/^ /, "");
        }
        text = text.slice(end + 2);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

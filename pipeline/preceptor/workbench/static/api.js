// The server's JSON. A refusal is an Error with the server's line; a stale card comes with how it stands now.

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.body = body;
  }
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Refused(0, { error: { message: "The workbench does not answer. Is the command still running?" } });
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

export const get = (path) => answered(fetch(path, { headers: { accept: "application/json" } }));

export const post = (path, content) =>
  answered(fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-preceptor": "workbench" },
    body: JSON.stringify(content),
  }));

export const cardPath = (card) => `/api/cards/${encodeURIComponent(card.pair_id)}/${encodeURIComponent(card.dimension)}`;

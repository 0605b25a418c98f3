// Asks the program. One answer at a time for each purpose: a newer question
// ends the older one, so that a slow answer never overwrites a newer one.

const asking = new Map();

/** The answer to a question was no longer wanted. */
export const isStale = (error) => error.name === 'AbortError';

/** GET as JSON. Questions with the same purpose replace each other. */
export async function get(path, query, purpose, parse = JSON.parse) {
  return parse(await getText(path, query, purpose));
}

/** GET as text. */
export async function getText(path, query, purpose) {
  asking.get(purpose)?.abort();
  const controller = new AbortController();
  if (purpose) asking.set(purpose, controller);
  const text = query?.toString() ?? '';
  const response = await fetch(text ? `${path}?${text}` : path, { signal: controller.signal });
  const body = await response.text();
  if (!response.ok) throw refusal(response, body);
  return body;
}

/** POST as JSON, with the key that lets this browser act. */
export async function post(path, content, key) {
  const headers = { 'Content-Type': 'application/json', ...(key ? { 'X-Outboxd-Key': key } : {}) };
  const response = await fetch(path, { method: 'POST', headers, body: JSON.stringify(content) });
  const body = await response.text();
  if (!response.ok) throw refusal(response, body);
  return JSON.parse(body);
}

/** Ends the question with this purpose. */
export function forget(purpose) {
  asking.get(purpose)?.abort();
}

function refusal(response, body) {
  let answer = {};
  try {
    answer = JSON.parse(body);
  } catch {
    // Not ours: the status says enough.
  }
  const error = new Error(answer.error ?? `the answer was ${response.status}`);
  error.hint = answer.hint ?? null;
  error.status = response.status;
  return error;
}

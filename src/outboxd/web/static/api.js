// Asks the program. One answer at a time for each purpose: a newer question
// ends the older one, so that a slow answer never overwrites a newer one.

const ANSWER_MAX_MS = 20_000; // the longest that an answer takes; behind it nobody answers

const asking = new Map();

/** The answer to a question was no longer wanted. */
export const isStale = (error) => error.name === 'AbortError';

/** GET as JSON. Questions with the same purpose replace each other. */
export async function get(path, query, purpose, parse = JSON.parse, withinMs = ANSWER_MAX_MS) {
  return parse(await getText(path, query, purpose, withinMs));
}

/** GET as text. A program that stands still takes the question and never answers. */
export async function getText(path, query, purpose, withinMs = ANSWER_MAX_MS) {
  asking.get(purpose)?.abort();
  const controller = new AbortController();
  if (purpose) asking.set(purpose, controller);
  const text = query?.toString() ?? '';
  const late = new DOMException(`no answer within ${withinMs / 1000} s`, 'TimeoutError');
  const timer = setTimeout(() => controller.abort(late), withinMs);
  try {
    return await answered(text ? `${path}?${text}` : path, { signal: controller.signal });
  } finally {
    clearTimeout(timer);
  }
}

/** POST as JSON, with the key that lets this browser act. */
export async function post(path, content, key) {
  const headers = { 'Content-Type': 'application/json', ...(key ? { 'X-Outboxd-Key': key } : {}) };
  return JSON.parse(await answered(path, { method: 'POST', headers, body: JSON.stringify(content) }));
}

/** The body of a good answer. What a browser says where there is none helps nobody. */
async function answered(url, options) {
  try {
    const response = await fetch(url, options);
    const body = await response.text();
    if (!response.ok) throw refusal(response, body);
    return body;
  } catch (error) {
    throw error instanceof TypeError ? new Error(`no answer from ${location.host}`) : error;
  }
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

// JSON as it was written: a number that JavaScript would write otherwise keeps its text.

/** A number in the words of its producer. */
export class RawNumber {
  constructor(text) { this.text = text; }

  toString() { return this.text; }
}

/** JSON.parse, but a number that would change becomes a RawNumber. For events alone. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    if (typeof value !== 'number' || context?.source === undefined) return value;
    return String(value) === context.source ? value : new RawNumber(context.source);
  });
}

/** The text of one member of an object's JSON, exactly as it stands; null without it. */
export function memberText(text, name) {
  let at = skipSpace(text, text.indexOf('{') + 1);
  while (text[at] === '"') {
    const keyEnd = skipString(text, at);
    const key = JSON.parse(text.slice(at, keyEnd));
    const start = skipSpace(text, skipSpace(text, keyEnd) + 1);
    const end = skipValue(text, start);
    if (key === name) return text.slice(start, end);
    at = skipSpace(text, end);
    if (text[at] !== ',') return null;
    at = skipSpace(text, at + 1);
  }
  return null;
}

/** A value on one line, for a list; strings without their quotes. */
export function plain(value) {
  if (typeof value === 'string') return value;
  if (value instanceof RawNumber) return value.text;
  if (value === null || typeof value !== 'object') return String(value);
  return compactJson(value);
}

function compactJson(value) {
  if (value instanceof RawNumber) return value.text;
  if (Array.isArray(value)) return `[${value.map(compactJson).join(', ')}]`;
  if (value !== null && typeof value === 'object') {
    const members = Object.entries(value).map(([key, own]) => `${JSON.stringify(key)}: ${compactJson(own)}`);
    return `{${members.join(', ')}}`;
  }
  return JSON.stringify(value);
}

const SPACE = ' \n\r\t';

function skipSpace(text, at) {
  while (SPACE.includes(text[at]) && at < text.length) at += 1;
  return at;
}

function skipString(text, at) {
  for (let i = at + 1; i < text.length; i += 1) {
    if (text[i] === '\\') i += 1;
    else if (text[i] === '"') return i + 1;
  }
  return text.length;
}

function skipValue(text, at) {
  if (text[at] === '"') return skipString(text, at);
  let depth = 0;
  for (let i = at; i < text.length; i += 1) {
    const char = text[i];
    if (char === '"') i = skipString(text, i) - 1;
    else if (char === '{' || char === '[') depth += 1;
    else if (char === '}' || char === ']') {
      if (depth === 0) return i;
      depth -= 1;
      if (depth === 0) return i + 1;
    } else if (char === ',' && depth === 0) return i;
  }
  return text.length;
}

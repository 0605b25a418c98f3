// The head of the page: how the destination stands, or what the sandbox does.

import { byId, h } from './dom.js';
import { ago, compact, count } from './format.js';
import { KIND } from './view.js';

const STATES = {
  ok: ['good', 'Delivering'],
  untried: ['plain', 'Not tried yet'],
  backingOff: ['bad', 'Komodor is unavailable'],
  throttled: ['warn', 'Throttled'],
  held: ['bad', 'Held'],
};

let shown = '';

/** Shows a status; what has not changed is left alone. */
export function showStatus(status) {
  const text = JSON.stringify(status);
  if (text === shown) return;
  shown = text;
  byId('status').replaceChildren(...(KIND === 'agent' ? agent(status) : sandbox(status)));
}

function agent({ destination, outbox }) {
  const [tone, word] = STATES[destination.state] ?? ['plain', destination.state];
  const title = [destination.endpoint, destination.reason, destination.since ? `since ${ago(Date.parse(destination.since))}` : null].filter(Boolean).join(' · ');
  const parts = [h('span', { class: 'chip', 'data-tone': tone, title }, h('span', { class: 'dot', 'aria-hidden': 'true' }), word)];
  if (destination.reason && tone !== 'good') parts.push(h('span', { class: 'reason', title: destination.reason }, destination.reason));
  parts.push(figure(outbox.pending, 'waiting', outbox.pending ? 'info' : 'plain'));
  if (outbox.held) parts.push(figure(outbox.held, 'held', 'warn'));
  parts.push(figure(outbox.dead, outbox.dead === 1 ? 'dead letter' : 'dead letters', outbox.dead ? 'bad' : 'plain'));
  return parts;
}

function sandbox({ received, repeated, faults }) {
  const wrong = faultWords(faults ?? {});
  const chip = h('span', { class: 'chip', 'data-tone': wrong ? 'bad' : 'good' }, h('span', { class: 'dot', 'aria-hidden': 'true' }), wrong || 'Answering');
  const parts = [chip, figure(received, 'received', 'plain')];
  if (repeated) parts.push(figure(repeated, 'twice', 'warn'));
  return parts;
}

function faultWords(faults) {
  const words = [];
  if (faults.outage) words.push('Outage');
  if (faults.status) words.push(`Answers ${faults.status}`);
  if (faults.html) words.push('Captive portal');
  if (faults.failRate) words.push(`Fails ${Math.round(faults.failRate * 100)} %`);
  if (faults.lostAnswerRate) words.push(`Loses ${Math.round(faults.lostAnswerRate * 100)} % of answers`);
  if (faults.rateLimit) words.push(`At most ${faults.rateLimit} a second`);
  const late = (faults.latencyMs ?? 0) + (faults.hangSeconds ?? 0) * 1000;
  if (late) words.push(`${late} ms late`);
  return words.join(', ');
}

function figure(value, word, tone) {
  return h('span', { class: 'count-chip', 'data-tone': tone, title: count(value, word, word) }, h('b', {}, compact(value)), ` ${word}`);
}

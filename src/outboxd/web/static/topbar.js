// The head of the page: whose it is, how it stands, and what is wrong with what to
// do, in the words of `outboxd status --check`. What is old looks old.

import { byId, h, setText } from './dom.js';
import { ago, compact, count, moment } from './format.js';
import { note } from './standing.js';
import { KIND } from './view.js';

const STATES = {
  ok: ['good', 'Delivering'],
  untried: ['plain', 'Not tried yet'],
  backingOff: ['bad', 'Unavailable'],
  throttled: ['warn', 'Throttled'],
  held: ['bad', 'Held'],
};

let shown = '';
let last = null;

/** Shows a status; what has not changed is left alone. */
export function showStatus(status) {
  last = status;
  note(status);
  // What changes with every look is in a title alone.
  const { leaseLeftSeconds, databaseAnswerSeconds, ...deliverer } = status.deliverer ?? {};
  const text = JSON.stringify({ ...status, deliverer, now: 0, rate: 0, disk: 0 });
  if (text === shown) return;
  shown = text;
  byId('status').replaceChildren(...(KIND === 'agent' ? agent(status) : sandbox(status)));
  if (status.host) setText(byId('host'), status.host);
  if (KIND === 'agent') setText(byId('what'), status.gateway ? 'gateway' : 'outbox of');
  showFindings(status.findings ?? []);
  setTitle();
}

/** What has not been heard of since a moment (ms), or null: everything is as it stands now. */
export function showStale(since) {
  document.body.classList.toggle('stale', since !== null);
  const element = byId('stale');
  element.hidden = since === null;
  if (since !== null) setText(element, `No answer from the ${KIND === 'agent' ? 'agent' : 'sandbox'} since ${moment(since)}. What is shown is how it stood then.`);
  setTitle(since !== null);
}

function setTitle(isStale = false) {
  const name = last?.host ?? '';
  const parts = [KIND === 'agent' ? name || 'Events' : 'Events', 'outboxd'];
  const what = isStale ? 'no answer' : KIND === 'agent' && last ? number(last) : '';
  document.title = [what, ...parts].filter(Boolean).join(' · ');
}

/** The number that matters: what is wrong first, then what waits. */
function number({ outbox, findings = [], destination }) {
  const critical = findings.some((found) => found.level === 'critical');
  const mark = critical ? '⛔ ' : findings.length ? '⚠ ' : '';
  if (outbox.dead && findings.some((found) => found.message.includes('dead letter'))) return `${mark}${compact(outbox.dead)} dead`;
  if (outbox.pending || destination.state !== 'ok') return `${mark}${compact(outbox.pending)} waiting`;
  return mark.trim();
}

/** What is wrong, the worst first, each with what to do. */
function showFindings(findings) {
  const element = byId('findings');
  element.hidden = findings.length === 0;
  element.replaceChildren(...findings.map(({ level, message, hint }) => h('li', { 'data-level': level },
    h('span', { class: 'level' }, level === 'critical' ? 'Critical' : 'Warning'),
    h('span', { class: 'finding' }, h('b', {}, message), message.includes('dead letter') ? h('a', { class: 'link', href: '?state=dead', 'data-view': '' }, 'Show them') : '',
      h('span', { class: 'todo' }, ...withCode(hint))))));
}

/** A hint with its `commands` as code. */
function withCode(text) {
  return text.split('`').map((part, index) => (index % 2 ? h('code', {}, part) : part));
}

function agent({ destination, outbox, deliverer, findings = [] }) {
  let [tone, word] = STATES[destination.state] ?? ['plain', destination.state];
  const whose = destination.gateway ? 'The gateway' : 'Komodor';
  if (destination.state === 'ok' && destination.gateway) word = 'Delivering to a gateway';
  if (destination.state === 'backingOff') word = `${whose} is unavailable`;
  const critical = findings.find((found) => found.level === 'critical');
  // Green only where nothing is wrong.
  if (tone === 'good' && findings.length) [tone, word] = critical ? ['bad', 'Needs you'] : ['warn', 'With a warning'];
  const title = [destination.endpoint, destination.gateway ? 'a gateway, which sends on; what is delivered here, it has' : null, destination.reason, destination.since ? `since ${ago(Date.parse(destination.since))}` : null].filter(Boolean).join(' · ');
  const parts = [h('span', { class: 'chip', 'data-tone': tone, title }, h('span', { class: 'dot', 'aria-hidden': 'true' }), word)];
  if (deliverer) parts.push(whoDelivers(deliverer));
  parts.push(figure(outbox.pending, 'waiting', outbox.pending ? 'info' : 'plain', '?state=pending'));
  if (outbox.held) parts.push(figure(outbox.held, 'held', 'warn', '?held=true'));
  parts.push(figure(outbox.dead, outbox.dead === 1 ? 'dead letter' : 'dead letters', outbox.dead ? 'bad' : 'plain', '?state=dead'));
  return parts;
}

/** Which of the gateways that share the outbox delivers; of its lease and the database in the title. */
function whoDelivers({ account, here, gateway, otherAccounts, leaseLeftSeconds, databaseAnswerSeconds, standbyLagSeconds, trouble }) {
  const word = here ? 'by this gateway' : gateway ? `by ${gateway}` : 'by no gateway';
  const title = [
    `the account ${account}`,
    ...(otherAccounts ?? []).map((other) => `${other.name}: ${other.pending} pending, by ${other.gateway ?? 'no gateway'}`),
    leaseLeftSeconds === null ? null : `its lease runs for ${Math.max(0, Math.round(leaseLeftSeconds))} s`,
    databaseAnswerSeconds === null ? null : `the database answers in ${Math.round(databaseAnswerSeconds * 1000)} ms`,
    standbyLagSeconds === null ? null : `its standby is ${standbyLagSeconds.toFixed(1)} s behind`,
    trouble,
  ].filter(Boolean).join(' · ');
  return h('span', { class: 'count-chip', 'data-tone': trouble || !gateway ? 'bad' : 'plain', title }, word);
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

/** A number that leads to the events that it counts. */
function figure(value, word, tone, href) {
  return h(href ? 'a' : 'span', { class: 'count-chip', href, 'data-view': href ? '' : null, 'data-tone': tone, title: count(value, word, word) }, h('b', {}, compact(value)), ` ${word}`);
}

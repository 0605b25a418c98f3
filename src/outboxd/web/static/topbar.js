// The head of the page: whose it is, how it stands, and what is wrong with what to
// do, in the words of `outboxd status --check`. What is old looks old.

import { browserAheadMs } from './clock.js';
import { become, byId, h, isSelectedIn, setText, shown as safe } from './dom.js';
import { ago, compact, count, largest, moment } from './format.js';
import { note, toThisAgent } from './standing.js';
import { KIND } from './view.js';

const STATES = {
  ok: ['good', 'Delivering'],
  untried: ['plain', 'Not tried yet'],
  backingOff: ['bad', 'Unavailable'],
  throttled: ['warn', 'Throttled'],
  held: ['bad', 'Held'],
};

const CLOCK_TOLD_MS = 60_000; // from here on it is told that the browser's clock is off

let shown = '';
let last = null;
let version = null; // of the program that this page came from
let keepStill = (change) => change() ?? true;
let isPostponed = false;
setInterval(() => isPostponed && showFindings(last), 500);

/** `still(change, undo)` changes what stands above the list, or does not; see `List.keepStill`. */
export function moveNothing(still) {
  keepStill = still;
}

/** Shows a status; what has not changed is left alone. */
export function showStatus(status) {
  last = status;
  version ??= status.version;
  note(status);
  // What changes with every look is in a title alone.
  const { leaseLeftSeconds, databaseAnswerSeconds, ...deliverer } = status.deliverer ?? {};
  const text = JSON.stringify({ ...status, deliverer, now: 0, rate: 0, disk: 0 });
  if (text === shown) return;
  shown = text;
  become(byId('status'), KIND === 'agent' ? agent(status) : sandbox(status));
  if (status.host) setText(byId('host'), status.host);
  if (KIND === 'agent') setText(byId('what'), status.gateway ? 'gateway' : 'outbox of');
  showFindings(status);
  setTitle();
}

/** What has not been heard of since a moment (ms), or null: everything is as it stands now. */
export function showStale(since) {
  document.body.classList.toggle('stale', since !== null);
  const element = byId('stale');
  keepStill(() => {
    element.hidden = since === null;
    if (since !== null) setText(element, `No answer from the ${KIND === 'agent' ? 'agent' : 'sandbox'} since ${moment(since)}. What is shown is how it stood then.`);
  });
  setTitle(since !== null);
}

function setTitle(isStale = false) {
  const name = last?.host ?? '';
  const parts = [KIND === 'agent' ? name || 'Events' : 'Events', 'outboxd'];
  const what = isStale ? 'no answer' : KIND === 'agent' && last ? number(last) : '';
  document.title = safe([what, ...parts].filter(Boolean).join(' · '));
}

/** The number that matters: what is wrong first, then what waits. */
function number({ outbox, findings = [], destination }) {
  const critical = findings.some((found) => found.level === 'critical');
  const mark = critical ? '⛔ ' : findings.length ? '⚠ ' : '';
  if (outbox.dead && findings.some((found) => found.message.includes('dead letter'))) return `${mark}${compact(outbox.dead)} dead`;
  if (outbox.pending || destination.state !== 'ok') return `${mark}${compact(outbox.pending)} waiting`;
  return mark.trim();
}

const LEVELS = { critical: 'Critical', warning: 'Warning', note: 'Note' };

/** What is wrong, the worst first, each with what to do. It stays as it is while a text in
 * it is selected, or where the rows that somebody points at would have to move. */
function showFindings(status) {
  const element = byId('findings');
  const told = [...(status.findings ?? []), ...ofThisPage(status)];
  const before = [...element.childNodes].map((node) => node.cloneNode(true));
  const show = (items) => {
    element.hidden = items.length === 0;
    become(element, items);
  };
  isPostponed = isSelectedIn(element) || !keepStill(() => show(told.map(finding)), () => show(before));
}

function finding({ level, message, hint, link = null }) {
  const more = message.includes('dead letter') ? h('a', { class: 'link', href: '?state=dead', 'data-view': '' }, 'Show them') : link;
  return h('li', { 'data-level': level }, h('span', { class: 'level' }, LEVELS[level]),
    h('span', { class: 'finding' }, h('b', {}, message), more ?? '', h('span', { class: 'todo' }, ...withCode(hint))));
}

/** What is to be known of this page, and is no trouble of the agent's. */
function ofThisPage(status) {
  const found = [];
  const off = browserAheadMs();
  if (Math.abs(off) >= CLOCK_TOLD_MS) {
    found.push({ level: 'note', message: `this browser’s clock is ${largest(Math.abs(off))} ${off > 0 ? 'ahead of' : 'behind'} the agent’s`, hint: 'how long ago something was is told by the agent’s' });
  }
  if (status.version !== version) {
    found.push({ level: 'note', message: `outboxd ${status.version} runs here now`, hint: `this page came from ${version}`, link: h('a', { class: 'link', href: '' }, 'Load it anew') });
  }
  return found;
}

/** A hint with its `commands` as code, which work as they are copied. */
function withCode(text) {
  return text.split('`').map((part, index) => (index % 2 ? h('code', {}, part.startsWith('outboxd ') ? `${part}${toThisAgent()}` : part) : part));
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

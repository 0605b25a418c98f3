// What an event means to a reader: its times, its state in words, its service.

import { now as currentTime } from './clock.js';
import { count, duration, largest, moment } from './format.js';
import { plain } from './raw.js';
import { toThisAgent, waitsFor } from './standing.js';
import { KIND } from './view.js';

export const SEVERITY_WORDS = { information: 'Information', warning: 'Warning', error: 'Error' };
const OUTCOME_WORDS = {
  delivered: 'delivered', throttled: 'throttled', unavailable: 'unavailable', hold: 'held back',
  rejected: 'rejected', expired: 'expired',
};
export const DEAD_WORDS = { rejected: 'Rejected', exhausted: 'Given up', expired: 'Expired' };

export function time(text) {
  const at = text ? Date.parse(text) : NaN;
  return Number.isNaN(at) ? null : at;
}

/** When it happened: as the producer said, else when it was received. */
export const occurredAt = (entry) => time(entry.occurredAt) ?? time(entry.receivedAt);

/** What an answer said was wrong, without the words around it. */
export function briefly(error) {
  const at = error.indexOf('{');
  try {
    const { errors, message, error: told, detail } = JSON.parse(error.slice(at));
    const texts = [errors, told, detail, message].flat().filter((text) => typeof text === 'string' && text && !error.slice(0, at).includes(text));
    return texts.length ? texts.join('; ') : error;
  } catch {
    return error; // no JSON, or only the beginning of it
  }
}

/** What the column 'Delivered' says: {tone, word, extra}. */
export function ending(entry, now = currentTime()) {
  if (entry.state === 'delivered') {
    const at = time(entry.deliveredAt) ?? time(entry.receivedAt);
    const late = at - occurredAt(entry);
    return { tone: 'delivered', word: moment(at, now), extra: late >= 60_000 ? `${duration(late)} late` : '' };
  }
  if (entry.state === 'dead') {
    const status = entry.lastStatus ? `, ${entry.lastStatus}` : '';
    return { tone: 'dead', word: 'Dead letter', extra: `${DEAD_WORDS[entry.deadReason] ?? entry.deadReason}${status}` };
  }
  if (entry.held) return { tone: 'held', word: 'Held', extra: 'by the operator' };
  return { tone: 'pending', word: 'Waiting', extra: due(entry, now) };
}

/** Until when a pending entry waits, in few words. */
export function due(entry, now = currentTime()) {
  const { why, until } = waitsFor(entry, time(entry.dueAt), now);
  if (until !== null && until > now + 1000) return `next try in ${largest(until - now)}`;
  if (until !== null) return 'next try now';
  if (why.startsWith('the destination is held')) return 'destination held';
  return entry.attemptCount > 0 ? `due, ${count(entry.attemptCount, 'attempt', 'attempts')}` : 'due now';
}

/** Why it waits and until when, in a sentence. */
export function waiting(entry, now = currentTime()) {
  const { why, until } = waitsFor(entry, time(entry.dueAt), now);
  return until !== null && until > now ? `${why}; next try at ${moment(until, now)}, in ${largest(until - now)}` : why;
}

export const outcomeWord = (outcome) => OUTCOME_WORDS[outcome] ?? outcome;

/** The service, or that there are several: {name, extra}. */
export function service(entry) {
  const found = entry.correlatedServices;
  if (found) {
    if (found.length === 1) return { name: found[0].service, extra: `${found[0].namespace}, ${found[0].cluster}` };
    if (found.length === 0) return { name: 'No service', extra: 'the scope matches none' };
    return { name: 'Cross-service event', extra: count(found.length, 'service', 'services') };
  }
  const scope = entry.scope ?? {};
  const names = scope.servicesNames ?? [];
  const where = [scope.namespaces, scope.clusters].filter((list) => list?.length).map((list) => list.join(', '));
  if (names.length === 1) return { name: names[0], extra: where.join(' · ') };
  if (names.length > 1) return { name: 'Cross-service event', extra: names.join(', ') };
  return { name: 'Cross-service event', extra: where.join(' · ') || 'the whole account' };
}

/** Its details on one line. */
export function detailsLine(entry) {
  return Object.entries(entry.details ?? {}).slice(0, 6).map(([key, value]) => `${key}: ${plain(value).slice(0, 80)}`).join('  ·  ');
}

/** A row in one sentence, for those who hear it. */
export function sentence(entry) {
  const end = ending(entry);
  const state = end.tone === 'delivered' ? `${KIND === 'agent' ? 'delivered' : 'received'} ${end.word}` : end.word;
  return `${SEVERITY_WORDS[entry.severity]}: ${entry.eventType}. ${entry.summary}. `
    + `Occurred ${moment(occurredAt(entry))}, ${state} ${end.extra}. ${service(entry).name}`;
}

/** The commands that would change it: [[what it does, command]]. */
export function commands(entry) {
  const outboxd = (words) => `outboxd ${words}${toThisAgent()}`;
  const found = [['Show it in a terminal', outboxd(`events show ${entry.id}`)]];
  if (entry.state === 'delivered' && entry.destinationIsGateway) {
    found.push(['Ask the gateway what became of it', outboxd(`wait --through ${entry.id}`)]);
  }
  if (entry.state === 'dead') {
    found.push(['Send it once more', outboxd(`dead-letters retry ${entry.id}`)]);
    found.push(['Remove it for good', outboxd(`dead-letters drop ${entry.id}`)]);
  } else if (entry.state === 'pending') {
    if (entry.held) found.push(['Let it go', outboxd(`release ${entry.id}`)]);
    else {
      found.push(['Send it now, not when it is due', outboxd(`dead-letters retry ${entry.id}`)]);
      found.push(['Keep it back', outboxd(`hold ${entry.id}`)]);
    }
    found.push(['Remove it for good, unsent', outboxd(`dead-letters drop ${entry.id}`)]);
  }
  return found;
}

/** What may be done to it: [[word, path, content, what is asked first, is dangerous]]. */
export function actions(entry) {
  const id = encodeURIComponent(entry.id);
  const named = `“${entry.eventType}”`;
  const drop = ['Drop', `/v1/events/${id}/drop`, {}, `Remove ${named} for good? It will never be sent.`, true];
  if (entry.state === 'dead') return [['Retry', `/v1/events/${id}/retry`, {}, `Send ${named} once more?`, false], drop];
  if (entry.state !== 'pending') return [];
  if (entry.held) return [['Release', '/v1/release', { id: entry.id }, `Let ${named} go?`, false], drop];
  return [['Try now', `/v1/events/${id}/retry`, {}, `Send ${named} now, not when it is due?`, false],
    ['Hold', '/v1/hold', { id: entry.id }, `Keep ${named} back until somebody releases it?`, false], drop];
}

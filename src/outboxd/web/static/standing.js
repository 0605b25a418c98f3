// How the agent stands, as it said last: the parts of the page that explain an
// event (why it waits, which command reaches the agent) ask here.

import { noteTime, now as currentTime } from './clock.js';
import { quoted } from './shell.js';

let last = null;

/** Notes a status. */
export function note(status) {
  last = status;
  noteTime(status.now);
}

export const standing = () => last;

/** Why a pending event has not gone out, and until when: {why, until} (ms or null). */
export function waitsFor(entry, dueAt, now = currentTime()) {
  if (entry.held) return { why: 'held by the operator', until: null };
  const destination = last?.destination;
  const probe = destination?.nextProbeAt ? Date.parse(destination.nextProbeAt) : null;
  const reason = destination?.reason ? `: ${destination.reason}` : '';
  if (destination?.state === 'held') return { why: `the destination is held${reason}`, until: probe };
  if (destination?.state === 'backingOff') return { why: `the destination is unavailable${reason}`, until: probe };
  if (destination?.state === 'throttled') return { why: `the destination throttles${reason}`, until: probe };
  if (dueAt !== null && dueAt > now + 500) {
    return { why: 'its last attempt failed while others were delivered', until: dueAt };
  }
  return { why: 'it stands in the queue', until: null };
}

/** The words that lead a command to this agent; none where it is the packaged one. */
export function toThisAgent() {
  const socket = last?.socket;
  return socket && socket !== '/run/outboxd/outboxd.sock' ? ` --socket ${quoted(socket)}` : '';
}

// The time by the agent's clock: all times that it tells are by that one, and the
// clock of whoever looks may be an hour off.

const TOLERATED_MS = 2000; // as long as an answer may take

let ahead = 0; // of this browser's clock

/** The moment by the agent's clock, in ms. */
export const now = () => Date.now() + ahead;

/** Notes what the agent's clock said just now. */
export function noteTime(text) {
  const told = Date.parse(text);
  if (Number.isNaN(told)) return;
  const off = told - Date.now();
  if (Math.abs(off - ahead) > TOLERATED_MS) ahead = Math.abs(off) > TOLERATED_MS ? off : 0;
}

/** How far the browser's clock is ahead of the agent's; below 0: behind. */
export const browserAheadMs = () => -ahead;

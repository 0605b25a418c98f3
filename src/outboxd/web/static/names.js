// What those who hand in events are called: the agent looks the names up.

let names = {};

/** Notes what the agent found. */
export function noteNames(found) {
  names = { ...names, ...found };
}

/** A producer in few words: the user's name or the token's. */
export function producerName(producer) {
  const [kind, rest] = [producer.split(':', 1)[0], producer.slice(producer.indexOf(':') + 1)];
  if (producer === 'agent') return 'the agent itself';
  const name = names[producer];
  if (kind === 'token') return rest;
  return name && name !== producer ? name : `uid ${rest}`;
}

/** The same with what it is. */
export function producerTitle(producer) {
  if (producer.startsWith('token:')) return `token ${producer.slice(6)}`;
  if (producer.startsWith('uid:')) return `user ${producerName(producer)} (${producer})`;
  return producerName(producer);
}

// The same flags by the algorithm that dezky's buckets come from, as it ran on Node.
// Reads {flags, context, rounds} from the standard input; prints which flags are on, and
// nanoseconds a flag of the best round.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

const { flags, context, rounds } = JSON.parse(readFileSync(0, 'utf8'));

function bucket(tenantId, key) {
  const digest = createHash('sha256').update(`${tenantId}:${key}`).digest('hex');
  return Number(BigInt(`0x${digest}`) % 100n);
}

const axes = [
  ['plans', 'plan'],
  ['tenantSlugs', 'tenantSlug'],
  ['partnerSlugs', 'partnerSlug'],
  ['environments', 'environment'],
];

function matchesScope(scope) {
  return axes.every(([axis, name]) => scope[axis].length === 0 || scope[axis].includes(context[name]));
}

function decide(flag) {
  switch (flag.state) {
    case 'on':
      return true;
    case 'targeted':
      return axes.some(([axis]) => flag.scope[axis].length > 0) && matchesScope(flag.scope);
    case 'rollout':
      return matchesScope(flag.scope) && bucket(context.tenantId, flag.key) < flag.pct;
    default:
      return false;
  }
}

let best = Infinity;
let values;
for (let round = 0; round < rounds; round += 1) {
  const start = process.hrtime.bigint();
  values = flags.map(decide);
  best = Math.min(best, Number(process.hrtime.bigint() - start) / flags.length);
}
console.log(JSON.stringify({ values, nanoseconds: best }));

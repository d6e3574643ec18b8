import { Queue } from 'bullmq';
import { Redis } from 'ioredis';

import { produce } from './produce.mjs';

const BATCH = 500;
const queue = new Queue('bench', { connection: new Redis(process.env.BENCH_SERVER, { maxRetriesPerRequest: null }) });
await queue.waitUntilReady();

const job = ({ dueAt, url, body }) => {
  const timestamp = Date.now();
  const delay = Math.max(0, dueAt - timestamp);
  return { name: 'deliver', data: { url, body }, opts: { timestamp, delay, attempts: 5, removeOnComplete: true } };
};

await produce(async (works) => {
  for (let start = 0; start < works.length; start += BATCH) await queue.addBulk(works.slice(start, start + BATCH).map(job));
});

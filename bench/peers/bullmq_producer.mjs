import { Queue } from 'bullmq';
import { Redis } from 'ioredis';

import { produce } from './produce.mjs';

const BATCH = 500;
const connection = new Redis(process.env.BENCH_SERVER, { maxRetriesPerRequest: null });
const queue = new Queue('bench', { connection });
await queue.waitUntilReady();
// A worker waits for the next delayed job in a blocking command, and Redis looks for those that have waited enough `hz` times a second.
await connection.config('SET', 'hz', '100');

const job = ({ dueAt, url, body }) => {
  const timestamp = Date.now();
  const delay = Math.max(0, dueAt - timestamp);
  return { name: 'deliver', data: { url, body }, opts: { timestamp, delay, attempts: 5, removeOnComplete: true } };
};

await produce(async (works) => {
  for (let start = 0; start < works.length; start += BATCH) await queue.addBulk(works.slice(start, start + BATCH).map(job));
});

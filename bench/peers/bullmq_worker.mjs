import { Worker } from 'bullmq';
import { Redis } from 'ioredis';

import { poster } from './post.mjs';
import { sayReady } from './ready.mjs';

const concurrency = Number(process.env.BENCH_CONCURRENCY);
const post = poster(concurrency);
const worker = new Worker('bench', ({ data }) => post(data.url, data.body), {
  connection: new Redis(process.env.BENCH_SERVER, { maxRetriesPerRequest: null }),
  concurrency,
  lockDuration: 30_000,
  stalledInterval: 15_000,
});
worker.on('error', console.error);
worker.on('failed', (_, error) => console.error(error));
await worker.waitUntilReady();
sayReady();

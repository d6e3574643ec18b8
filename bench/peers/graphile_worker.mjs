import { Logger, run } from 'graphile-worker';
import { EventEmitter } from 'node:events';

import { poster } from './post.mjs';
import { sayReady } from './ready.mjs';

const { BENCH_SERVER, BENCH_CONCURRENCY, BENCH_LOCAL_QUEUE, BENCH_POLL_MS } = process.env;
const concurrentJobs = Number(BENCH_CONCURRENCY);
const post = poster(concurrentJobs);
const events = new EventEmitter();
events.once('pool:listen:success', sayReady);
const quiet = new Logger(() => (level, message) => level === 'error' && console.error(message));

const runner = await run({
  preset: {
    worker: {
      connectionString: BENCH_SERVER,
      concurrentJobs,
      maxPoolSize: 10,
      pollInterval: Number(BENCH_POLL_MS),
      logger: quiet,
      events,
      localQueue: { size: Number(BENCH_LOCAL_QUEUE), refetchDelay: { durationMs: Number(BENCH_POLL_MS) / 2 } },
      completeJobBatchDelay: 10,
      failJobBatchDelay: 10,
    },
  },
  taskList: { deliver: ({ url, body }) => post(url, body) },
});
await runner.promise;

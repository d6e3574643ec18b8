// How a worker says that it takes work: see ready.py.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const sayReady = () => writeFileSync(join(process.env.BENCH_READY, String(process.pid)), '');

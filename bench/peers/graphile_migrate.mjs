import { runMigrations } from 'graphile-worker';

await runMigrations({ connectionString: process.env.BENCH_SERVER });
process.exit(0);

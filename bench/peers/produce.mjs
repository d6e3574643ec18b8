// A producer: reads lists of works as lines of JSON, and hands each over. See peer.Producer.
import { createInterface } from 'node:readline';

export async function produce(enqueue) {
  console.log('ok');
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    await enqueue(JSON.parse(line).map(([number, dueAt, url, body]) => ({ number, dueAt, url, body })));
    console.log('ok');
  }
  process.exit(0);
}

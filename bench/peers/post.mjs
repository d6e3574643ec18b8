// How the node peers send: undici, with connections kept alive. Resolves once the answer has been read; rejects unless it is 2xx.
import { Agent, request } from 'undici';

const headers = { 'content-type': 'application/json' };

export function poster(connections) {
  const dispatcher = new Agent({ connections, pipelining: 1, keepAliveTimeout: 30_000 });
  return async (url, body) => {
    const answer = await request(url, { method: 'POST', headers, body, dispatcher });
    await answer.body.dump();
    if (answer.statusCode >= 300) throw new Error(`HTTP ${answer.statusCode}`);
  };
}

// Requests by many callers, with the lines of FILE as their header NAME: k6 run --vus 64 --duration 10s
// -e TARGET=http://127.0.0.1:8080 -e FILE=keys -e NAME=x-api-key credentials.js
// With ONCE each line is sent once, and then nothing more.
import { sleep } from 'k6';
import { SharedArray } from 'k6/data';
import exec from 'k6/execution';
import http from 'k6/http';

export { handleSummary, options } from './report.js';

const lines = new SharedArray('credentials', () => open(__ENV.FILE).trim().split('\n'));

export default function () {
  const turn = exec.scenario.iterationInTest;
  if (__ENV.ONCE && turn >= lines.length) {
    sleep(1);
    return;
  }
  http.get(__ENV.TARGET, { headers: { [__ENV.NAME]: lines[(turn * 7919) % lines.length] } });
}

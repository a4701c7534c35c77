// Every request from another client, as a proxy in front would tell: k6 run --vus 64 --duration 10s
// -e TARGET=http://127.0.0.1:8080 -e START=0 addresses.js
import exec from 'k6/execution';
import http from 'k6/http';

export { handleSummary, options } from './report.js';

const start = Number(__ENV.START || 0);

export default function () {
  const address = start + exec.scenario.iterationInTest;
  const bytes = [11, (address >> 16) & 255, (address >> 8) & 255, address & 255];
  http.get(__ENV.TARGET, { headers: { 'X-Forwarded-For': bytes.join('.') } });
}

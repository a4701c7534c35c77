// The same body again and again: k6 run --vus 64 --duration 10s -e TARGET=http://127.0.0.1:8080/v1/chat/completions
// -e BODY=file -e HEADERS=file post.js; a header is a line `Name: value`.
import http from 'k6/http';

export { handleSummary, options } from './report.js';

const body = open(__ENV.BODY);
const lines = open(__ENV.HEADERS).trim().split('\n').map((line) => line.split(/: (.*)/));
const headers = Object.fromEntries(lines);

export default function () {
  http.post(__ENV.TARGET, body, { headers });
}

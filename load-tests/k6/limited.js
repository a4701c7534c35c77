// Counts what a limit admits; what it refuses with a 429 is no error: k6 run --vus 64 --duration 10s
// -e TARGET=http://127.0.0.1:8080/limited limited.js
import http from 'k6/http';
import { Counter } from 'k6/metrics';

export { handleSummary, options } from './report.js';

const admitted = new Counter('admitted');
http.setResponseCallback(http.expectedStatuses(200, 429));

export default function () {
  if (http.get(__ENV.TARGET).status === 200) {
    admitted.add(1);
  }
}

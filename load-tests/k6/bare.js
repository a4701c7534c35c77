// One route, the same request again and again: k6 run --vus 64 --duration 10s -e TARGET=http://127.0.0.1:8080/ bare.js
import http from 'k6/http';

export { handleSummary, options } from './report.js';

export default function () {
  http.get(__ENV.TARGET);
}

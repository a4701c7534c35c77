// Requests spread over N routes: k6 run --vus 64 --duration 10s -e TARGET=http://127.0.0.1:8080 -e ROUTES=1000 routes.js
import http from 'k6/http';

export { handleSummary, options } from './report.js';

const routes = Number(__ENV.ROUTES || 1000);

export default function () {
  // One name for all, else k6 keeps a time series for each address.
  const turn = (__VU * 7919 + __ITER * 104729) % routes;
  http.get(`${__ENV.TARGET}/service/${turn}/items/42`, { tags: { name: 'service' } });
}

// Prints what a run measured as one line of JSON, which scripts/bench reads.
export function handleSummary(data) {
  const value = (metric, name) => (data.metrics[metric] ? data.metrics[metric].values[name] : 0);
  const measured = {
    requests: value('http_reqs', 'count'),
    seconds: data.state.testRunDurationMs / 1000,
    p50_ms: value('http_req_duration', 'p(50)'),
    p99_ms: value('http_req_duration', 'p(99)'),
    max_ms: value('http_req_duration', 'max'),
    admitted: value('admitted', 'count'),
    errors: { failed: value('http_req_failed', 'passes') },
  };
  return { stdout: `bench ${JSON.stringify(measured)}\n` };
}

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['p(50)', 'p(99)', 'max'],
};

-- Prints what a run measured as one line of JSON, which scripts/bench reads.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'bench {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"max_ms":%f,"admitted":%d,' ..
      '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      latency.max / 1e3, summary.admitted or 0,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end

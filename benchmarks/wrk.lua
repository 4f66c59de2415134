-- One small chat for wrk to repeat, and its results as the last line of output.
-- The key is read from a file: an argument would show in the list of processes.

local key = assert(io.open("key")):read()

wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. key
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"llama3.1","stream":false,'
  .. '"messages":[{"role":"system","content":"You are a helpful assistant."},'
  .. '{"role":"user","content":"Hello, how are you?"}]}'

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
  io.write(string.format(
    '{"requests":%d,"failed":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, failed, summary.duration,
    latency:percentile(50), latency:percentile(99)
  ))
end

-- One request for wrk to repeat. The folder it runs in has the files `body` and `keys`:
-- an argument would show the key in the list of processes. Where `keys` has more lines
-- than one, each request takes the next, from the line `wrk … -- LINE` on.

local function content(name)
  local file = assert(io.open(name))
  local text = file:read("*a")
  file:close()
  return text
end

local keys = assert(io.open("keys"))
local first = keys:read()

wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. first
wrk.headers["Content-Type"] = "application/json"
wrk.body = content("body")

if keys:read(0) then
  local before, after

  function init(arguments)
    keys:seek("set", tonumber(arguments[1]) * (#first + 1))
    local whole = wrk.format()
    local at = whole:find(first, 1, true)
    before, after = whole:sub(1, at - 1), whole:sub(at + #first)
  end

  function request()
    return before .. assert(keys:read(), "no more keys") .. after
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
  io.write(string.format(
    '{"requests":%d,"failed":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, failed, summary.duration,
    latency:percentile(50), latency:percentile(99)
  ))
end

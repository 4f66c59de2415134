-- Keys that nobody has issued, for wrk to ask with: those of the file `unknown`, one
-- after the other, each from the next address, which a gateway in front would tell.
-- `wrk … -- ADDRESSES PAUSE_MS`: so long a connection rests between two requests.

local keys = {}
for key in io.lines("unknown") do
  keys[#keys + 1] = key
end

local addresses, pause_ms
local sent = 0
local threads = {}
statuses = {} -- global: done() asks each thread for its own

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"llama3.1","messages":[{"role":"user","content":"Hello, hello?"}]}'

function setup(thread)
  threads[#threads + 1] = thread
end

function init(arguments)
  addresses, pause_ms = tonumber(arguments[1]), tonumber(arguments[2])
end

function delay()
  return pause_ms
end

function request()
  local source = sent % addresses
  wrk.headers["X-Forwarded-For"] = "198.18." .. math.floor(source / 256) .. "." .. source % 256
  wrk.headers["Authorization"] = "Bearer " .. keys[sent % #keys + 1]
  sent = sent + 1
  return wrk.format()
end

function response(status)
  statuses[status] = (statuses[status] or 0) + 1
end

function done(summary)
  local counts = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      counts[#counts + 1] = string.format('"%d":%d', status, count)
    end
  end
  io.write(string.format(
    '{"duration_us":%d,"statuses":{%s}}\n', summary.duration, table.concat(counts, ",")
  ))
end

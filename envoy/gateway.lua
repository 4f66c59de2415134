-- What only the data path can see: the request id and the query on the way in,
-- the model server's errors on the way out. No policy: authz decides.
-- Rule: whatever fails in here, no byte that may be an error of the model
-- server leaves.

local BODY = '{"error":{"code":"%s","message":"%s","request_id":"%s"}}\n'

-- What the client is told instead of the model server's status and words.
local FAILED = { status = "502", code = "upstream_error", message = "The model server failed." }
local REPLIES = {
  ["400"] = { status = "400", code = "invalid_request", message = "The request is not valid." },
  ["404"] = { status = "404", code = "model_not_found", message = "The model is not available." },
  ["503"] = { status = "503", code = "unavailable", message = "The service is temporarily unavailable.", retry_after = "1" },
}

-- Clients act on two kinds of 400, so these are told apart, in our words.
local NO_FEATURE = "The model does not support %s."
local TOO_LONG = "The input exceeds the model's context length."
local FEATURES = {
  tools = "tools", thinking = "thinking",
  image = "images", images = "images", vision = "images",
  embedding = "embeddings", embeddings = "embeddings",
  generate = "generation", generation = "generation", completion = "generation", chat = "generation",
}

-- How an error line begins in a stream (the longer mark last), and what stands
-- in its place.
local ERROR_LINE = '{"error":"The model server failed."}'
local STREAMS = {
  ["application/x-ndjson"] = { marks = { '{"error":', '{"StatusCode":' }, replacement = ERROR_LINE },
  ["text/event-stream"] = { marks = { 'data: {"error":', 'data: {"StatusCode":' }, replacement = "data: " .. ERROR_LINE },
}

-- Request ----------------------------------------------------------------

function envoy_on_request(handle)
  local headers = handle:headers()
  local metadata = handle:streamInfo():dynamicMetadata()
  -- Only an id that needs no escaping anywhere; without, the connection's is used.
  local id = headers:get("x-request-id")
  if id and #id <= 128 and id:find("^[%w._-]+$") then
    metadata:set("gateway", "request_id", id)
  else
    headers:remove("x-request-id")
  end
  if headers:get(":method") == "HEAD" then
    metadata:set("gateway", "head", true)
  end
  local path = headers:get(":path")
  local query = path and path:find("?", 1, true)
  if query then
    headers:replace(":path", path:sub(1, query - 1))
  end
end

-- Whether the response must stay without a body.
local function to_head(handle)
  local request = handle:streamInfo():dynamicMetadata():get("gateway")
  return request and request.head
end

-- Upstream errors --------------------------------------------------------

-- code, message for a 400 of the model server that said `text`. It may repeat what
-- a client wrote, so no pattern here takes more than linear time.
local function explain(text)
  text = text:sub(1, 4096):lower()
  local feature = FEATURES[text:match("does not support (%a+)")]
  if feature then
    return "feature_not_supported", NO_FEATURE:format(feature)
  end
  local _, exceeds = text:find("exceeds", 1, true)
  if exceeds and text:find("context", exceeds, true) or text:find("longer than the context", 1, true) then
    return "context_too_long", TOO_LONG
  end
  return REPLIES["400"].code, REPLIES["400"].message
end

-- What may stay of a response's headers; both ids are ours, the route sets them.
local OF_AN_ANSWER = {
  [":status"] = true, ["x-request-id"] = true, ["request-id"] = true, ["date"] = true,
  ["content-type"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
}
local OF_AN_ERROR = { [":status"] = true, ["x-request-id"] = true }

local function keep_only(headers, kept)
  local others = {}
  for name in pairs(headers) do
    if not kept[name] then
      others[#others + 1] = name
    end
  end
  for _, name in ipairs(others) do
    headers:remove(name)
  end
end

-- Returns the request id.
local function replace_headers(headers, reply)
  keep_only(headers, OF_AN_ERROR)
  local id = headers:get("x-request-id")
  headers:replace(":status", reply.status)
  headers:replace("content-type", "application/json")
  headers:replace("request-id", id)
  if reply.status:sub(1, 1) == "4" then
    headers:replace("x-should-retry", "false")
  end
  if reply.retry_after then
    headers:replace("retry-after", reply.retry_after)
  end
  return id
end

-- Our body goes out with the first piece of theirs: theirs may take long to end.
local function replace_body(handle, body)
  for chunk in handle:bodyChunks() do
    chunk:setBytes(body)
    body = ""
  end
end

-- Returns our body, and whether the answer to this request may have one.
local function replace_head(handle, reply)
  local headers = handle:headers()
  local body = BODY:format(reply.code, reply.message, replace_headers(headers, reply))
  headers:replace("content-length", tostring(#body))
  return body, not to_head(handle)
end

local function replace_error(handle, status)
  local bodiless = handle:headers():get("content-length") == "0" or status:find("^[123]")
  handle:streamInfo():dynamicMetadata():set("gateway", "upstream_status", status)
  local reply = REPLIES[status] or FAILED
  local body, wanted = replace_head(handle, reply)
  if wanted and status == "400" then
    local id = handle:headers():get("x-request-id")
    local theirs = handle:body(true) -- after it, headers cannot be changed any more
    local code, message = explain(theirs:getBytes(0, theirs:length()))
    theirs:setBytes(BODY:format(code, message, id))
  elseif wanted and bodiless then
    handle:body(true):setBytes(body)
  elseif wanted then
    replace_body(handle, body)
  end
end

-- Where the above has failed, whatever it had done.
local function replace_whole(handle)
  local body, wanted = replace_head(handle, FAILED)
  if wanted then
    handle:body(true):setBytes(body)
  end
end

-- Streams ----------------------------------------------------------------

-- Where the first error line begins in `text`: at the newline before it.
local function find_error(stream, text)
  local first = text:find("\n" .. stream.marks[1], 1, true)
  local second = text:find("\n" .. stream.marks[2], 1, true)
  return first and second and math.min(first, second) or first or second
end

-- The unfinished last line if it may still become an error line ("" if nothing
-- of it is there yet); nil in the middle of a harmless line.
local function undecided(stream, text)
  local line = text:sub(-#stream.marks[2]):match("\n([^\n]*)$")
  for _, mark in ipairs(stream.marks) do
    if line and mark:sub(1, #line) == line then
      return line
    end
  end
end

-- Puts into `out` what is harmless, and the replacement of the first error line.
-- Returns what follows the beginning of that line, or nil if there is none.
local function pass(stream, text, out)
  local from = 1
  if stream.held then
    text, from = "\n" .. stream.held .. text, 2 -- this newline is not to be sent
  end
  local start = find_error(stream, text)
  if start then
    out[#out + 1] = text:sub(from, start) .. stream.replacement
    stream.held, stream.skipping = nil, true
    return text:sub(start + 1)
  end
  stream.held = undecided(stream, text)
  out[#out + 1] = text:sub(from, -1 - #(stream.held or ""))
end

-- Drops the rest of an error line. Returns what follows it, or nil if it goes on.
local function skip(stream, text, out)
  local newline = text:find("\n", 1, true)
  if newline then
    out[#out + 1] = "\n"
    stream.held, stream.skipping = "", false
    return text:sub(newline + 1)
  end
end

-- Replaces the error lines of one chunk; returns the text that is sent for it.
local function scrub(stream, chunk)
  local text = chunk:getBytes(0, chunk:length())
  local rest, out = text, {}
  repeat
    rest = (stream.skipping and skip or pass)(stream, rest, out)
  until not rest
  local clean = table.concat(out)
  if clean ~= text then
    chunk:setBytes(clean)
  end
  return clean
end

-- Never buffers: a chunk is sent as it comes, but for a line's first few bytes.
local function scrub_stream(handle, form)
  local stream = setmetatable({ held = "", skipping = false }, { __index = form })
  local last, sent
  for chunk in handle:bodyChunks() do
    local ok, clean = pcall(scrub, stream, chunk)
    if not ok then -- after one failure nothing is sent any more
      if stream then
        handle:logErr(clean)
      end
      stream, clean = nil, ""
      chunk:setBytes("")
    end
    last, sent = chunk, clean
  end
  -- The last chunk is still ours: it is sent when this function returns.
  if stream and last and stream.held then
    last:setBytes(sent .. stream.held)
  end
end

-- gRPC -------------------------------------------------------------------

-- The status of each code of the error table that is no 500.
local STATUSES = {
  invalid_request = "400", feature_not_supported = "400", context_too_long = "400",
  unauthorized = "401",
  endpoint_not_allowed = "403", model_not_allowed = "403", parameter_not_allowed = "403",
  not_found = "404", model_not_found = "404",
  method_not_allowed = "405", request_timeout = "408", payload_too_large = "413",
  unsupported_encoding = "415", upgrade_required = "426", headers_too_large = "431",
  rate_limited = "429", budget_exceeded = "429",
  upstream_error = "502", unavailable = "503", upstream_timeout = "504",
}

-- Envoy answers a request with a gRPC content type by 200 and our body in a
-- header; this turns it back into what everybody else gets. In answer to a HEAD
-- there is no such header and nothing tells the status: 400.
local function restore(handle, headers)
  local message = headers:get("grpc-message")
  local body = (message or ""):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
  local code = body:match('^{"error":{"code":"([%l_]+)"')
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:replace("content-type", "application/json")
  if code or not message then
    headers:replace(":status", STATUSES[code or "invalid_request"] or "500")
  end
  if message then
    handle:body(true):setBytes(body)
  end
end

-- Response ---------------------------------------------------------------

-- How to watch a response of this type; any of the types that it gives counts.
local function stream_form(content_type)
  for name in (content_type or ""):lower():gmatch("[%w.+-]+/[%w.+-]+") do
    if STREAMS[name] then
      return STREAMS[name]
    end
  end
end

local function respond(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if not headers:get("x-envoy-upstream-service-time") then
    -- Not from the model server: Envoy's or authz's, and ours already.
    if headers:get("grpc-status") then
      restore(handle, headers)
    end
  elseif not status:find("^2%d%d$") or headers:get("content-encoding") then
    -- What is encoded we cannot read, and did not ask for.
    replace_error(handle, status)
  else
    local form = stream_form(headers:get("content-type"))
    keep_only(headers, OF_AN_ANSWER)
    if form then
      headers:remove("content-length")
      scrub_stream(handle, form)
    end
  end
end

-- An error in a script lets the response through as it is, so there is none; what
-- still has the header that marks the model server's responses is held back by the
-- filter outside this one.
function envoy_on_response(handle)
  local ok, problem = pcall(respond, handle)
  if ok then
    return
  end
  handle:logErr(problem)
  if not pcall(replace_whole, handle) then
    handle:body(true):setBytes("")
  end
end

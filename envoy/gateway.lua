-- What only the data path can see: the request id and the query on the way in,
-- the model server's errors and its counts of tokens on the way out. No policy:
-- authz decides.
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

-- How a line with a document begins in a stream, how an error line (the longer mark
-- last), and what stands in its place.
local DOCUMENT = "{"
local ERROR_LINE = '{"error":"The model server failed."}'
local STREAMS = {
  ["application/x-ndjson"] = {
    begins = DOCUMENT, marks = { '{"error":', '{"StatusCode":' }, replacement = ERROR_LINE,
  },
  ["text/event-stream"] = {
    begins = "data: " .. DOCUMENT, marks = { 'data: {"error":', 'data: {"StatusCode":' },
    replacement = "data: " .. ERROR_LINE,
  },
}

-- Request ----------------------------------------------------------------

local renamed = 0

-- An id like no other: a connection stays with one thread, which counts for itself.
local function new_id(handle)
  renamed = renamed + 1
  return handle:streamInfo():filterState():get("connection.id") .. "-" .. renamed
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local metadata = handle:streamInfo():dynamicMetadata()
  -- Only an id that needs no escaping anywhere.
  local id = headers:get("x-request-id")
  if not (id and #id <= 128 and id:find("^[%w._-]+$")) then
    headers:remove("x-request-id")
    id = new_id(handle)
    headers:replace("x-request-id", id)
  end
  metadata:set("gateway", "request_id", id)
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

-- The headers by which authz tells what is left of a key's limits.
local function show_limits(handle, headers)
  local verdict = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.ext_authz")
  for name, value in pairs(verdict and verdict.limited or {}) do
    if name:find("^x%-ratelimit%-") then
      headers:replace(name, value)
    end
  end
end

local function replace_error(handle, status)
  local bodiless = handle:headers():get("content-length") == "0" or status:find("^[123]")
  handle:streamInfo():dynamicMetadata():set("gateway", "upstream_status", status)
  local reply = REPLIES[status] or FAILED
  local body, wanted = replace_head(handle, reply)
  show_limits(handle, handle:headers())
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

-- Metering ---------------------------------------------------------------

-- The members of a JSON document that tell what it cost, found by their path
-- alone: what a model or a client wrote stands in strings, or deeper.
local COUNTS = {
  prompt_tokens = "input", input_tokens = "input",
  completion_tokens = "output", output_tokens = "output",
}
local MEMBERS = {
  prompt_eval_count = "input", eval_count = "output",
  usage = COUNTS, response = { usage = COUNTS },
  done = "done", type = "type", embeddings = "embeddings",
}

local LAST_LINE = "data: [DONE]"
local LAST_EVENTS = {
  ['"response.completed'] = true, ['"response.incomplete'] = true, ['"message_stop'] = true,
}
local LONGEST_TOKEN = 64
local MOST_TOKENS = 2 ^ 31
local BACKSLASH = ("\\"):byte()

-- `begins` is how a line with a document begins. Whatever comes, it keeps no more
-- than a few tokens.
local function new_meter(begins)
  return {
    begins = begins, line = "", level = 0, parents = {}, -- where it is
    frames = 0, told = {},
  }
end

-- What a member says; one that is left out is zero. nil if it cannot be a count.
local function count(token)
  local number = (token or "0"):find("^%d+$") and tonumber(token or "0")
  return number and number <= MOST_TOKENS and number or nil
end

-- A document is complete.
local function conclude(meter)
  local frame = meter.frame
  local done = frame.done == "true"
  local input, output = count(frame.input), count(frame.output)
  if input and output and (frame.input or frame.output or done or frame.embeddings) then
    meter.input, meter.output = input, output
  end
  meter.frames = meter.frames + 1
  meter.ended = meter.ended or done or LAST_EVENTS[frame.type]
  meter.line = "}" -- what follows on the line is nothing
end

-- Where `sign` stands next. Each is looked for once in a piece of text, so that the
-- time is linear.
local function ahead(meter, text, sign, at)
  local found = meter.found[sign]
  if not found or found < at then
    found = text:find(sign, at, true) or math.huge
    meter.found[sign] = found
  end
  return found
end

-- Adds to the token, if there is one; what is too long for a token is one of nobody.
local function keep(meter, text, from, to)
  if meter.token and #meter.token <= LONGEST_TOKEN then
    meter.token = meter.token .. text:sub(from, math.min(to, from + LONGEST_TOKEN))
  end
end

-- The following read a piece of text from `at` on, and return where they stopped.

-- Between two documents: as much of a line as shows what it is.
local function read_line(meter, text, at)
  local newline, known = ahead(meter, text, "\n", at), #meter.line
  local line = meter.line .. text:sub(at, math.min(newline - 1, at + #LAST_LINE - known - 1))
  if line:sub(1, #meter.begins) == meter.begins then
    meter.node, meter.frame, meter.value, meter.token = MEMBERS, {}, false, nil
    return at + #meter.begins - known
  end
  meter.ended = meter.ended or line == LAST_LINE
  meter.line = newline <= #text and "" or line
  return newline + 1
end

-- A quote that an odd number of backslashes stands before is not the end.
local function read_string(meter, text, at)
  local start = meter.escaped and at + 1 or at
  local from, quote, escaped = start, nil, nil
  repeat
    quote = text:find('"', from, true)
    local last = (quote or #text + 1) - 1
    local before = last
    while before >= start and text:byte(before) == BACKSLASH do
      before = before - 1
    end
    escaped = (last - before) % 2 == 1
    from = last + 2
  until not (quote and escaped)
  meter.quoted, meter.escaped = not quote, escaped
  keep(meter, text, at, from - 2)
  return from
end

-- An object or array of no interest; in the numbers of an embedding nothing is
-- looked at one by one.
local function read_past(meter, text, at)
  while meter.level > 0 do
    local opens, closes = ahead(meter, text, meter.opening, at), ahead(meter, text, meter.closing, at)
    local quote = ahead(meter, text, '"', at)
    local first = math.min(opens, closes, quote)
    at = first + 1
    if first == math.huge then
      return at
    elseif first == quote then
      meter.quoted = true
      return at
    end
    meter.level = meter.level + (first == opens and 1 or -1)
  end
  return at
end

-- The member that has ended; of equal ones the last counts.
local function settle(meter)
  if meter.value and meter.token and meter.token ~= "null" then
    meter.frame[meter.member] = meter.token
  end
  meter.value, meter.member, meter.token = false, nil, nil
end

-- In an object that has members of interest.
local function read_member(meter, text, at)
  local sign = text:sub(at, at)
  if sign == '"' then
    meter.quoted = true
    if meter.value then
      keep(meter, text, at, at)
    else
      meter.token = ""
    end
  elseif sign == ":" then
    meter.value, meter.member = true, meter.node[meter.token]
    meter.token = type(meter.member) == "string" and "" or nil
  elseif sign == "," then
    settle(meter)
  elseif sign == "}" then
    settle(meter)
    meter.node = table.remove(meter.parents)
    if not meter.node then
      conclude(meter)
    end
  elseif sign == "{" and type(meter.member) == "table" then
    meter.parents[#meter.parents + 1] = meter.node
    meter.node, meter.value, meter.member = meter.member, false, nil
  elseif sign == "{" or sign == "[" then
    keep(meter, text, at, at)
    meter.opening, meter.closing, meter.level = sign, sign == "{" and "}" or "]", 1
  else
    local _, last = text:find("^[%w.+-]+", at)
    if last then
      keep(meter, text, at, last)
      return last + 1
    end
  end
  return at + 1
end

local function read(meter, text)
  local at = 1
  meter.found = {}
  while at <= #text do
    local reader = meter.quoted and read_string or meter.level > 0 and read_past
    reader = reader or meter.node and read_member or read_line
    at = reader(meter, text, at)
  end
end

-- For the access log. What is known is told with every piece: when a client leaves,
-- nothing is called any more.
local function tell(handle, meter, name, value)
  if value and meter.told[name] ~= value then
    handle:streamInfo():dynamicMetadata():set("authz.usage", name, value)
    meter.told[name] = value
  end
end

local function tell_usage(handle, meter)
  tell(handle, meter, "ended", meter.ended)
  -- Some streams have zeros in every frame but the last.
  if meter.input and (meter.ended or meter.input + meter.output > 0) then
    tell(handle, meter, "input_tokens", meter.input)
    tell(handle, meter, "output_tokens", meter.output)
  end
end

-- Documents --------------------------------------------------------------

-- Changes and holds nothing; after a failure the rest passes unread.
local function meter_document(handle)
  local meter = new_meter(DOCUMENT)
  for chunk in handle:bodyChunks() do
    read(meter, chunk:getBytes(0, chunk:length()))
    meter.ended = meter.frames > 0
    tell_usage(handle, meter)
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
    stream.held, stream.skipping, stream.replaced = nil, true, stream.replaced + 1
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

local function measure(handle, meter, stream, clean)
  read(meter, clean)
  tell(handle, meter, "chunks", meter.frames - stream.replaced)
  tell(handle, meter, "failed", stream.replaced > 0)
  tell_usage(handle, meter)
end

-- Never buffers: a chunk is sent as it comes, but for a line's first few bytes.
local function scrub_stream(handle, form)
  local stream = setmetatable({ held = "", skipping = false, replaced = 0 }, { __index = form })
  local meter = new_meter(form.begins)
  local last, sent
  for chunk in handle:bodyChunks() do
    local ok, clean = pcall(scrub, stream, chunk)
    if not ok then -- after one failure nothing is sent any more
      if stream then
        handle:logErr(clean)
      end
      stream, meter, clean = nil, nil, ""
      chunk:setBytes("")
    end
    if meter then
      local measured, problem = pcall(measure, handle, meter, stream, clean)
      if not measured then -- the stream goes on, and nobody counts
        meter = nil
        handle:logErr(problem)
      end
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
-- Returns the form of a stream, and whether it may be a document.
local function watched_as(content_type)
  local document = false
  for name in (content_type or ""):lower():gmatch("[%w.+-]+/[%w.+-]+") do
    if STREAMS[name] then
      return STREAMS[name]
    end
    document = document or name == "application/json"
  end
  return nil, document
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
    local form, document = watched_as(headers:get("content-type"))
    keep_only(headers, OF_AN_ANSWER)
    show_limits(handle, headers)
    if form then
      headers:remove("content-length")
      scrub_stream(handle, form)
    elseif document then
      local ok, problem = pcall(meter_document, handle)
      if not ok then
        handle:logErr(problem)
      end
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

-- The rules of core/limits.py for replicas that share Redis, whose clock counts.
-- One key's counters stand in one slot of a Cluster:
--   KEYS[1]  hash: SECOND requests:tokens; and "sums" of all these, so that they are not
--            read each time: OLDEST:REQUESTS:NEWEST_WITH_ANY:TOKENS:NEWEST_WITH_ANY
--   KEYS[2]  hash: BEGIN what was spent of a budget
--   KEYS[3]  sorted set: who holds a slot, until when
--   KEYS[4]  what a request holds: SECOND:TOKENS:BEGIN:OF_BUDGET:SLOT
-- A field that is left out of a text stands for a limit that the key has not.

local WINDOW_S, LEASE_S, KEPT_S = 60, 60, 3600
-- If more seconds than these are over since the last time, all is read: there is less.
local MOST_STEPS = 8

local time = redis.call('TIME')
local this, second = time[1], tonumber(time[1])
local now = second + tonumber(time[2]) / 1000000
local oldest = second - WINDOW_S -- of those that count
local counters, budgets, running, reservation = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- What was used in a second.
local function parse(text)
  local requests, tokens = (text or '0:0'):match('^(%d+):(-?%d+)$')
  return { requests = tonumber(requests), tokens = tonumber(tokens) }
end

-- Adds what was used in a second to what counts in a minute.
local function count(minute, of, used)
  for kind, amount in pairs(used) do
    local window = minute[kind]
    window.total = window.total + amount
    if amount ~= 0 then
      window.newest = math.max(window.newest, of)
    end
  end
end

-- Sums of all seconds that count; the others are dropped.
local function recount()
  local minute = { requests = { total = 0, newest = 0 }, tokens = { total = 0, newest = 0 } }
  local fields, over = redis.call('HGETALL', counters), {}
  for i = 1, #fields, 2 do
    local of = tonumber(fields[i])
    if of and of < oldest then
      over[#over + 1] = fields[i]
    elseif of then
      count(minute, of, parse(fields[i + 1]))
    end
  end
  if #over > 0 then
    redis.call('HDEL', counters, unpack(over))
  end
  return minute
end

-- The sums that were written last, without what is over since; that is dropped.
local function advance(sums)
  local since, requests, with_requests, tokens, with_tokens =
    (sums or ''):match('^(%d+):(%d+):(%d+):(-?%d+):(%d+)$')
  since = tonumber(since)
  if not since or since < oldest - MOST_STEPS then
    return nil
  end
  local minute = {
    requests = { total = tonumber(requests), newest = tonumber(with_requests) },
    tokens = { total = tonumber(tokens), newest = tonumber(with_tokens) },
    is_written = since == oldest,
  }
  for of = since, oldest - 1 do
    local over = redis.call('HGET', counters, of)
    if over then
      local used = parse(over)
      minute.requests.total = minute.requests.total - used.requests
      minute.tokens.total = minute.tokens.total - used.tokens
      redis.call('HDEL', counters, of)
    end
  end
  return minute
end

-- What counts in the last minute, of each kind the newest second with any, and what was
-- used in this second and in another one; and whether that one still counts.
local function read(other)
  local found = redis.call('HMGET', counters, 'sums', this, other or this)
  local minute = advance(found[1]) or recount()
  minute.seconds = { [this] = parse(found[2]) }
  local counts = other and found[3] and tonumber(other) >= oldest
  if counts then
    minute.seconds[other] = parse(found[3])
  end
  return minute, counts
end

local function add(minute, kind, of, amount)
  local window, used = minute[kind], minute.seconds[of]
  window.total, used[kind] = window.total + amount, used[kind] + amount
  if used[kind] ~= 0 then
    window.newest = math.max(window.newest, tonumber(of))
  elseif window.newest == tonumber(of) then
    minute.has_no_newest = true -- the next one finds it by a recount
  end
  minute.is_written = false
end

local function write(minute)
  if minute.is_written then
    return
  end
  local requests, tokens = minute.requests, minute.tokens
  local sums = ('%d:%d:%d:%d:%d'):format(
    oldest, requests.total, requests.newest, tokens.total, tokens.newest)
  local fields = { 'sums', minute.has_no_newest and '' or sums }
  for of, used in pairs(minute.seconds) do
    fields[#fields + 1] = of
    fields[#fields + 1] = ('%d:%d'):format(used.requests, used.tokens)
  end
  redis.call('HSET', counters, unpack(fields))
  redis.call('EXPIRE', counters, WINDOW_S * 2)
end

local function free_at(minute, kind, limit)
  local seconds = {}
  for _, field in ipairs(redis.call('HKEYS', counters)) do
    seconds[#seconds + 1] = tonumber(field)
  end
  table.sort(seconds)
  local total, last = minute[kind].total, second
  for _, of in ipairs(seconds) do
    total, last = total - parse(redis.call('HGET', counters, of))[kind], of
    if total < limit then
      break
    end
  end
  return last + WINDOW_S + 1
end

local function read_spent()
  local spent, fields = {}, redis.call('HGETALL', budgets)
  for i = 1, #fields, 2 do
    spent[tonumber(fields[i])] = tonumber(fields[i + 1])
  end
  return spent
end

-- Enters the period of a budget; returns false if it must be told what was spent in it.
-- What follows on a period that is known begins with nothing spent. What is told in
-- `recorded` may be less than was spent, never more.
local function enter(spent, previous, begin, recorded)
  if not (spent[begin] or spent[previous] or recorded) then
    return false
  end
  for of in pairs(spent) do
    if of < begin then
      redis.call('HDEL', budgets, of)
    end
  end
  local known = math.max(spent[begin] or 0, recorded or 0)
  if known ~= spent[begin] then
    redis.call('HSET', budgets, begin, known)
    spent[begin] = known
  end
  return true
end

local function quota(window, limit)
  if not limit then
    return -1, -1
  end
  local reset = math.ceil(window.newest + WINDOW_S + 1 - now)
  return math.max(0, limit - window.total), math.max(0, reset)
end

-- ARGV: id, tokens, rpm, tpm, concurrency, budget, the begins of its periods and the end
-- of the last one (previous, begin, end, next end), and what is recorded (since, tokens)
-- Returns: what refuses it ("" nothing), seconds to wait, requests left, their reset,
-- tokens left, their reset, slots left. Or "unknown" and since when what is recorded must
-- be told.
local function reserve()
  local id, tokens = ARGV[2], tonumber(ARGV[3])
  local rpm, tpm, concurrency = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
  local budget, previous = tonumber(ARGV[7]), tonumber(ARGV[8])
  local begin, ends = tonumber(ARGV[9]), tonumber(ARGV[10])
  local spent = budget and read_spent()
  if budget then
    if second < begin then -- by the clock of whoever asks it is already
      previous, begin, ends = nil, previous, begin
    elseif second >= ends then -- or not yet
      previous, begin, ends = begin, ends, tonumber(ARGV[11])
    end
    local recorded = tonumber(ARGV[12]) == begin and tonumber(ARGV[13]) or nil
    if not enter(spent, previous, begin, recorded) then
      return { 'unknown', begin, -1, -1, -1, -1, -1 }
    end
  end
  local minute = (rpm or tpm) and read() or {}
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
  local held_slots = concurrency and redis.call('ZCARD', running)

  local refused, wait = '', 0
  if budget and tokens > 0 and spent[begin] >= budget then
    refused, wait = 'budget', ends - now
  elseif rpm and minute.requests.total >= rpm then
    refused, wait = 'requests', free_at(minute, 'requests', rpm) - now
  elseif tpm and tokens > 0 and minute.tokens.total >= tpm then
    refused, wait = 'tokens', free_at(minute, 'tokens', tpm) - now
  elseif concurrency
    and (held_slots >= concurrency or redis.call('ZSCORE', running, id)) then
    refused, wait = 'concurrency', 1
  end

  if refused == '' then
    local of_tokens, of_budget = '', 0
    if rpm then
      add(minute, 'requests', this, 1)
    end
    if tpm then
      of_tokens = math.min(tokens, math.max(0, tpm - minute.tokens.total))
      add(minute, 'tokens', this, of_tokens)
    end
    if budget then
      of_budget = math.min(tokens, math.max(0, budget - spent[begin]))
      redis.call('HINCRBY', budgets, begin, of_budget)
    end
    if concurrency then
      redis.call('ZADD', running, now + LEASE_S, id)
      redis.call('EXPIRE', running, KEPT_S)
      held_slots = held_slots + 1
    end
    local held = { this, of_tokens, budget and begin or '', of_budget, concurrency and 1 or '' }
    redis.call('SET', reservation, table.concat(held, ':'), 'EX', KEPT_S)
  end
  if rpm or tpm then
    write(minute)
  end
  if budget then
    redis.call('EXPIRE', budgets, ends - second + KEPT_S)
  end

  local requests_left, requests_reset = quota(minute.requests, rpm)
  local tokens_left, tokens_reset = quota(minute.tokens, tpm)
  local slots_left = concurrency and math.max(0, concurrency - held_slots) or -1
  return {
    refused, math.ceil(wait),
    requests_left, requests_reset, tokens_left, tokens_reset, slots_left,
  }
end

-- ARGV: id, tokens ("" keeps what is held). Returns whether there was a reservation.
local function settle()
  local id, tokens = ARGV[2], tonumber(ARGV[3])
  redis.call('ZREM', running, id)
  local held = redis.call('GET', reservation)
  if not held then
    return 0
  end
  redis.call('DEL', reservation)
  local reserved, of_tokens, begin, of_budget = held:match('^(%d+):(%d*):(%d*):(%d+):')
  if tokens and of_tokens ~= '' then
    local minute, counts = read(reserved)
    add(minute, 'tokens', this, tokens)
    if counts then
      add(minute, 'tokens', reserved, -of_tokens)
    end
    write(minute)
  end
  if tokens and begin ~= '' and redis.call('HEXISTS', budgets, begin) == 1 then
    redis.call('HINCRBY', budgets, begin, tokens - of_budget)
  end
  return 1
end

-- ARGV: id. Returns whether there is a reservation.
local function renew()
  local held = redis.call('GET', reservation)
  if not held then
    return 0
  end
  redis.call('EXPIRE', reservation, KEPT_S)
  if held:sub(-2) == ':1' then
    redis.call('ZADD', running, now + LEASE_S, ARGV[2])
    redis.call('EXPIRE', running, KEPT_S)
  end
  return 1
end

-- ARGV: begin, tokens. What was recorded of a budget; more may have been used since.
local function spend()
  local spent, begin = read_spent(), tonumber(ARGV[2])
  if spent[begin] then
    enter(spent, nil, begin, tonumber(ARGV[3]))
  end
  return 1
end

local calls = { reserve = reserve, settle = settle, renew = renew, spend = spend }
return calls[ARGV[1]]()

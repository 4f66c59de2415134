-- The rules of core/limits.py for replicas that share Redis, whose clock counts.
-- One key's counters stand in one slot of a Cluster:
--   KEYS[1]  hash: r:SECOND requests, t:SECOND tokens, b:BEGIN spent of a budget
--   KEYS[2]  sorted set: who holds a slot, until when
--   KEYS[3]  what a request holds: SECOND:TOKENS:BEGIN:OF_BUDGET:SLOT
-- A field that is left out of a text stands for a limit that the key has not.

local WINDOW_S, LEASE_S, KEPT_S = 60, 60, 3600

local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second + tonumber(time[2]) / 1000000
local counters, running, reservation = KEYS[1], KEYS[2], KEYS[3]

local function add(field, amount)
  redis.call('HINCRBY', counters, field, amount)
end

-- What counts in the last minute, the newest second of it, and all of them.
local function read()
  local windows = { r = { total = 0, seconds = {} }, t = { total = 0, seconds = {} } }
  local spent, over = {}, {}
  local fields = redis.call('HGETALL', counters)
  for i = 1, #fields, 2 do
    local kind, of = fields[i]:sub(1, 1), tonumber(fields[i]:sub(3))
    local amount = tonumber(fields[i + 1])
    if kind == 'b' then
      spent[of] = amount
    elseif of < second - WINDOW_S then
      over[#over + 1] = fields[i]
    else
      local window = windows[kind]
      window[of] = amount
      window.total = window.total + amount
      window.seconds[#window.seconds + 1] = of
      if amount ~= 0 and of > (window.newest or 0) then
        window.newest = of
      end
    end
  end
  if #over > 0 then
    redis.call('HDEL', counters, unpack(over))
  end
  return windows, spent
end

local function free_at(window, limit)
  table.sort(window.seconds)
  local used, last = window.total, second
  for _, of in ipairs(window.seconds) do
    used, last = used - window[of], of
    if used < limit then
      break
    end
  end
  return last + WINDOW_S + 1
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
      redis.call('HDEL', counters, ('b:%d'):format(of))
    end
  end
  local known = math.max(spent[begin] or 0, recorded or 0)
  if known ~= spent[begin] then
    redis.call('HSET', counters, ('b:%d'):format(begin), ('%d'):format(known))
    spent[begin] = known
  end
  return true
end

local function quota(window, limit)
  if not limit then
    return -1, -1
  end
  local reset = window.newest and math.ceil(window.newest + WINDOW_S + 1 - now) or 0
  return math.max(0, limit - window.total), reset
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
  local windows, spent = read()
  local kept_s = WINDOW_S * 2
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
    kept_s = ends - second + KEPT_S
  end
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
  local held_slots = concurrency and redis.call('ZCARD', running)

  local refused, wait = '', 0
  if budget and tokens > 0 and spent[begin] >= budget then
    refused, wait = 'budget', ends - now
  elseif rpm and windows.r.total >= rpm then
    refused, wait = 'requests', free_at(windows.r, rpm) - now
  elseif tpm and tokens > 0 and windows.t.total >= tpm then
    refused, wait = 'tokens', free_at(windows.t, tpm) - now
  elseif concurrency
    and (held_slots >= concurrency or redis.call('ZSCORE', running, id)) then
    refused, wait = 'concurrency', 1
  end

  if refused == '' then
    local of_tokens, of_budget = '', 0
    if rpm then
      add('r:' .. second, 1)
      windows.r.total, windows.r.newest = windows.r.total + 1, second
    end
    if tpm then
      of_tokens = math.min(tokens, math.max(0, tpm - windows.t.total))
      add('t:' .. second, of_tokens)
      windows.t.total = windows.t.total + of_tokens
      if of_tokens > 0 then
        windows.t.newest = second
      end
    end
    if budget then
      of_budget = math.min(tokens, math.max(0, budget - spent[begin]))
      add(('b:%d'):format(begin), of_budget)
    end
    if concurrency then
      redis.call('ZADD', running, now + LEASE_S, id)
      redis.call('EXPIRE', running, KEPT_S)
      held_slots = held_slots + 1
    end
    local held = { second, of_tokens, budget and begin or '', of_budget, concurrency and 1 or '' }
    redis.call('SET', reservation, table.concat(held, ':'), 'EX', KEPT_S)
  end
  redis.call('EXPIRE', counters, kept_s)

  local requests_left, requests_reset = quota(windows.r, rpm)
  local tokens_left, tokens_reset = quota(windows.t, tpm)
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
  local since, of_tokens, begin, of_budget = held:match('^(%d+):(%d*):(%d*):(%d+):')
  if tokens and of_tokens ~= '' then
    if redis.call('HEXISTS', counters, 't:' .. since) == 1 then
      add('t:' .. since, 0 - of_tokens) -- "-0" is no number to Redis
    end
    add('t:' .. second, tokens)
    if redis.call('TTL', counters) < WINDOW_S * 2 then
      redis.call('EXPIRE', counters, WINDOW_S * 2)
    end
  end
  if tokens and begin ~= '' and redis.call('HEXISTS', counters, 'b:' .. begin) == 1 then
    add('b:' .. begin, tokens - of_budget)
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
  local _, spent = read()
  if spent[tonumber(ARGV[2])] then
    enter(spent, nil, tonumber(ARGV[2]), tonumber(ARGV[3]))
  end
  return 1
end

local calls = { reserve = reserve, settle = settle, renew = renew, spend = spend }
return calls[ARGV[1]]()

-- Return the records of a namespace's live workers, and forget those whose lease has run out some time ago.
--
-- KEYS[1]: the namespace's workers. ARGV: prefix of a record's key, prefix of a lease's key, how many workers to pass by,
-- most workers to look at, how long a worker whose lease has run out is remembered (s; see gone.lua), longest name, record
-- and lease, largest sum of records (bytes).
-- Returns {malformed, how many to pass by to go on or 0, server time (s, us), worker, record, lease, worker, ...}.
--
-- The records' keys are built here, not passed: passing them would cost the caller a second round trip. They share the
-- hash tag of KEYS[1], so they are on this shard.

local first, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local name_max, record_max, lease_max, sum_max = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local names = try('ZREVRANGE', KEYS[1], first, first + most - 1)
if names.err then return { 1, 0, time[1], time[2] } end
local answer = { 0, 0, time[1], time[2] }
local now = tonumber(time[1])
local forgotten = now - tonumber(ARGV[5])
local sum, removed = 0, 0

-- Return a value; false when there is none, nil when none of ours has this type or size.
local function value_of(key, size_max)
    local size = try('STRLEN', key)
    if type(size) == 'table' or size > size_max then return nil end
    return size > 0 and redis.call('GET', key)
end

for i, name in ipairs(names) do
    local record = nil
    if #name <= name_max then record = value_of(ARGV[1] .. name, record_max) end
    if record then
        local lease = value_of(ARGV[2] .. name, lease_max) or ''
        answer[#answer + 1] = name
        answer[#answer + 1] = record
        answer[#answer + 1] = lease
        sum = sum + #record
        if sum >= sum_max and i < #names then
            answer[2] = first + i - removed
            break
        end
    else
        if record == nil then answer[1] = answer[1] + 1 end
        local entered = tonumber(redis.call('ZSCORE', KEYS[1], name))
        -- One of the future is never ours, and would stay for ever.
        if entered < forgotten or entered > now + 60 or #name > name_max then
            redis.call('ZREM', KEYS[1], name)
            removed = removed + 1
        end
    end
end
return answer

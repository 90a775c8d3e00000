-- Return the records of a namespace's live workers, and forget those whose lease has run out some time ago.
--
-- KEYS[1]: the namespace's workers. ARGV: prefix of a record's key, most workers to return, how long a worker whose
--       lease has run out is remembered (s): see gone.lua.
-- Returns {malformed, worker, record, worker, record, ...}.
--
-- The records' keys are built here, not passed: passing them would cost the caller a second round trip. They share the
-- hash tag of KEYS[1], so they are on this shard.

local names = redis.pcall('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
if names.err then return { 1 } end
local answer = { 0 }
local now = tonumber(redis.call('TIME')[1])
local forgotten = now - tonumber(ARGV[3])
for _, name in ipairs(names) do
    local record = redis.pcall('GET', ARGV[1] .. name)
    if type(record) == 'string' then
        answer[#answer + 1] = name
        answer[#answer + 1] = record
    elseif type(record) == 'table' then
        answer[1] = answer[1] + 1
    else
        local entered = tonumber(redis.call('ZSCORE', KEYS[1], name))
        -- One of the future is never ours, and would stay for ever.
        if entered < forgotten or entered > now + 60 then redis.call('ZREM', KEYS[1], name) end
    end
end
return answer

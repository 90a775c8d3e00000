-- Return the workers of a namespace whose lease has run out lately, and who did not leave.
--
-- KEYS[1]: the namespace's workers. ARGV: prefix of a record's key, how long one counts as gone (s), most to return,
-- longest name (bytes).
-- Returns {worker, seconds since it was entered last, worker, seconds, ...}, the latest first.
--
-- A worker that leaves is taken out of the directory. The records' keys are built here as in workers.lua.

local now = tonumber(redis.call('TIME')[1])
local since = now - tonumber(ARGV[2])
local found = try('ZREVRANGEBYSCORE', KEYS[1], now + 60, since, 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[3]))
if found.err then return {} end
local answer = {}
for at = 1, #found, 2 do
    if #found[at] <= tonumber(ARGV[4]) and redis.call('EXISTS', ARGV[1] .. found[at]) == 0 then
        answer[#answer + 1] = found[at]
        answer[#answer + 1] = math.max(0, now - tonumber(found[at + 1]))
    end
end
return answer

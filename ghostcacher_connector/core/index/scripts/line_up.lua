-- Put a worker last in a line; return {server time (s, us), worker, ...}: who was in it before, the last one first.
-- KEYS[1]: the line. ARGV: the worker, how long it stays (ms), the most workers to return.
--
-- The race: of two that line up at the same time one is first, since this is one script; both know which.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local gone = try('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if type(gone) == 'table' then redis.call('UNLINK', KEYS[1]) end -- of another type: none of ours
local answer = { time[1], time[2] }
for _, worker in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[3]) - 1)) do answer[#answer + 1] = worker end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return answer

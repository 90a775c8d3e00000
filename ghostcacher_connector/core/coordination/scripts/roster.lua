-- Enter a member in a roster until a time, or strike it off; return who is in it.
--
-- KEYS[1]: the roster, member -> until when (server time, ms). ARGV: member or "" to only look, how long (ms), "0" to
-- strike it off.
-- Returns {server time (s, us), members that are in it}.

local key, member, stay_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local kind = redis.call('TYPE', key).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', key) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now_ms))
if member ~= '' and stay_ms > 0 then
    redis.call('ZADD', key, string.format('%.0f', now_ms + stay_ms), member)
    -- The last to go takes the key along; nobody's shorter stay may cut that of another.
    if redis.call('PTTL', key) < stay_ms then redis.call('PEXPIRE', key, stay_ms) end
elseif member ~= '' then
    redis.call('ZREM', key, member)
end
return { time[1], time[2], redis.call('ZRANGE', key, 0, -1) }

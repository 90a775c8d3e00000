-- Enter a router in the roster until a time, and strike one off; return who is in it.
--
-- KEYS[1]: the roster, member -> until when (server time, ms). ARGV: member or "" to only look, how long (ms), member to
-- strike off or "", longest member (bytes), most members to return.
-- Returns {server time (s, us), how many members are too large to be ours, members that are in it}.

local key, member, stay_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local kind = redis.call('TYPE', key).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', key) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now_ms))
if ARGV[3] ~= '' then redis.call('ZREM', key, ARGV[3]) end
if member ~= '' and stay_ms > 0 then
    redis.call('ZADD', key, string.format('%.0f', now_ms + stay_ms), member)
    -- The last to go takes the key along; nobody's shorter stay may cut that of another.
    if redis.call('PTTL', key) < stay_ms then redis.call('PEXPIRE', key, stay_ms) end
end
-- Those who go first come first: whoever wants to stay for ever crowds nobody out.
local answer = { time[1], time[2], 0 }
for _, found in ipairs(redis.call('ZRANGE', key, 0, tonumber(ARGV[5]) - 1)) do
    if #found > tonumber(ARGV[4]) then
        answer[3] = answer[3] + 1
        redis.call('ZREM', key, found)
    else
        answer[#answer + 1] = found
    end
end
return answer

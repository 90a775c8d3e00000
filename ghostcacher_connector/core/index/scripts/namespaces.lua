-- Note that a namespace is in use, when one is given; return the namespaces in use, latest first.
-- KEYS[1]: the namespaces. ARGV: a namespace or "", how long an unused one is remembered (s), most to return, longest name
-- (bytes): a longer one is none of ours, and is forgotten.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end
local now = tonumber(redis.call('TIME')[1])
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], now, ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 60, '+inf') -- never ours: it would stay for ever
redis.call('EXPIRE', KEYS[1], ARGV[2])
local answer = {}
for _, found in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[3]) - 1)) do
    if #found <= tonumber(ARGV[4]) then
        answer[#answer + 1] = found
    else
        redis.call('ZREM', KEYS[1], found)
    end
end
return answer

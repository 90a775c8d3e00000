-- Take all of several locks, or none of them.
--
-- KEYS: the last token, the locks. ARGV: router, worker, when it is to be ready (server time, s), TTL (ms), largest field
-- (bytes), the stamp of each lock.
-- Returns the token when all were free, else a list of {number of the lock, token, router, worker, ready at, stamp}, one
-- for each that is held.
--
-- The race: two routers meet one prefix. Redis runs one script after the other, so one of them gets all and the other
-- sees who did. A token that was granted before Redis lost its memory must not come back: tokens begin at the
-- server's time in us, which passes faster than tokens are granted.

local TOKEN_MAX = 2 ^ 53 - 1 -- beyond, a Lua number is not exact; ours are never so large

local held = {}
for i = 2, #KEYS do
    local kind = redis.call('TYPE', KEYS[i]).ok
    local fields = kind == 'hash' and redis.call('PTTL', KEYS[i]) > 0 and lock_fields(KEYS[i], tonumber(ARGV[5]))
    if fields then -- one that never expires was not written by us
        held[#held + 1] = { i - 1, unpack(fields) }
    elseif kind ~= 'none' then
        redis.call('UNLINK', KEYS[i])
    end
end
if #held > 0 then return held end

local time = redis.call('TIME')
local last = tonumber(try('GET', KEYS[1])) or 0
if last > TOKEN_MAX then last = 0 end
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local token = string.format('%.0f', math.max(now_us, last + 1))
redis.call('SET', KEYS[1], token, 'PX', ARGV[4])
for i = 2, #KEYS do
    redis.call('HSET', KEYS[i], 't', token, 'r', ARGV[1], 'w', ARGV[2], 'a', ARGV[3], 's', ARGV[4 + i])
    redis.call('PEXPIRE', KEYS[i], ARGV[4])
end
return token

-- Append to a stream that is bounded in length and in age.
--
-- KEYS[1]: the stream. ARGV: most entries, most age of an entry (ms), packed items.
-- Returns nothing of use.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'stream' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for i = 3, #ARGV do
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'd', ARGV[i])
end
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', now_ms - tonumber(ARGV[2])))
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

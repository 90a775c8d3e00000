-- Store the load of a worker and append its events.
--
-- KEYS: the load, the stream of events, the routers.
-- ARGV: TTL of the load (ms), incarnation, packed load or "" to leave it, packed events or "", most entries of the
--       stream, most age of an entry (ms).
-- Returns {server time (s, us), 1 when a router is alive, else 0: the events are then dropped, for nobody would read
-- them}.

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[3] ~= '' then
    local stamp = time[1] .. string.format('%06d', tonumber(time[2])) -- us, 16 digits until the year 2286
    redis.call('SET', KEYS[1], ARGV[2] .. stamp .. ARGV[3], 'PX', ARGV[1])
end

-- A key of another type was not written by us: it counts as "no router".
local listening = try('ZCOUNT', KEYS[3], string.format('(%.0f', now_ms), '+inf')
if type(listening) == 'table' or listening == 0 then return { time[1], time[2], 0 } end
if ARGV[4] ~= '' then
    local kind = redis.call('TYPE', KEYS[2]).ok
    if kind ~= 'stream' and kind ~= 'none' then redis.call('UNLINK', KEYS[2]) end
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'd', ARGV[4])
    redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%.0f', now_ms - tonumber(ARGV[6])))
    redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
return { time[1], time[2], 1 }

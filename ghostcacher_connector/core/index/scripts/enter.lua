-- Enter a worker in the directory of its namespace, or prolong its lease.
--
-- KEYS: the worker's record, the namespace's workers, the token of the process whose record that is, the lease's stamp.
-- ARGV: worker, packed record, lease (ms), record magic, incarnation, "1" to take the place of another
--       incarnation, TTL of the namespace's workers (ms), token of the process that asks ("": it has none), token of a
--       process that is known to have ended ("": none), stamp of the lease ("": without a key), SHA-1 of a record that is
--       none of ours and counts no more ("": none), longest record and lease (bytes).
-- Returns {the other incarnation that has or had the name or "", its record if it was not replaced or "", the stamp of its
-- lease, server time (s, us)}.
--
-- The races: a worker that restarts joins while its earlier life is still shutting down and renewing; and two engines
-- are given one name. Whose process has a lease on the name keeps it, and the other one asks again. The same process may
-- replace its own earlier incarnation. Between versions without tokens the later join wins. A renewal never takes a name
-- back. A record that is not ours in form, or never expires, is overwritten.

local magic, incarnation, own = ARGV[4], ARGV[5], ARGV[8]
local record_max, lease_max = tonumber(ARGV[12]), tonumber(ARGV[13])
local time = redis.call('TIME')

local function value_of(key, size_max)
    local size = try('STRLEN', key)
    if type(size) == 'table' or size == 0 or size > size_max then return '' end
    return redis.call('GET', key)
end

local other = ''
local current = value_of(KEYS[1], record_max)
if string.sub(current, 1, #magic) == magic and redis.call('PTTL', KEYS[1]) > 0 then
    local holder = string.sub(current, #magic + 1, #magic + #incarnation)
    if holder ~= incarnation and #holder == #incarnation then other = holder end
end
if other ~= '' and redis.sha1hex(current) ~= ARGV[11] then
    local owner = try('GET', KEYS[3])
    local foreign = type(owner) == 'string' and owner ~= own and owner ~= ARGV[9]
    if ARGV[6] ~= '1' or foreign then return { other, current, value_of(KEYS[4], lease_max), time[1], time[2] } end
end

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if own ~= '' then redis.call('SET', KEYS[3], own, 'PX', ARGV[3]) end
if ARGV[10] ~= '' then redis.call('SET', KEYS[4], ARGV[10], 'PX', ARGV[3]) end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', KEYS[2]) end
redis.call('ZADD', KEYS[2], time[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return { other, '', '', time[1], time[2] }

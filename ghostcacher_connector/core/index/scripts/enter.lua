-- Enter a worker in the directory of its namespace, or prolong its lease.
--
-- KEYS: the worker's record, the namespace's workers, the token of the process whose record that is.
-- ARGV: worker, packed record, lease (ms), record magic, incarnation, "1" to take the place of another
--       incarnation, TTL of the namespace's workers (ms), token of the process that asks ("": it has none), token of a
--       process that is known to have ended ("": none).
-- Returns {the other incarnation that has or had the name or "", its record if it was not replaced or ""}.
--
-- The races: a worker that restarts joins while its earlier life is still shutting down and renewing; and two engines
-- are given one name. Whose process has a lease on the name keeps it, and the other one asks again. The same process may
-- replace its own earlier incarnation. Between versions without tokens the later join wins. A renewal never takes a name
-- back. A record that is not ours in form, or never expires, is overwritten.

local magic, incarnation, own = ARGV[4], ARGV[5], ARGV[8]
local other = ''
local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' and string.sub(current, 1, #magic) == magic and redis.call('PTTL', KEYS[1]) > 0 then
    local holder = string.sub(current, #magic + 1, #magic + #incarnation)
    if holder ~= incarnation and #holder == #incarnation then other = holder end
end
if other ~= '' then
    local owner = redis.pcall('GET', KEYS[3])
    local foreign = type(owner) == 'string' and owner ~= own and owner ~= ARGV[9]
    if ARGV[6] ~= '1' or foreign then return { other, current } end
end

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if own ~= '' then redis.call('SET', KEYS[3], own, 'PX', ARGV[3]) end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', KEYS[2]) end
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return { other, '' }

-- Enter a worker in the directory of its namespace, or prolong its lease.
--
-- KEYS: the worker's record, the namespace's workers.
-- ARGV: worker, packed record, lease (ms), record magic, incarnation, "1" to take the place of another
--       incarnation, TTL of the namespace's workers (ms).
-- Returns {1 when entered, the other incarnation that holds or held the name, or ""}.
--
-- The race: a worker that restarts joins while its earlier life is still shutting down and renewing. The later join
-- wins, and a renewal never takes the name back. A record that is not ours in form, or never expires, is overwritten.

local magic, incarnation = ARGV[4], ARGV[5]
local other = ''
local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' and string.sub(current, 1, #magic) == magic and redis.call('PTTL', KEYS[1]) > 0 then
    local holder = string.sub(current, #magic + 1, #magic + #incarnation)
    if holder ~= incarnation and #holder == #incarnation then other = holder end
end
if other ~= '' and ARGV[6] ~= '1' then return { 0, other } end

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', KEYS[2]) end
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return { 1, other }

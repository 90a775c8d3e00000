-- Remove a worker from the directory, unless a later incarnation has taken its name.
-- KEYS: the worker's record, the namespace's workers, the token of the process whose record that is, the lease's stamp.
-- ARGV: worker, record magic followed by the incarnation.

local current = try('GET', KEYS[1])
if type(current) == 'string' and string.sub(current, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[3], KEYS[4])
try('ZREM', KEYS[2], ARGV[1])
return 1

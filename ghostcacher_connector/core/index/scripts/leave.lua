-- Remove a worker from the directory, unless a later incarnation has taken its name.
-- KEYS: the worker's record, the namespace's workers, the token of the process whose record that is.
-- ARGV: worker, record magic followed by the incarnation.

local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' and string.sub(current, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[3])
redis.pcall('ZREM', KEYS[2], ARGV[1])
return 1

-- Prolong several locks that one token holds; return 1, or 0 and change nothing unless it holds all of them.
-- KEYS: the locks. ARGV: token, when it is to be ready (server time, s), TTL (ms).

for _, key in ipairs(KEYS) do
    if redis.pcall('HGET', key, 't') ~= ARGV[1] then return 0 end
end
for _, key in ipairs(KEYS) do
    redis.call('HSET', key, 'a', ARGV[2])
    redis.call('PEXPIRE', key, ARGV[3])
end
return 1

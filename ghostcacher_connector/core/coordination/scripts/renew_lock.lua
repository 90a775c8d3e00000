-- Prolong several locks that one token holds; return 1, or 0 and change nothing unless it holds all of them.
-- KEYS: the locks. ARGV: token, router, worker, when it is to be ready (server time, s), TTL (ms), the stamp of each lock.

for _, key in ipairs(KEYS) do
    if try('HGET', key, 't') ~= ARGV[1] then return 0 end
end
for i, key in ipairs(KEYS) do
    redis.call('HSET', key, 'r', ARGV[2], 'w', ARGV[3], 'a', ARGV[4], 's', ARGV[5 + i])
    redis.call('PEXPIRE', key, ARGV[5])
end
return 1

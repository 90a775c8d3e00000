-- Replace a report of a worker. KEYS[1]: the report. ARGV: TTL (ms), then name, value, name, value, ...

redis.call('UNLINK', KEYS[1])
if #ARGV < 3 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])

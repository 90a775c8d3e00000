-- Set several values, each with a TTL. KEYS: where. ARGV: TTL (ms), the values.

for i, key in ipairs(KEYS) do
    redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1])
end

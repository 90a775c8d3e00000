-- Release those locks that a token holds; return how many they were. KEYS: the locks. ARGV: token.

local count = 0
for _, key in ipairs(KEYS) do
    if try('HGET', key, 't') == ARGV[1] then
        redis.call('UNLINK', key)
        count = count + 1
    end
end
return count

-- Release those locks that their tokens hold; return how many they were. KEYS: the locks. ARGV: the token of each.

local count = 0
for i, key in ipairs(KEYS) do
    if try('HGET', key, 't') == ARGV[i] then
        redis.call('UNLINK', key)
        count = count + 1
    end
end
return count

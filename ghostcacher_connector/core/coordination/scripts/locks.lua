-- Return {token, router, worker, ready at, stamp} of each lock, {} of one that nobody holds.
-- KEYS: the locks. ARGV: largest field (bytes).

local held = {}
for i, key in ipairs(KEYS) do held[i] = lock_fields(key, tonumber(ARGV[1])) or {} end
return held

-- Return how much of each of several chains each of several workers holds: an upper bound, by binary search alone.
--
-- KEYS: the blocks key of each candidate, all of one partition.
-- ARGV: hash width (bytes), then each chain, its hashes one after the other. A chain may leave blocks out.
-- Returns {malformed, counts}: for each chain, for each candidate, the number of leading hashes held, 2 bytes, little
-- endian, all one after the other. One string, since a client takes long over many small values.
--
-- The race: as in lookup.lua, all of them outside, and none matters: whoever asks only weighs costs.

local width = tonumber(ARGV[1])
local malformed = 0

local function depth(key, chain)
    local function holds(i)
        local reply = redis.pcall('HEXISTS', key, string.sub(chain, (i - 1) * width + 1, i * width))
        if type(reply) == 'table' then -- the key is not a hash
            malformed = malformed + 1
            return false
        end
        return reply == 1
    end
    local count = #chain / width
    if count == 0 or not holds(1) then return 0 end
    if count == 1 or holds(count) then return count end
    local lo, hi = 1, count
    while hi - lo > 1 do
        local middle = math.floor((lo + hi) / 2)
        if holds(middle) then lo = middle else hi = middle end
    end
    return lo
end

local counts = {}
for i = 2, #ARGV do
    for candidate = 1, #KEYS do counts[#counts + 1] = struct.pack('<I2', depth(KEYS[candidate], ARGV[i])) end
end
return { malformed, table.concat(counts) }

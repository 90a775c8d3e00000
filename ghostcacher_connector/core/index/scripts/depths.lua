-- Return how much of each of several chains each of several workers holds: an upper bound, by binary search alone.
--
-- KEYS: the blocks key of each candidate, all of one partition.
-- ARGV: hash width (bytes), value width (bytes; "0": no values are wanted), then each chain, its hashes one after the
-- other. A chain may leave blocks out.
-- Returns {malformed, counts, values}: for each chain, for each candidate, the number of leading hashes held, 2 bytes,
-- little endian, all one after the other; and for each number above 0 the value of the last of these hashes. Two
-- strings, since a client takes long over many small values.
--
-- The race: as in lookup.lua, all of them outside, and none matters: whoever asks only weighs costs.

local width, value_width = tonumber(ARGV[1]), tonumber(ARGV[2])
local malformed = 0

-- Return the depth in one chain, as a function of a candidate's key.
local function searcher(chain)
    local count = #chain / width
    local hashes = {}
    local guess = math.max(1, math.floor(count / 2)) -- of a chain of two or more: at most count - 1

    local function hash(i)
        local found = hashes[i]
        if not found then
            found = string.sub(chain, (i - 1) * width + 1, i * width)
            hashes[i] = found
        end
        return found
    end

    return function(key)
        if count == 0 then return 0 end
        -- Mostly a worker holds all of a text or nothing, else often as much as the worker before it.
        local ends = redis.pcall('HMGET', key, hash(1), hash(count))
        if ends.err and checked(ends) then -- the key is not a hash
            malformed = malformed + 1
            return 0
        end
        if not ends[1] then return 0 end
        if ends[2] then return count end
        local lo, hi = 1, count
        local held = redis.call('HMGET', key, hash(guess), hash(guess + 1))
        if held[2] then
            lo = guess + 1
        elseif held[1] then
            lo, hi = guess, guess + 1
        else
            hi = guess
        end
        while hi - lo > 1 do
            local middle = math.floor((lo + hi) / 2)
            if redis.call('HEXISTS', key, hash(middle)) == 1 then lo = middle else hi = middle end
        end
        guess = lo
        return lo
    end
end

local counts, values = {}, {}
for i = 3, #ARGV do
    local depth = searcher(ARGV[i])
    for candidate = 1, #KEYS do
        local found = depth(KEYS[candidate])
        if found > 0 and value_width > 0 then
            local value = redis.call('HGET', KEYS[candidate], string.sub(ARGV[i], (found - 1) * width + 1, found * width))
            if #value == value_width then
                values[#values + 1] = value
            else
                malformed = malformed + 1
                found = 0
            end
        end
        counts[#counts + 1] = struct.pack('<I2', found)
    end
end
return { malformed, table.concat(counts), table.concat(values) }

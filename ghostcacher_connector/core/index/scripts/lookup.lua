-- Return the longest prefix of a chain that each of several workers holds.
--
-- KEYS: the blocks key of each candidate, all of one partition.
-- ARGV: hash width (bytes), the hashes one after the other, how many candidates to read values for,
--       value width (bytes), greatest tier.
-- Returns {malformed, candidate, length, values, candidate, length, values, ...}, longest first.
--   values: the values of blocks [0, length) one after the other, or "" when they were not read;
--   length is then an upper bound, found by binary search alone.
--
-- The race: none inside this script (Redis runs it whole, and no key expires meanwhile), all of them outside. Between a
-- worker's reuse of a slot and its withdrawal of the entry, and between this answer and the reader's READ, an entry may
-- become wrong. A replica that was promoted may know less or older entries. Neither matters: the reader checks each
-- entry's incarnation and generation against the owner's memory after it has the data.
--
-- Entries need not be a prefix: a worker may have lost block 3 and kept block 9. Binary search keeps "block lo is held,
-- block hi is not", so the prefix is never longer than what it finds; reading the values finds the first gap.

local width = tonumber(ARGV[1])
local chain = ARGV[2]
local wanted = tonumber(ARGV[3])
local value_width = tonumber(ARGV[4])
local tier_max = tonumber(ARGV[5])

local CHUNK = 1000 -- fields per HMGET: Lua's unpack may put at most 8,000 values on the C stack
local EXTRA_READS = 8 -- candidates read beyond the wanted ones when gaps spoil the order: bounds the script's time

local count = #chain / width
local malformed = 0
local hashes = {}

local function hash(i)
    local found = hashes[i]
    if not found then
        found = string.sub(chain, (i - 1) * width + 1, i * width)
        hashes[i] = found
    end
    return found
end

local function holds(key, i)
    local reply = redis.pcall('HEXISTS', key, hash(i))
    if type(reply) == 'table' and checked(reply) then -- the key is not a hash
        malformed = malformed + 1
        return false
    end
    return reply == 1
end

local function bound(key)
    if not holds(key, 1) then return 0 end
    if count == 1 or holds(key, count) then return count end
    local lo, hi = 1, count
    while hi - lo > 1 do
        local middle = math.floor((lo + hi) / 2)
        if holds(key, middle) then lo = middle else hi = middle end
    end
    return lo
end

-- Read the values of blocks [first, last]; return how many are well-formed before the first gap.
local function read_chunk(key, first, last, values)
    local fields = {}
    for i = first, last do fields[#fields + 1] = hash(i) end
    local reply = try('HMGET', key, unpack(fields))
    if reply.err then
        malformed = malformed + 1
        return 0
    end
    for i = 1, #fields do
        local value = reply[i]
        if not value then return i - 1 end
        if #value ~= value_width or string.byte(value) > tier_max then
            malformed = malformed + 1
            return i - 1
        end
        values[#values + 1] = value
    end
    return #fields
end

local function read(key, last)
    local values = {}
    local first = 1
    while first <= last do
        local size = math.min(CHUNK, last - first + 1)
        if read_chunk(key, first, first + size - 1, values) < size then break end
        first = first + size
    end
    return values
end

local ranked = {}
for candidate = 1, #KEYS do
    local length = bound(KEYS[candidate])
    if length > 0 then ranked[#ranked + 1] = { candidate = candidate, length = length, values = '' } end
end

local function longer(a, b)
    if a.length ~= b.length then return a.length > b.length end
    return a.candidate < b.candidate
end
table.sort(ranked, longer)

-- Read in order of the bound until the wanted number are known to be at least as long as all that remain.
for i = 1, math.min(#ranked, wanted + EXTRA_READS) do
    local settled = 0
    for j = 1, i - 1 do
        if ranked[j].length >= ranked[i].length then settled = settled + 1 end
    end
    if settled >= wanted then break end
    local values = read(KEYS[ranked[i].candidate], ranked[i].length)
    ranked[i].length = #values
    ranked[i].values = table.concat(values)
end
table.sort(ranked, longer)

local answer = { malformed }
for _, found in ipairs(ranked) do
    if found.length > 0 then
        answer[#answer + 1] = found.candidate
        answer[#answer + 1] = found.length
        answer[#answer + 1] = found.values
    end
end
return answer

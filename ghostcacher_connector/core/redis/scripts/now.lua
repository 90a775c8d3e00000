-- Return the server's time (s, us). KEYS[1]: any, on the shard that is asked.

return redis.call('TIME')

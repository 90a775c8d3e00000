"""Hosted providers (Anthropic, OpenAI, Amazon Bedrock) as upstreams beside own engines.

    choice.py             ProviderChoice: which requests go to a provider, before any worker is looked for
    request_lines.py      the head of a request as a provider gets it: what may leave the fleet
    signing.py            BedrockSigner: SigV4 by botocore's signer, which is an extra
    fallback.py           a provider in the place of own workers that cannot answer
    provider_call.py      ProviderCall: one request at a provider, in the place of a placement
    providers.py          Providers: puts these together for the HTTP proxy

    bodies/
    rewriting.py          rewritten: what is put into a body so that the provider's own cache works
    breakpoints.py        Anthropic's cache_control at the ends of sections
    cache_key.py          OpenAI's prompt_cache_key, made of what requests share
    cache_points.py       Bedrock's cachePoint at the ends of sections
    json_places.py        JsonPlaces: where values lie in a JSON text, so that the rest stays byte for byte

    costs/
    usage.py              UsageReader: what an answer says that it used
    usage_tap.py          UsageTap: lets it read along
    prices.py             PriceTable: what that costs, by prices.json
    accounts.py           Accounts: counts all of this

Keys pass through, and are kept nowhere: what is sent is made of the client's request and forgotten with it.
"""

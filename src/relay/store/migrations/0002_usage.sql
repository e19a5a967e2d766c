-- What was used in an hour. An empty token or model is one that is not known.

CREATE TABLE usage (
    hour bigint NOT NULL,
    user_name text NOT NULL,
    token_id text NOT NULL,
    bridge_id text NOT NULL,
    model text NOT NULL,
    exchanges bigint NOT NULL,
    errors bigint NOT NULL,
    cancelled bigint NOT NULL,
    received bigint NOT NULL,
    sent bigint NOT NULL,
    -- Exchanges whose prompt tokens, and whose completion tokens, are known.
    prompts_counted bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completions_counted bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    -- Exchanges whose answer began, and until then; microseconds.
    answered bigint NOT NULL,
    first_byte_us bigint NOT NULL,
    total_us bigint NOT NULL,
    PRIMARY KEY (hour, user_name, token_id, bridge_id, model)
);

CREATE INDEX usage_of_user ON usage (user_name, hour);

-- Which batch of usage each relay process wrote last: none is counted twice.
CREATE TABLE writers (
    id text PRIMARY KEY,
    batch bigint NOT NULL,
    seen bigint NOT NULL
);

-- Keys for callers and codes for pairing. Of both only the SHA-256 is kept.

CREATE TABLE keys (
    id text PRIMARY KEY,
    hash text NOT NULL UNIQUE,
    user_name text NOT NULL,
    label text,
    -- The name of the only bridge that it reaches; all, if none.
    bridge text,
    -- As in 20/s; no limit of its own, if none.
    rate text,
    issued bigint NOT NULL,
    expires bigint,
    last_used bigint,
    revoked bigint
);

CREATE INDEX keys_of_user ON keys (user_name);

CREATE TABLE codes (
    hash text PRIMARY KEY,
    user_name text NOT NULL,
    expires bigint NOT NULL,
    -- How long the token lives that it is given for, seconds.
    life bigint NOT NULL
);

-- Keys for callers and codes for pairing. Of a key only the SHA-256 is kept, of a code an HMAC.

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
    revoked bigint,
    -- The id of the token that made it; the operator did, if none.
    maker text
);

CREATE INDEX keys_of_user ON keys (user_name);

CREATE TABLE codes (
    hash text PRIMARY KEY,
    user_name text NOT NULL,
    expires bigint NOT NULL,
    -- The id of the token that made it; the operator did, if none.
    maker text,
    -- When that token was issued; when the code was made, if the operator did.
    maker_issued bigint NOT NULL,
    -- When that token ends.
    maker_expires bigint
);

-- Times are seconds since 1970. What is in here goes to SQLite and to PostgreSQL alike.

CREATE TABLE users (
    name text PRIMARY KEY,
    first_seen bigint NOT NULL,
    disabled bigint,
    -- Tokens issued up to then are refused.
    deleted bigint
);

CREATE TABLE tokens (
    id text PRIMARY KEY,
    user_name text NOT NULL,
    label text,
    scopes text NOT NULL,
    issued bigint,
    expires bigint,
    last_used bigint,
    revoked bigint
);

CREATE INDEX tokens_of_user ON tokens (user_name);

CREATE TABLE bridges (
    id text PRIMARY KEY,
    user_name text NOT NULL,
    client_id text,
    name text NOT NULL,
    platform text,
    version text,
    transport text NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    -- When it left; none while it is connected.
    gone bigint,
    -- The relay's process that saw it last.
    relay text
);

CREATE INDEX bridges_of_user ON bridges (user_name);

-- Bridges to disconnect once, at this revision.
CREATE TABLE kicks (
    bridge_id text PRIMARY KEY,
    revision bigint NOT NULL
);

-- Rises with each change that a running relay must carry out.
CREATE TABLE revision (
    one bigint PRIMARY KEY,
    number bigint NOT NULL
);

INSERT INTO revision (one, number) VALUES (1, 0);

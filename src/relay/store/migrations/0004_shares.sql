-- Bridges that their owners share.

CREATE TABLE shares (
    id text PRIMARY KEY,
    owner text NOT NULL,
    bridge_id text NOT NULL,
    -- What the bridge was called when it was shared.
    bridge_name text NOT NULL,
    -- With whom: user, group or all.
    kind text NOT NULL,
    -- Of the user or the group; empty for all.
    name text NOT NULL,
    since bigint NOT NULL,
    UNIQUE (bridge_id, kind, name)
);

CREATE INDEX shares_of_owner ON shares (owner);

-- What the provider of sign-in last said of a user's groups, as a list in JSON.
CREATE TABLE memberships (
    user_name text PRIMARY KEY,
    group_names text NOT NULL,
    said bigint NOT NULL
);

CREATE INDEX usage_of_bridge ON usage (bridge_id, hour);

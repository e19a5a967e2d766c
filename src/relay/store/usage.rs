//! What was used, by user, token or key, bridge, model and hour; and what is written along with it: when tokens and keys were last
//! used, and which bridges are here.

use std::sync::Arc;

use super::driver::{Row, Statement, Value};
use super::shares::{self, Membership};
use super::{Store, StoreError, now};

/// The longest list of usage.
pub const MOST_ROWS: u64 = 10_000;
/// So many bridges of a user are remembered: a program could call itself something else each time.
const MOST_BRIDGES: i64 = 1000;
/// How long the marks of relays that are not there any more are kept, seconds.
const WRITER_LIFE: i64 = 30 * 24 * 3600;

const MARK: &str = "INSERT INTO writers (id, batch, seen) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE \
    SET batch = excluded.batch, seen = excluded.seen WHERE writers.batch < excluded.batch";
const SEE_USER: &str = "INSERT INTO users (name, first_seen) SELECT CAST($1 AS text), CAST($2 AS bigint) \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = $1) ON CONFLICT (name) DO NOTHING";
const SEE_TOKEN: &str = "INSERT INTO tokens (id, user_name, scopes, issued, expires, last_used) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS bigint), CAST($5 AS bigint), CAST($6 AS bigint) \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = $2 AND deleted >= COALESCE($4, 0)) \
    ON CONFLICT (id) DO UPDATE SET expires = CASE \
    WHEN tokens.expires IS NULL OR excluded.expires IS NULL THEN NULL \
    WHEN excluded.expires > tokens.expires THEN excluded.expires ELSE tokens.expires END, \
    last_used = CASE WHEN tokens.last_used > excluded.last_used THEN tokens.last_used ELSE excluded.last_used END \
    WHERE tokens.revoked IS NULL";
const SEE_KEY: &str = "UPDATE keys SET last_used = $1 WHERE id = $2 AND (last_used IS NULL OR last_used < $1)";
// One relay's word that a bridge left says nothing of the one where it is now.
const SEE_BRIDGE: &str = "INSERT INTO bridges \
    (id, user_name, client_id, name, platform, version, transport, first_seen, last_seen, gone, relay) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), \
    CAST($7 AS text), CAST($8 AS bigint), CAST($8 AS bigint), CAST($9 AS bigint), CAST($10 AS text) \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = $2 AND deleted + 2 >= $8) \
    AND (SELECT count(*) FROM bridges WHERE user_name = $2 AND id <> $1) < $11 \
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, platform = excluded.platform, version = excluded.version, \
    client_id = excluded.client_id, transport = excluded.transport, gone = excluded.gone, relay = excluded.relay, \
    last_seen = CASE WHEN bridges.last_seen > excluded.last_seen THEN bridges.last_seen ELSE excluded.last_seen END \
    WHERE excluded.gone IS NULL OR bridges.relay = excluded.relay";
const ADD: &str = "INSERT INTO usage (hour, user_name, token_id, bridge_id, model, exchanges, errors, cancelled, received, sent, \
    prompts_counted, prompt_tokens, completions_counted, completion_tokens, answered, first_byte_us, total_us) \
    SELECT CAST($1 AS bigint), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text), CAST($6 AS bigint), \
    CAST($7 AS bigint), CAST($8 AS bigint), CAST($9 AS bigint), CAST($10 AS bigint), CAST($11 AS bigint), \
    CAST($12 AS bigint), CAST($13 AS bigint), CAST($14 AS bigint), CAST($15 AS bigint), CAST($16 AS bigint), \
    CAST($17 AS bigint) \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = $2 AND deleted >= $18) \
    ON CONFLICT (hour, user_name, token_id, bridge_id, model) DO UPDATE SET \
    exchanges = usage.exchanges + excluded.exchanges, errors = usage.errors + excluded.errors, \
    cancelled = usage.cancelled + excluded.cancelled, received = usage.received + excluded.received, \
    sent = usage.sent + excluded.sent, prompts_counted = usage.prompts_counted + excluded.prompts_counted, \
    prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens, \
    completions_counted = usage.completions_counted + excluded.completions_counted, \
    completion_tokens = usage.completion_tokens + excluded.completion_tokens, \
    answered = usage.answered + excluded.answered, first_byte_us = usage.first_byte_us + excluded.first_byte_us, \
    total_us = usage.total_us + excluded.total_us";
// Of what a user used, by token; of what everybody used on a user's bridges, by user.
const OF_USER: &str = "SELECT (hour / $1) * $1, user_name, token_id, \
    COALESCE((SELECT label FROM tokens WHERE tokens.id = usage.token_id AND tokens.user_name = $2), \
    (SELECT label FROM keys WHERE keys.id = usage.token_id AND keys.user_name = $2)), bridge_id, \
    (SELECT name FROM bridges WHERE bridges.id = usage.bridge_id), \
    (SELECT bridges.user_name FROM bridges WHERE bridges.id = usage.bridge_id), model";
const GROUP_OF_USER: &str = "GROUP BY 1, user_name, token_id, bridge_id, model \
    ORDER BY 1 DESC, token_id, bridge_id, model LIMIT $5";
const ON_BRIDGES: &str = "SELECT (hour / $1) * $1, user_name, CAST(NULL AS text), CAST(NULL AS text), bridge_id, \
    (SELECT name FROM bridges WHERE bridges.id = usage.bridge_id), CAST($2 AS text), model";
const GROUP_ON_BRIDGES: &str =
    "GROUP BY 1, user_name, bridge_id, model ORDER BY 1 DESC, user_name, bridge_id, model LIMIT $5";
const SUMS: &str = "CAST(COALESCE(sum(exchanges), 0) AS bigint), CAST(COALESCE(sum(errors), 0) AS bigint), \
    CAST(COALESCE(sum(cancelled), 0) AS bigint), CAST(COALESCE(sum(received), 0) AS bigint), \
    CAST(COALESCE(sum(sent), 0) AS bigint), CAST(COALESCE(sum(prompts_counted), 0) AS bigint), \
    CAST(COALESCE(sum(prompt_tokens), 0) AS bigint), CAST(COALESCE(sum(completions_counted), 0) AS bigint), \
    CAST(COALESCE(sum(completion_tokens), 0) AS bigint), CAST(COALESCE(sum(answered), 0) AS bigint), \
    CAST(COALESCE(sum(first_byte_us), 0) AS bigint), CAST(COALESCE(sum(total_us), 0) AS bigint)";
// A day at a time.
const PRUNE_USAGE: &str = "DELETE FROM usage WHERE hour < $1 AND hour < (SELECT min(hour) FROM usage) + 86400";
// What was on its way when its user was deleted.
const PRUNE_DELETED_USAGE: &str = "DELETE FROM usage WHERE EXISTS \
    (SELECT 1 FROM users WHERE users.name = usage.user_name AND users.deleted >= usage.hour + 3600)";
const PRUNE_TOKENS: &str = "DELETE FROM tokens WHERE expires < $1 AND revoked IS NULL";
const PRUNE_KEYS: &str = "DELETE FROM keys WHERE expires < $1 OR revoked < $1";
const PRUNE_CODES: &str = "DELETE FROM codes WHERE expires < $1";
const PRUNE_BRIDGES: &str = "DELETE FROM bridges WHERE last_seen < $1";
// Room for those who come.
const PRUNE_MANY_BRIDGES: &str = "DELETE FROM bridges WHERE id IN (SELECT id FROM (SELECT id, \
    row_number() OVER (PARTITION BY user_name ORDER BY last_seen DESC) AS place FROM bridges) AS placed WHERE place > $1)";
const PRUNE_KICKS: &str = "DELETE FROM kicks WHERE revision < (SELECT number FROM revision WHERE one = 1) - 1000";
const PRUNE_WRITERS: &str = "DELETE FROM writers WHERE seen < $1";

/// Whose exchanges are added up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// When it began, seconds since 1970.
    pub hour: u64,
    /// The user.
    pub user: Arc<str>,
    /// The caller's token.
    pub token: Arc<str>,
    /// The bridge.
    pub bridge: Arc<str>,
    /// The model; empty, if it is not known.
    pub model: Box<str>,
}

/// Exchanges to be added to those of before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addition {
    /// When the token was issued, seconds since 1970: after the user was deleted, or before.
    pub issued: Option<u64>,
    /// What they add up to.
    pub sums: Sums,
}

/// What exchanges add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Exchanges that reached a bridge.
    pub exchanges: u64,
    /// Those of them that went wrong.
    pub errors: u64,
    /// Those whose caller left.
    pub cancelled: u64,
    /// Octets of request bodies.
    pub received: u64,
    /// Octets of response bodies.
    pub sent: u64,
    /// Exchanges whose prompt tokens are known, and these.
    pub prompts: Counted,
    /// Exchanges whose completion tokens are known, and these.
    pub completions: Counted,
    /// Exchanges whose answer began.
    pub answered: u64,
    /// Until then, all together; microseconds.
    pub first_byte_us: u64,
    /// Until the end, all together; microseconds.
    pub total_us: u64,
}

/// A sum over those exchanges of which it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Exchanges.
    pub exchanges: u64,
    /// What they add up to.
    pub sum: u64,
}

impl Counted {
    /// Adds what one exchange had, if that is known.
    pub fn add(&mut self, number: Option<u64>) {
        if let Some(number) = number {
            self.exchanges += 1;
            self.sum = self.sum.saturating_add(number);
        }
    }

    /// The sum; none, if nothing is known.
    pub fn known(self) -> Option<u64> {
        (self.exchanges > 0).then_some(self.sum)
    }
}

/// A token that was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenToken {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What it is good for.
    pub scopes: String,
    /// Seconds since 1970.
    pub issued: Option<u64>,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    /// When it was used last, seconds since 1970.
    pub used: u64,
}

/// A bridge that is here, or just left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBridge {
    /// The relay's id of it.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// Its own name of itself.
    pub client_id: Option<String>,
    /// The name by which callers reach it.
    pub name: String,
    /// Its operating system.
    pub platform: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// `ws` or `poll`.
    pub transport: &'static str,
    /// Seconds since 1970.
    pub seen: u64,
    /// Whether it left.
    pub gone: bool,
}

/// What a relay writes at once; written twice, it counts once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The process that writes it.
    pub writer: String,
    /// Rises with each batch of this process.
    pub number: u64,
    /// What was used.
    pub usage: Vec<(Key, Addition)>,
    /// Tokens that were used.
    pub tokens: Vec<SeenToken>,
    /// Keys that were used, by their ids, and when, seconds since 1970.
    pub keys: Vec<(String, u64)>,
    /// Bridges that came, are here, or left.
    pub bridges: Vec<SeenBridge>,
    /// What the provider of sign-in said of groups; one word for each user.
    pub memberships: Vec<Membership>,
}

/// Which usage is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// What the user used.
    User,
    /// What everybody used on the user's bridges.
    Bridges,
}

impl Whose {
    fn condition(self, user: &str) -> String {
        match self {
            Self::User => format!("user_name = {user}"),
            Self::Bridges => format!("bridge_id IN (SELECT id FROM bridges WHERE bridges.user_name = {user})"),
        }
    }
}

/// A line of usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// When the time begins that was added up, seconds since 1970.
    pub from: u64,
    /// Who used it.
    pub user: String,
    /// The token's id; none where it is not the user who asks.
    pub token: Option<String>,
    /// What the token is called.
    pub label: Option<String>,
    /// The bridge's id.
    pub bridge: String,
    /// The bridge's name, if it is still known.
    pub bridge_name: Option<String>,
    /// Whose bridge it is, if that is still known.
    pub owner: Option<String>,
    /// The model; empty, if it is not known.
    pub model: String,
    /// What was used.
    pub sums: Sums,
}

impl Store {
    /// Writes a batch, if it was not written before.
    ///
    /// # Errors
    /// `Away`; then it may or may not be written, and is to be written again.
    pub async fn record(&self, batch: &Batch) -> Result<(), StoreError> {
        let mark = [batch.writer.as_str().into(), batch.number.into(), now().into()];
        let mut statements = vec![Statement::new(MARK, mark).must_touch()];
        let mut users: Vec<_> = batch.tokens.iter().map(|token| token.user.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        let see_user = |user: &str| Statement::new(SEE_USER, [user.into(), now().into()]);
        statements.extend(users.into_iter().map(see_user));
        // Two relays that write the same rows must not wait for each other in a circle.
        statements.extend(sorted(&batch.tokens, |token| &token.id).map(see_token));
        let see_key = |(id, used): &(String, u64)| Statement::new(SEE_KEY, [(*used).into(), id.as_str().into()]);
        statements.extend(sorted(&batch.keys, |(id, _)| id).map(see_key));
        let see_bridge = |bridge| see_bridge(bridge, &batch.writer);
        statements.extend(sorted(&batch.bridges, |bridge| &bridge.id).map(see_bridge));
        statements.extend(sorted(&batch.usage, |(key, _)| key).map(add));
        statements.extend(shares::say(&batch.memberships));
        match self.driver.write(statements).await {
            // It stands there since the last time, whose answer was lost.
            Err(StoreError::Absent) => Ok(()),
            written => written,
        }
    }

    /// Usage from one time to another (seconds since 1970), added up over spans of so many seconds from 1970 on (whole hours); the
    /// newest [`MOST_ROWS`] lines.
    ///
    /// # Errors
    /// `Away`.
    pub async fn usage(
        &self,
        whose: Whose,
        user: &str,
        from: u64,
        to: u64,
        span: u64,
    ) -> Result<Vec<Used>, StoreError> {
        let (which, grouped) = match whose {
            Whose::User => (OF_USER, GROUP_OF_USER),
            Whose::Bridges => (ON_BRIDGES, GROUP_ON_BRIDGES),
        };
        let condition = whose.condition("$2");
        let sql = format!("{which}, {SUMS} FROM usage WHERE {condition} AND hour >= $3 AND hour < $4 {grouped}");
        let values = [span.into(), user.into(), from.into(), to.into(), MOST_ROWS.into()];
        let rows = self.driver.read(Statement::new(sql, values)).await?;
        rows.into_iter().map(read_used).collect()
    }

    /// All that together.
    ///
    /// # Errors
    /// `Away`.
    pub async fn total(&self, whose: Whose, user: &str, from: u64, to: u64) -> Result<Sums, StoreError> {
        let condition = whose.condition("$1");
        let sql = format!("SELECT {SUMS} FROM usage WHERE {condition} AND hour >= $2 AND hour < $3");
        let values = [user.into(), from.into(), to.into()];
        let rows = self.driver.read(Statement::new(sql, values)).await?;
        let mut row = rows.into_iter().next().ok_or_else(StoreError::unexpected)?;
        read_sums(&mut row)
    }

    /// Forgets usage before the one time, and tokens and keys that ended and bridges that were last seen before the other; seconds since 1970.
    ///
    /// # Errors
    /// `Away`.
    pub async fn prune(&self, usage: u64, traces: u64) -> Result<(), StoreError> {
        self.until_nothing_is_left(Statement::new(PRUNE_USAGE, [usage.into()]))
            .await?;
        let mut statements = vec![
            Statement::new(PRUNE_DELETED_USAGE, []),
            Statement::new(PRUNE_TOKENS, [traces.into()]),
            Statement::new(PRUNE_KEYS, [traces.into()]),
            Statement::new(PRUNE_CODES, [now().into()]),
            Statement::new(PRUNE_BRIDGES, [traces.into()]),
            Statement::new(PRUNE_MANY_BRIDGES, [(MOST_BRIDGES / 2).into()]),
            Statement::new(PRUNE_KICKS, []),
            Statement::new(PRUNE_WRITERS, [(now() - WRITER_LIFE).into()]),
        ];
        statements.extend(shares::prune());
        self.driver.write(statements).await
    }
}

fn sorted<T, K: Ord>(entries: &[T], key: impl Fn(&T) -> &K) -> impl Iterator<Item = &T> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by(|one, other| key(one).cmp(key(other)));
    sorted.into_iter()
}

fn see_token(token: &SeenToken) -> Statement {
    let values = [
        token.id.as_str().into(),
        token.user.as_str().into(),
        token.scopes.as_str().into(),
        token.issued.into(),
        token.expires.into(),
        token.used.into(),
    ];
    Statement::new(SEE_TOKEN, values)
}

fn see_bridge(bridge: &SeenBridge, writer: &str) -> Statement {
    let values = [
        bridge.id.as_str().into(),
        bridge.user.as_str().into(),
        bridge.client_id.as_deref().into(),
        bridge.name.as_str().into(),
        bridge.platform.as_deref().into(),
        bridge.version.as_deref().into(),
        bridge.transport.into(),
        bridge.seen.into(),
        bridge.gone.then_some(bridge.seen).into(),
        writer.into(),
        MOST_BRIDGES.into(),
    ];
    Statement::new(SEE_BRIDGE, values)
}

fn add((key, Addition { issued, sums }): &(Key, Addition)) -> Statement {
    let values: [Value; 18] = [
        key.hour.into(),
        (&*key.user).into(),
        (&*key.token).into(),
        (&*key.bridge).into(),
        (&*key.model).into(),
        sums.exchanges.into(),
        sums.errors.into(),
        sums.cancelled.into(),
        sums.received.into(),
        sums.sent.into(),
        sums.prompts.exchanges.into(),
        sums.prompts.sum.into(),
        sums.completions.exchanges.into(),
        sums.completions.sum.into(),
        sums.answered.into(),
        sums.first_byte_us.into(),
        sums.total_us.into(),
        issued.unwrap_or(0).into(),
    ];
    Statement::new(ADD, values)
}

fn read_used(mut row: Row) -> Result<Used, StoreError> {
    Ok(Used {
        from: row.number()?,
        user: row.text()?,
        token: row.text_or_null()?,
        label: row.text_or_null()?,
        bridge: row.text()?,
        bridge_name: row.text_or_null()?,
        owner: row.text_or_null()?,
        model: row.text()?,
        sums: read_sums(&mut row)?,
    })
}

fn read_sums(row: &mut Row) -> Result<Sums, StoreError> {
    let (exchanges, errors, cancelled) = (row.number()?, row.number()?, row.number()?);
    let (received, sent) = (row.number()?, row.number()?);
    let mut counted = || {
        Ok::<_, StoreError>(Counted {
            exchanges: row.number()?,
            sum: row.number()?,
        })
    };
    let (prompts, completions) = (counted()?, counted()?);
    Ok(Sums {
        exchanges,
        errors,
        cancelled,
        received,
        sent,
        prompts,
        completions,
        answered: row.number()?,
        first_byte_us: row.number()?,
        total_us: row.number()?,
    })
}

//! Every key there is: one table for the file, the environment, the defaults
//! and the example.

use std::fmt::Write as _;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text.
    Text,
    /// Texts; separated by commas in the environment.
    List,
    /// A number, not negative.
    Number,
    /// `true` or `false`.
    Switch,
    /// A text that stands in the environment alone.
    Secret,
    /// A table that is read as a whole; in the file alone.
    Table,
}

impl Kind {
    /// For a message that says what was expected.
    pub(super) const fn expected(self) -> &'static str {
        match self {
            Self::Text | Self::Secret => "a text in quotes",
            Self::List => "a list of texts",
            Self::Number => "a whole number",
            Self::Switch => "true or false",
            Self::Table => "a table",
        }
    }
}

/// A key, its variable, its default as it stands in TOML (empty: none), and what
/// it is for.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) variable: &'static str,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
    /// What the example shows where there is no default.
    example: &'static str,
    pub(super) about: &'static str,
}

const fn key(
    name: &'static str,
    variable: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { name, variable, kind, default, example, about }
}

/// In the order of the example: keys of the root first, then table by table.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("listen", "DEZKY_LISTEN", Kind::Text, "\"127.0.0.1:8080\"", "",
        "The address and port to listen on. Any other than a loopback address needs an\noperator token."),
    key("operator_token", "DEZKY_OPERATOR_TOKEN", Kind::Secret, "", "",
        "The operators' bearer token. Without one the server answers everybody, and\nstarts on a loopback address only."),
    key("operator_token_file", "DEZKY_OPERATOR_TOKEN_FILE", Kind::Text, "", "\"/run/secrets/dezky-operator-token\"",
        "The same from a file; a newline at its end does not count."),
    key("trusted_proxies", "DEZKY_TRUSTED_PROXIES", Kind::List, "[]", "",
        "Addresses or networks of reverse proxies whose X-Forwarded-For is believed,\nsuch as [\"10.0.0.0/8\", \"::1\"]."),
    key("ingest_enabled", "AUDIT_INGEST_ENABLED", Kind::Switch, "true", "",
        "With false no worker starts; webhooks still answer."),
    key("max_body_bytes", "DEZKY_MAX_BODY_BYTES", Kind::Number, "16777216", "",
        "The largest body of a webhook, 1 to 1073741824. Stalwart knows no bound for a\nbatch, and loses one that is refused."),
    key("shutdown_timeout_seconds", "DEZKY_SHUTDOWN_TIMEOUT_SECONDS", Kind::Number, "10", "",
        "How long requests and workers have to finish at the end, 1 to 3600."),
    key("http.max_connections", "DEZKY_HTTP_MAX_CONNECTIONS", Kind::Number, "1024", "",
        "The most connections at a time, 1 to 100000. When all places are taken, one that\nhas kept the server waiting for a second or longer makes way for the next: of those from\nthe address (in IPv6 the /64) with the most, the one that has done so for longest."),
    key("http.idle_seconds", "DEZKY_HTTP_IDLE_SECONDS", Kind::Number, "100", "",
        "How long a connection may be without a request, from its beginning or its last\nanswer to the end of the next request's head, 1 to 3600. Longer than clients keep\ntheirs, so that none sends into one that just ended."),
    key("http.write_seconds", "DEZKY_HTTP_WRITE_SECONDS", Kind::Number, "30", "",
        "How long a client may take nothing of an answer, 1 to 3600."),
    key("http.body_seconds", "DEZKY_HTTP_BODY_SECONDS", Kind::Number, "30", "",
        "How long a request's body may take, 1 to 3600. Stalwart waits 30 s for the answer."),
    key("http.body_stall_seconds", "DEZKY_HTTP_BODY_STALL_SECONDS", Kind::Number, "5", "",
        "Of a body 1024 bytes a second must come, looked at in steps of so many seconds, 1 to\n3600."),
    key("http.body_memory_bytes", "DEZKY_HTTP_BODY_MEMORY_BYTES", Kind::Number, "268435456", "",
        "The memory of bodies of webhooks and of POST /audit, 1048576 to 1099511627776: one half for the\nfirst 64 KiB of each, the other for what large ones have beyond. One address gets\nhalf of either at most."),
    key("store.url", "DEZKY_STORE", Kind::Text, "\"sqlite://dezky.db\"", "",
        "Where the log is kept: sqlite:// and the path of a file, literally; with three\nslashes it is absolute (sqlite:///var/lib/dezky/audit.db). Or the URL of a server:\npostgres://dezky@db.example.com/platform?sslmode=verify-full or\nmongodb://dezky@db.example.com/platform?replicaSet=rs0&tls=true, in the environment\nwith a password. A URL as the key store at the root of the file does the same."),
    key("store.password", "DEZKY_STORE_PASSWORD", Kind::Secret, "", "",
        "The password of the user that the URL names, as it is."),
    key("store.password_file", "DEZKY_STORE_PASSWORD_FILE", Kind::Text, "", "\"/run/secrets/dezky-store-password\"",
        "The same from a file; a newline at its end does not count."),
    key("store.migrate", "DEZKY_STORE_MIGRATE", Kind::Switch, "true", "",
        "With false a schema that is not up to date stops the start: `dezky-server migrate`\nmends it."),
    key("store.pooler", "DEZKY_STORE_POOLER", Kind::Text, "\"none\"", "",
        "transaction where PgBouncer or the like gives each transaction another connection\nof PostgreSQL, else none."),
    key("store.max_connections", "DEZKY_STORE_MAX_CONNECTIONS", Kind::Number, "10", "",
        "The most connections to a server, 1 to 1000; PostgreSQL has one more, to be told of\nwhat others append."),
    key("store.acquire_timeout_seconds", "DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", Kind::Number, "5", "",
        "How long to wait for a connection to a server, 1 to 300."),
    key("store.lock_timeout_seconds", "DEZKY_STORE_LOCK_TIMEOUT_SECONDS", Kind::Number, "5", "",
        "How long a writer waits for another one, 1 to 300."),
    key("store.statement_timeout_seconds", "DEZKY_STORE_STATEMENT_TIMEOUT_SECONDS", Kind::Number, "30", "",
        "How long a statement on a server may take, 1 to 3600."),
    key("store.idle_timeout_seconds", "DEZKY_STORE_IDLE_TIMEOUT_SECONDS", Kind::Number, "5", "",
        "How long a transaction may wait for its next statement before PostgreSQL ends it,\n1 to 300: a writer that stalls holds the others up no longer."),
    key("head.path", "DEZKY_HEAD_PATH", Kind::Text, "", "\"/var/lib/dezky/dezky.head\"",
        "The file in which the server notes how far the log has come, so that a store that\nwas restored from a backup is noticed. Unless set it is beside an SQLite file, with\n.head at its end, else dezky.head in the working folder."),
    key("log.level", "DEZKY_LOG", Kind::Text, "\"info\"", "",
        "error, warn, info, debug or trace, or by module: \"info,dezky_ingest=debug\"."),
    key("log.format", "DEZKY_LOG_FORMAT", Kind::Text, "\"text\"", "",
        "text or json, on the standard error."),
    key("spool.path", "DEZKY_SPOOL_PATH", Kind::Text, "", "\"/var/lib/dezky/webhooks.spool\"",
        "A file in which webhooks are kept while the store is away, on a disk of this\nmachine; its folder must exist. Without one they are answered with 503 then, and\nlost where the sender gives up before the store is back. One process, one file."),
    key("spool.max_bytes", "DEZKY_SPOOL_MAX_BYTES", Kind::Number, "67108864", "",
        "The largest size of that file, 1048576 to 1099511627776. A full one asks senders\nto come again."),
    key("spool.max_events", "DEZKY_SPOOL_MAX_EVENTS", Kind::Number, "100000", "",
        "The most events in it, 1 to 100000000."),
    key("flags.poll_ms", "DEZKY_FLAGS_POLL_MS", Kind::Number, "500", "",
        "How often the flags that decide are compared with the store, in milliseconds, 10\nto 3600000. PostgreSQL and MongoDB tell of changes at once all the same."),
    key("flags.file", "DEZKY_FLAGS_FILE", Kind::Text, "", "\"/var/lib/dezky/flags.json\"",
        "A file in which the server keeps what decides of the flags, for its user alone. It\ndecides by them if the flags can't be read at the start; while the database can't be\nopened at all it does not start. One process, one file; its folder must exist."),
    key("stalwart.secret", "STALWART_WEBHOOK_SECRET", Kind::Secret, "", "",
        "The secret that signs the webhook of Stalwart. Without any there is no endpoint."),
    key("stalwart.secret_files", "DEZKY_STALWART_SECRET_FILES", Kind::List, "[]", "",
        "Files with one secret each, beside or instead of the variable: a running\nStalwart signs with the old one until it restarts, so keep both for a while."),
    key("stalwart.max_age_seconds", "DEZKY_STALWART_MAX_AGE_SECONDS", Kind::Number, "0", "",
        "Events that are older go to the quarantine, up to 315360000; 0: none does. Make it\nlonger than discardAfter, for which Stalwart keeps what it could not send."),
    key("stalwart.max_body_events", "DEZKY_STALWART_MAX_BODY_EVENTS", Kind::Number, "131072", "",
        "The most events of one body, 1 to 10000000; more are answered 413, and none of them is\nkept. A body of 16 MiB has some 110000 of Stalwart's smallest."),
    key("ocis.log_path", "OCIS_AUDIT_LOG_PATH", Kind::Text, "", "\"/var/log/ocis/audit.log\"",
        "The audit log file of oCIS. Without it no worker follows one."),
    key("ocis.poll_seconds", "DEZKY_OCIS_POLL_SECONDS", Kind::Number, "5", "",
        "How often it is read, 1 to 3600."),
    key("ocis.max_line_bytes", "DEZKY_OCIS_MAX_LINE_BYTES", Kind::Number, "1048576", "",
        "Of longer lines the long values are cut, 1024 to 67108864. What is no JSON object\nor longer than 67108864 goes to the quarantine."),
    key("ocis.service_accounts", "DEZKY_OCIS_SERVICE_ACCOUNTS", Kind::List, "[]", "",
        "The ids of oCIS' service accounts (OCIS_SERVICE_ACCOUNT_ID): what they do is done by\nthe system, not by a person."),
    key("ocis.spaces", "DEZKY_OCIS_SPACES", Kind::List, "[]", "",
        "Whose spaces are: \"<space id>=<tenant's slug>\" each, the id with or without its\nstorage (<storage>$<space>). Beats the names of spaces, which users can change."),
    key("authentik.url", "DEZKY_AUTHENTIK_URL", Kind::Text, "", "\"https://id.example.com\"",
        "The base URL of Authentik, whose events are polled. Without it nothing is polled."),
    key("authentik.token", "DEZKY_AUTHENTIK_TOKEN", Kind::Secret, "", "",
        "The key of an API token of Authentik that may view events, users and groups; an\napp password is refused."),
    key("authentik.token_file", "DEZKY_AUTHENTIK_TOKEN_FILE", Kind::Text, "", "\"/run/secrets/authentik-token\"",
        "The same from a file; a newline at its end does not count."),
    key("authentik.poll_seconds", "DEZKY_POLL_SECONDS", Kind::Number, "60", "",
        "How often Authentik is polled, 1 to 3600."),
    key("authentik.admin_groups", "DEZKY_AUTHENTIK_ADMIN_GROUPS", Kind::List, "[\"dezky-platform-admins\"]", "",
        "Groups that never name a tenant; superusers' groups never do."),
];

/// The variable that names the file itself.
pub(crate) const CONFIG_VARIABLE: &str = "DEZKY_CONFIG";

/// The variables that name the ends of `copy` and `import-origin`: everybody on the
/// machine can read a password in the arguments of a process.
pub(crate) const FROM_VARIABLE: &str = "DEZKY_FROM";
pub(crate) const TO_VARIABLE: &str = "DEZKY_TO";

/// What further instances have, below `stalwart.instances.<name>`.
pub(super) const INSTANCE_LEAVES: &[(&str, Kind)] =
    &[("secret", Kind::Secret), ("secret_file", Kind::Text), ("secret_files", Kind::List)];

pub(super) const INSTANCES: &str = "stalwart.instances";
const INSTANCE_VARIABLE: (&str, &str) = ("DEZKY_STALWART_", "_SECRET");

/// What sources that are declared have, below `sources.<name>`.
pub(super) const SOURCE_LEAVES: &[(&str, Kind)] = &[
    ("secret", Kind::Secret),
    ("secret_file", Kind::Text),
    ("secret_files", Kind::List),
    ("path", Kind::Text),
    ("poll_seconds", Kind::Number),
    ("max_line_bytes", Kind::Number),
    ("map", Kind::Table),
    ("signature", Kind::Table),
];

pub(super) const SOURCES: &str = "sources";
pub(super) const STORE: &str = "store";
const SOURCE_VARIABLE: (&str, &str) = ("DEZKY_SOURCE_", "_SECRET");

/// The kind of the key of that name, instances' keys included.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return Some(key.kind);
    }
    if let Some((_, leaf)) = source_leaf(name) {
        return SOURCE_LEAVES.iter().find(|(known, _)| *known == leaf).map(|(_, kind)| *kind);
    }
    let (_, leaf) = name.strip_prefix(INSTANCES)?.strip_prefix('.')?.split_once('.')?;
    INSTANCE_LEAVES.iter().find(|(known, _)| *known == leaf).map(|(_, kind)| *kind)
}

/// How the key of that name gives a secret: as its value ([`Kind::Secret`]), or as the paths
/// of files that hold one each. `None` for every other key.
pub(super) fn holder_of_secret(name: &str) -> Option<Kind> {
    let kind = kind_of(name)?;
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let is_file = ["secret_file", "secret_files", "token_file", "password_file"]
        .iter()
        .any(|of_secret| leaf.ends_with(of_secret));
    (kind == Kind::Secret || is_file).then_some(kind)
}

/// Whether the operator makes up the secret of that key, rather than another system.
pub(super) fn is_ours_to_choose(name: &str) -> bool {
    !name.starts_with("store.") && !name.starts_with("authentik.")
}

/// The source and the leaf that a name below `sources` consists of. Names of sources may
/// have dots, those of leaves have none.
fn source_leaf(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(SOURCES)?.strip_prefix('.')?.rsplit_once('.')
}

/// Whether `name` is a table of keys.
pub(super) fn is_table(name: &str) -> bool {
    let dotted = format!("{name}.");
    name == INSTANCES
        || KEYS.iter().any(|key| key.name.starts_with(&dotted))
        || is_instance_table(name)
}

/// Whether a table is that of one instance.
pub(super) fn is_instance_table(name: &str) -> bool {
    name.strip_prefix(INSTANCES)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|instance| !instance.contains('.'))
}

/// The variable of the key of that name.
pub(super) fn variable_of(name: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return key.variable.to_owned();
    }
    if let Some((source, _)) = source_leaf(name) {
        return source_variable(source);
    }
    let instance = name
        .strip_prefix(INSTANCES)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.split('.').next())
        .unwrap_or("NAME");
    let (before, after) = INSTANCE_VARIABLE;
    format!("{before}{}{after}", instance.to_uppercase().replace('-', "_"))
}

/// The variable of a declared source's secret.
pub(super) fn source_variable(source: &str) -> String {
    let (before, after) = SOURCE_VARIABLE;
    format!("{before}{}{after}", source.to_uppercase().replace(['-', '.'], "_"))
}

/// The source, as it might be called, whose secret stands in that variable.
pub(super) fn source_of_variable(variable: &str) -> Option<String> {
    let (before, after) = SOURCE_VARIABLE;
    let name = variable.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty()).then(|| name.to_lowercase().replace('_', "-"))
}

/// The instance whose secret stands in that variable.
pub(super) fn instance_of_variable(variable: &str) -> Option<String> {
    let (before, after) = INSTANCE_VARIABLE;
    let name = variable.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty()).then(|| name.to_lowercase().replace('_', "-"))
}

/// The known name that is most like `name`.
pub(super) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().min_by_key(|candidate| distance(name, candidate))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A file with every key, its default and its variable.
pub fn example() -> String {
    let mut text = String::from(
        "# Configuration of dezky-server. Every key is optional; what stands here is the\n\
         # default. A variable of the environment beats the file; an empty one counts as\n\
         # unset. Secrets stand in the environment or in files of their own, never here.\n",
    );
    let mut table = "";
    for key in KEYS {
        let (in_table, leaf) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if in_table != table {
            table = in_table;
            let _ = write!(text, "\n[{table}]\n");
        }
        text.push('\n');
        for line in key.about.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = match (key.kind, key.default) {
            (Kind::Secret, _) => writeln!(text, "# Environment only: {}", key.variable),
            (_, "") => {
                writeln!(text, "# Environment: {}\n# {leaf} = {}", key.variable, key.example)
            }
            (_, default) => {
                writeln!(text, "# Environment: {}\n{leaf} = {default}", key.variable)
            }
        };
    }
    text.push_str(
        "\n# Further instances of Stalwart, each served at /ingest/stalwart/<name>/webhook.\n\
         # Environment: DEZKY_STALWART_EU2_SECRET for the secret of the instance eu2.\n\
         # [stalwart.instances.eu2]\n\
         # secret_file = \"/run/secrets/stalwart-eu2\"\n\
         # secret_files = [\"/run/secrets/stalwart-eu2\", \"/run/secrets/stalwart-eu2-old\"]\n\
         \n# Any other system: signed posts at /ingest/<name>/webhook, a file of JSON lines, or\n\
         # both. docs/sources.md explains the map. Environment: DEZKY_SOURCE_SHOP_SECRET for\n\
         # the secret of the source shop.\n\
         # [sources.shop]\n\
         # secret_file = \"/run/secrets/shop\"\n\
         # secret_files = [\"/run/secrets/shop\", \"/run/secrets/shop-old\"]\n\
         # path = \"/var/log/shop/audit.ndjson\"\n\
         # poll_seconds = 5\n\
         # max_line_bytes = 1048576\n\
         # signature = { scheme = \"github\" }\n\
         # [sources.shop.map]\n\
         # action = \"/event\"\n\
         # id = \"/uuid\"\n\
         # at = \"/time\"\n\
         # actor = { id = \"/user/id\", email = \"/user/email\", ip = \"/user/ip\" }\n\
         # resource = { type = \"order\", id = \"/order/id\" }\n\
         # tenant = \"/tenant\"\n",
    );
    text
}

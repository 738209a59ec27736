//! The keys: one table, from which the file, the environment, the defaults, the checks, the
//! example and the documentation are read. Each section declares its own part.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text.
    Text,
    /// Texts; separated by commas in the environment.
    List,
    /// A whole number from the first to the second, inclusive.
    Number(u64, u64),
    /// `true` or `false`.
    Switch,
    /// Text that is set in the environment only.
    Secret,
    /// A table that is read as a whole, from the file only.
    Table,
}

impl Kind {
    /// The expected value, for error messages.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text | Self::Secret => "a text in quotes".into(),
            Self::List => "a list of texts".into(),
            Self::Number(min, max) => format!("a whole number, {min} to {max}"),
            Self::Switch => "true or false".into(),
            Self::Table => "a table".into(),
        }
    }
}

/// A number of seconds, up to an hour.
pub(super) const SECONDS: Kind = Kind::Number(1, 3_600);
/// The bound of a line, in bytes.
pub(super) const LINE_BYTES: Kind = Kind::Number(1_024, 64 << 20);

/// A key with its environment variable, its default as TOML (empty: none) and its description.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: Cow<'static, str>,
    pub(super) variable: Cow<'static, str>,
    pub(super) kind: Kind,
    pub(super) default: Cow<'static, str>,
    /// The value that the example shows if there is no default.
    example: &'static str,
    /// The description, with `{min}` and `{max}` for the bounds of a number.
    about: Cow<'static, str>,
}

pub(super) const fn key(
    name: &'static str,
    variable: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key {
        name: Cow::Borrowed(name),
        variable: Cow::Borrowed(variable),
        kind,
        default: Cow::Borrowed(default),
        example,
        about: Cow::Borrowed(about),
    }
}

impl Key {
    /// A key that has a default.
    pub(super) fn new(
        name: String,
        variable: String,
        kind: Kind,
        default: String,
        about: String,
    ) -> Self {
        let (name, variable) = (name.into(), variable.into());
        Self { name, variable, kind, default: default.into(), example: "", about: about.into() }
    }

    /// The description, bounds included.
    pub(super) fn about(&self) -> String {
        match self.kind {
            Kind::Number(min, max) => {
                self.about.replace("{min}", &min.to_string()).replace("{max}", &max.to_string())
            }
            _ => self.about.clone().into_owned(),
        }
    }
}

/// The keys of all sections, in the order of the example.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys(pub(super) &'static [&'static [Key]]);

/// The variable that names the configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "DEZKY_CONFIG";

/// The variables for the URLs of `copy` and `import-origin`, because everybody on the machine can
/// read a password in the arguments of a process.
pub(crate) const FROM_VARIABLE: &str = "DEZKY_FROM";
pub(crate) const TO_VARIABLE: &str = "DEZKY_TO";

/// The keys of a further instance, below `stalwart.instances.<name>`.
pub(super) const INSTANCE_LEAVES: &[(&str, Kind)] =
    &[("secret", Kind::Secret), ("secret_file", Kind::Text), ("secret_files", Kind::List)];

pub(super) const INSTANCES: &str = "stalwart.instances";
const INSTANCE_VARIABLE: (&str, &str) = ("DEZKY_STALWART_", "_SECRET");

/// The keys of a declared source, below `sources.<name>`.
pub(super) const SOURCE_LEAVES: &[(&str, Kind)] = &[
    ("secret", Kind::Secret),
    ("secret_file", Kind::Text),
    ("secret_files", Kind::List),
    ("path", Kind::Text),
    ("poll_seconds", SECONDS),
    ("max_line_bytes", LINE_BYTES),
    ("map", Kind::Table),
    ("signature", Kind::Table),
];

/// The keys of an issuer, below `auth.issuers.<name>`.
pub(super) const ISSUER_LEAVES: &[(&str, Kind)] = &[
    ("preset", Kind::Text),
    ("issuer", Kind::Text),
    ("audiences", Kind::List),
    ("operator_audiences", Kind::List),
    ("clients", Kind::List),
    ("algorithms", Kind::List),
    ("discovery_url", Kind::Text),
    ("jwks_uri", Kind::Text),
    ("subject_claim", Kind::Text),
    ("require_at_jwt", Kind::Switch),
];

pub(super) const ISSUERS: &str = "auth.issuers";
pub(super) const SOURCES: &str = "sources";
pub(super) const STORE: &str = "store";
pub(super) const STORE_URL: &str = "store.url";
const SOURCE_VARIABLE: (&str, &str) = ("DEZKY_SOURCE_", "_SECRET");

impl Keys {
    /// Each key in turn.
    pub(super) fn iter(self) -> impl Iterator<Item = &'static Key> {
        self.0.iter().copied().flatten()
    }

    /// The key of that name.
    pub(super) fn named(self, name: &str) -> Option<&'static Key> {
        self.iter().find(|key| key.name == name)
    }

    /// The key of that environment variable.
    pub(super) fn of_variable(self, variable: &str) -> Option<&'static Key> {
        self.iter().find(|key| key.variable == variable)
    }

    /// The kind of a key, those of instances and sources included.
    pub(super) fn kind_of(self, name: &str) -> Option<Kind> {
        if let Some(key) = self.named(name) {
            return Some(key.kind);
        }
        if let Some((_, leaf)) = source_leaf(name) {
            return SOURCE_LEAVES.iter().find(|(known, _)| *known == leaf).map(|(_, kind)| *kind);
        }
        if let Some(rest) = name.strip_prefix(ISSUERS) {
            let (_, leaf) = rest.strip_prefix('.')?.split_once('.')?;
            return ISSUER_LEAVES.iter().find(|(known, _)| *known == leaf).map(|(_, kind)| *kind);
        }
        let (_, leaf) = name.strip_prefix(INSTANCES)?.strip_prefix('.')?.split_once('.')?;
        INSTANCE_LEAVES.iter().find(|(known, _)| *known == leaf).map(|(_, kind)| *kind)
    }

    /// The kind of a key that gives a secret, as its value ([`Kind::Secret`]) or as the paths of
    /// files that hold one each. `None` for every other key.
    pub(super) fn holder_of_secret(self, name: &str) -> Option<Kind> {
        let kind = self.kind_of(name)?;
        let leaf = name.rsplit('.').next().unwrap_or(name);
        let is_file = ["secret_file", "secret_files", "token_file", "password_file"]
            .iter()
            .any(|of_secret| leaf.ends_with(of_secret));
        (kind == Kind::Secret || is_file).then_some(kind)
    }

    /// Whether the key names a file, or several, which are only read.
    pub(super) fn is_read_file(self, name: &str) -> bool {
        let is_source_log = source_leaf(name).is_some_and(|(_, leaf)| leaf == "path");
        let holder = self.holder_of_secret(name);
        name == "ocis.log_path" || is_source_log || holder.is_some_and(|kind| kind != Kind::Secret)
    }

    /// Whether `name` is a table of keys.
    pub(super) fn is_table(self, name: &str) -> bool {
        let dotted = format!("{name}.");
        name == INSTANCES
            || name == ISSUERS
            || is_issuer_table(name)
            || self.iter().any(|key| key.name.starts_with(&dotted))
            || is_instance_table(name)
    }

    /// The environment variable of a key.
    pub(super) fn variable_of(self, name: &str) -> String {
        if let Some(key) = self.named(name) {
            return key.variable.clone().into_owned();
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

    /// A file with every key, its default and its variable.
    pub(super) fn example(self) -> String {
        let mut text = String::from(
            "# Configuration of dezky-server. Every key is optional; the values below are the\n\
             # defaults. Environment variables override this file; an empty one counts as\n\
             # unset. Secrets are set in the environment or in separate files, never here.\n",
        );
        let mut table = "";
        for key in self.iter() {
            let (in_table, leaf) = key.name.rsplit_once('.').unwrap_or(("", &key.name));
            if in_table != table {
                table = in_table;
                let _ = write!(text, "\n[{table}]\n");
            }
            text.push('\n');
            for line in key.about().lines() {
                let _ = writeln!(text, "# {line}");
            }
            let _ = match (key.kind, &*key.default) {
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
             \n# Identity providers whose access tokens are accepted. docs/authentication.md has a\n\
             # recipe for each preset: authentik, keycloak, zitadel, dex, entra, generic.\n\
             # [auth.issuers.main]\n\
             # preset = \"keycloak\"\n\
             # issuer = \"https://id.example.com/realms/acme\"\n\
             # audiences = [\"dezky-portal\", \"dezky-operator\"]\n\
             # operator_audiences = [\"dezky-operator\"]\n\
             # clients = []\n\
             # algorithms = [\"RS256\", \"ES256\"]\n\
             # discovery_url = \"https://id.example.com/realms/acme/.well-known/openid-configuration\"\n\
             # jwks_uri = \"https://id.example.com/realms/acme/protocol/openid-connect/certs\"\n\
             # subject_claim = \"sub\"\n\
             # require_at_jwt = false\n\
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
}

/// Whether the operator chooses the secret of that key, rather than another system.
pub(super) fn is_ours_to_choose(name: &str) -> bool {
    !name.starts_with("store.") && !name.starts_with("authentik.")
}

/// The source and the leaf that a name below `sources` consists of. Names of sources may
/// have dots, those of leaves have none.
fn source_leaf(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(SOURCES)?.strip_prefix('.')?.rsplit_once('.')
}

/// Whether the table is that of one issuer.
pub(super) fn is_issuer_table(name: &str) -> bool {
    name.strip_prefix(ISSUERS)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|issuer| !issuer.contains('.'))
}

/// Whether the table is that of one instance.
pub(super) fn is_instance_table(name: &str) -> bool {
    name.strip_prefix(INSTANCES)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|instance| !instance.contains('.'))
}

/// The variable of a declared source's secret.
pub(super) fn source_variable(source: &str) -> String {
    let (before, after) = SOURCE_VARIABLE;
    format!("{before}{}{after}", source.to_uppercase().replace(['-', '.'], "_"))
}

/// A name of the source whose secret is in that variable, for messages.
pub(super) fn source_of_variable(variable: &str) -> Option<String> {
    let (before, after) = SOURCE_VARIABLE;
    let name = variable.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty()).then(|| name.to_lowercase().replace('_', "-"))
}

/// The instance whose secret is in that variable.
pub(super) fn instance_of_variable(variable: &str) -> Option<String> {
    let (before, after) = INSTANCE_VARIABLE;
    let name = variable.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty()).then(|| name.to_lowercase().replace('_', "-"))
}

/// The known name of which `name` is probably a misspelling, as a question; else
/// `where_all_are`.
pub(super) fn hint<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    where_all_are: &str,
) -> String {
    let closest = known.into_iter().map(|known| (distance(name, known), known)).min();
    match closest {
        // If more than a quarter differs, it is another word.
        Some((distance, known)) if distance <= (known.chars().count() / 4).max(2) => {
            format!("did you mean {known}?")
        }
        _ => where_all_are.to_owned(),
    }
}

/// The Levenshtein distance.
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

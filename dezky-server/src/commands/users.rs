use clap::{Args, Subcommand};
use dezky::Platform;
use dezky_core::directory::{
    Edit, Identity, NewUser, TenantKey, User, UserCursor, UserKey, UserPatch, UserQuery,
};
use serde_json::json;

use super::{failed, on_platform, operator, print};
use crate::config::Settings;
use crate::failure::Failure;
use crate::render::table::{printable, table};

/// `users …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the users, newest login first
    List,
    /// Add a user before their first login
    ///
    /// Identities are the user's ids in other systems; through them events of those
    /// systems find the tenant.
    #[command(
        after_help = "Example:\n  dezky-server users add --issuer https://id.example.com/application/o/portal/ --subject 5f2c… \\\n      --email ana@acme.example --tenant acme --identity ocis:4c510ada-c86b-4815-8820-42cdf82c3d51"
    )]
    Add(Add),
    /// Make a user a platform administrator
    GrantAdmin(Who),
    /// Revoke that from a user
    RevokeAdmin(Who),
}

/// A user: by id, or by issuer and subject.
#[derive(Debug, Args)]
pub(crate) struct Who {
    /// The user's id
    #[arg(required_unless_present = "subject", conflicts_with_all = ["issuer", "subject"])]
    id: Option<String>,
    /// The issuer of the user's tokens
    #[arg(long, value_name = "URL", requires = "subject")]
    issuer: Option<String>,
    /// The user's subject at the issuer
    #[arg(long, value_name = "TEXT", requires = "issuer")]
    subject: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The issuer of the user's tokens: their exact `iss`
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The user's subject at the issuer: their `sub`
    #[arg(long, value_name = "TEXT")]
    subject: String,
    /// The e-mail address
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// The name
    #[arg(long)]
    name: Option<String>,
    /// A tenant of the user, by slug; repeat it for more
    #[arg(long = "tenant", value_name = "SLUG")]
    tenants: Vec<String>,
    /// An id in another system, such as ocis:ID; repeat it for more
    #[arg(long = "identity", value_name = "SYSTEM:ID", value_parser = identity)]
    identities: Vec<Identity>,
}

fn identity(text: &str) -> Result<Identity, String> {
    let (system, id) =
        text.split_once(':').ok_or("must be a system and an id, such as ocis:4c510ada-…")?;
    Ok(Identity { system: system.to_owned(), id: id.to_owned() })
}

/// `users`.
pub(crate) async fn run(
    settings: &Settings,
    command: Command,
    as_json: bool,
) -> Result<(), Failure> {
    on_platform(settings, async |platform| carry_out(platform, command, as_json).await).await
}

async fn carry_out(platform: &Platform, command: Command, as_json: bool) -> Result<(), Failure> {
    match command {
        Command::List => list(platform, as_json).await,
        Command::Add(add) => {
            let new = add.user(platform).await?;
            let by = Edit::by(operator());
            show(&platform.directory.create_user(new, &by).await.map_err(failed)?, as_json)
        }
        Command::GrantAdmin(who) => set_admin(platform, &who, true, as_json).await,
        Command::RevokeAdmin(who) => set_admin(platform, &who, false, as_json).await,
    }
}

impl Add {
    async fn user(self, platform: &Platform) -> Result<NewUser, Failure> {
        let mut tenant_ids = Vec::new();
        for slug in &self.tenants {
            let found = platform.directory.store().tenant(TenantKey::Slug(slug)).await;
            let tenant = found.map_err(failed)?;
            let tenant = tenant.ok_or_else(|| {
                Failure::failed(format!("--tenant {slug}: there is no such tenant"))
            })?;
            tenant_ids.push(tenant.id);
        }
        Ok(NewUser {
            email: self.email,
            name: self.name,
            identities: self.identities,
            tenant_ids,
            ..NewUser::new(self.issuer, self.subject)
        })
    }
}

async fn set_admin(
    platform: &Platform,
    who: &Who,
    is_admin: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let key = match (&who.id, &who.issuer, &who.subject) {
        (_, Some(issuer), Some(subject)) => UserKey::Subject { issuer, subject },
        (id, ..) => UserKey::Id(id.as_deref().unwrap_or_default()),
    };
    let patch = UserPatch { platform_admin: Some(is_admin), ..UserPatch::default() };
    let user = platform.directory.update_user(key, patch, &Edit::by(operator())).await;
    show(&user.map_err(failed)?, as_json)
}

async fn list(platform: &Platform, as_json: bool) -> Result<(), Failure> {
    let mut users: Vec<User> = Vec::new();
    let mut query = UserQuery { limit: dezky_core::directory::MAX_PAGE, ..UserQuery::default() };
    loop {
        let page = platform.directory.store().users(&query).await.map_err(failed)?;
        let Some(last) = page.last() else { break };
        query.after = Some(UserCursor::of(last));
        users.extend(page);
    }
    if as_json {
        return print(&format!("{}\n", json!({ "users": users })));
    }
    let rows = users.iter().map(|user| {
        [
            user.id.clone(),
            printable(user.email.as_deref().unwrap_or("-")),
            user.status.to_string(),
            if user.platform_admin { "admin" } else { "-" }.to_owned(),
            user.last_login_at.map_or_else(|| "never".to_owned(), |at| at.to_string()),
        ]
    });
    print(&table(&["id", "email", "status", "platform", "last login"], rows))
}

fn show(user: &User, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&format!("{}\n", json!(user)));
    }
    let admin = if user.platform_admin { ", platform admin" } else { "" };
    let email = printable(user.email.as_deref().unwrap_or("without e-mail"));
    print(&format!("{}: {email}, {}{admin}\n", user.id, user.status))
}

//! The users of the directory who present tokens.

use std::sync::Arc;

use dezky::Platform;
use dezky_core::directory::{Directory, Edit, NewUser, User, UserKey};
use dezky_core::{Actor, ActorType, Error, ErrorKind, Result, Runtime};

use super::oidc::Verified;

/// The directory, as far as sign-in needs it.
pub struct Users {
    directory: Directory,
    runtime: Arc<dyn Runtime>,
}

impl Users {
    /// The users of a platform.
    pub fn of(platform: &Platform) -> Self {
        let (store, log) = (platform.stores().directory.clone(), platform.log.clone());
        let runtime = platform.runtime();
        Self {
            directory: Directory::new(store, log, Arc::clone(runtime)),
            runtime: Arc::clone(runtime),
        }
    }

    /// The user with the token's issuer and subject, as the directory knows them now. The first
    /// token of a user creates them without any right; `ip` is the address for that event.
    ///
    /// # Errors
    /// `field_invalid` if the directory can't hold the subject; those of the store.
    pub(super) async fn of_token(&self, token: &Verified, ip: Option<String>) -> Result<User> {
        let key = UserKey::Subject { issuer: &token.issuer, subject: &token.subject };
        let now = self.runtime.now();
        let login = token.authenticated_at.unwrap_or(now).min(now);
        let Some(user) = self.directory.store().user(key).await? else {
            let new = NewUser {
                email: token.email.clone(),
                name: token.name.clone(),
                last_login_at: Some(login),
                ..NewUser::new(&*token.issuer, &*token.subject)
            };
            return self.create(new, key, ip).await;
        };
        let is_news = user
            .last_login_at
            .is_none_or(|last| login.saturating_since(last) >= Directory::LOGIN_RESOLUTION);
        if !is_news || !user.is_active() {
            return Ok(user);
        }
        match self.directory.record_login(key, login).await {
            Ok(user) => Ok(user),
            Err(error) => {
                // Reads are served while the store takes no writes.
                tracing::warn!(code = error.code(), "the time of a login can't be recorded");
                Ok(user)
            }
        }
    }

    async fn create(&self, new: NewUser, key: UserKey<'_>, ip: Option<String>) -> Result<User> {
        let by = |email: Option<String>| {
            Edit::by(Actor { email, ip: ip.clone(), ..Actor::of(ActorType::User) })
        };
        let mut created = self.directory.create_user(new.clone(), &by(new.email.clone())).await;
        if is(&created, ErrorKind::FieldInvalid) {
            // E-mail address and name are information: strange ones keep nobody out.
            let bare = NewUser { email: None, name: None, ..new };
            created = self.directory.create_user(bare, &by(None)).await;
        }
        if is(&created, ErrorKind::AlreadyExists) {
            // Another request of the same user was faster.
            let user = self.directory.store().user(key).await?;
            return user.map_or(created, Ok);
        }
        created
    }
}

fn is(result: &std::result::Result<User, Error>, kind: ErrorKind) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == kind)
}

//! The users of the directory who present tokens.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dezky::Platform;
use dezky_core::directory::{Directory, Edit, NewUser, User, UserKey};
use dezky_core::{Actor, ActorType, Error, ErrorKind, Result, Runtime, Timestamp};
use futures_util::future::{Either, select};
use tokio::sync::Semaphore;

use super::oidc::Verified;

/// The maximum number of users that tokens of one issuer create in a minute.
pub const MAX_CREATED_PER_MINUTE: u32 = 100;
/// The maximum time for recording one login.
const MAX_RECORDING: Duration = Duration::from_secs(10);

/// The directory, as far as sign-in needs it.
pub struct Users {
    directory: Arc<Directory>,
    runtime: Arc<dyn Runtime>,
    /// One login at a time is recorded.
    recording: Arc<Semaphore>,
    created: Mutex<BTreeMap<String, Window>>,
}

/// The creations of a minute.
#[derive(Clone, Copy)]
struct Window {
    began_at: Timestamp,
    count: u32,
}

/// The reasons for which no user is found.
pub(super) enum Refusal {
    /// Too many users were created in this minute.
    TooMany,
    /// The directory refused.
    Directory(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Directory(error)
    }
}

impl Users {
    /// The users of a platform.
    pub fn of(platform: &Platform) -> Self {
        let (store, log) = (platform.stores().directory.clone(), platform.log.clone());
        let runtime = Arc::clone(platform.runtime());
        Self {
            directory: Arc::new(Directory::new(store, log, Arc::clone(&runtime))),
            runtime,
            recording: Arc::new(Semaphore::new(1)),
            created: Mutex::default(),
        }
    }

    /// The user with the token's issuer and subject, as the directory knows them now. The first
    /// token of a user creates them without any right; `ip` is the address for that event. The
    /// time of the login is recorded afterwards.
    ///
    /// # Errors
    /// `field_invalid` if the directory can't hold the subject; those of the store.
    pub(super) async fn of_token(
        &self,
        token: &Verified,
        ip: Option<String>,
    ) -> std::result::Result<User, Refusal> {
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
            if !self.may_create(&token.issuer, now) {
                return Err(Refusal::TooMany);
            }
            let created = self.create(new, key, ip).await;
            if !matches!(&created, Ok((_, true))) {
                self.uncount(&token.issuer);
            }
            return Ok(created?.0);
        };
        // The directory decides which later logins are news; earlier ones are none for certain.
        let may_be_news = user.last_login_at.is_none_or(|last| last < login || last > now);
        if may_be_news && user.is_active() {
            self.record_login(&user, login);
        }
        Ok(user)
    }

    /// Records a login without delaying its request. While one is recorded, others are left to
    /// the user's next request.
    fn record_login(&self, user: &User, login: Timestamp) {
        let Ok(turn) = Arc::clone(&self.recording).try_acquire_owned() else { return };
        let (directory, runtime) = (Arc::clone(&self.directory), Arc::clone(&self.runtime));
        let id = user.id.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let record = pin!(directory.record_login(UserKey::Id(&id), login));
            let timeout = runtime.sleep(MAX_RECORDING);
            // Reads are served while the store takes no writes.
            match select(record, timeout).await {
                Either::Left((Ok(_), _)) => {}
                Either::Left((Err(error), _)) => {
                    tracing::warn!(code = error.code(), "the time of a login can't be recorded");
                }
                Either::Right(_) => tracing::warn!("the time of a login can't be recorded in time"),
            }
        });
    }

    /// Counts a creation, unless too many were counted in this minute.
    fn may_create(&self, issuer: &str, now: Timestamp) -> bool {
        const MINUTE: Duration = Duration::from_mins(1);
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Window { began_at: now, count: 0 };
        // As many entries as configured issuers.
        let window = created.entry(issuer.to_owned()).or_insert(fresh);
        if window.began_at > now || now.saturating_since(window.began_at) >= MINUTE {
            *window = fresh;
        }
        let may = window.count < MAX_CREATED_PER_MINUTE;
        window.count += u32::from(may);
        may
    }

    /// Takes back the count of a creation that made no user.
    fn uncount(&self, issuer: &str) {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = created.get_mut(issuer) {
            window.count = window.count.saturating_sub(1);
        }
    }

    /// The user, and whether this call created them.
    async fn create(
        &self,
        new: NewUser,
        key: UserKey<'_>,
        ip: Option<String>,
    ) -> Result<(User, bool)> {
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
            return user.map_or(created, Ok).map(|user| (user, false));
        }
        created.map(|user| (user, true))
    }
}

fn is(result: &std::result::Result<User, Error>, kind: ErrorKind) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == kind)
}

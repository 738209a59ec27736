//! A separate database per test, on a server that `.ci/with-servers` has started. Tests of other
//! crates include this file.

use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// The value of a variable that names a server; required, because the tests can't run without it.
#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are")]
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run the tests by .ci/with-servers"))
}

/// The URL of a database on the server at `server`, whose URL may have a query.
pub(crate) fn at_database(server: &str, name: &str) -> String {
    let (address, query) = server.split_once('?').unwrap_or((server, ""));
    let start = address.find("://").unwrap() + 3;
    let host = address[start..].split('/').next().unwrap();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{}{host}/{name}{query}", &address[..start])
}

/// A database with a random name, dropped at the end, except on the double of MongoDB.
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// Creates one on PostgreSQL.
    pub(crate) async fn postgres() -> Self {
        let database = Self::drawn(&variable("DEZKY_TEST_POSTGRES"));
        let create = format!("CREATE DATABASE {}", database.name);
        administrate(&database.server, create).await.unwrap();
        database
    }

    /// Names one on the MongoDB server, which creates it at the first write.
    pub(crate) fn mongodb() -> Self {
        Self::drawn(&variable("DEZKY_TEST_MONGODB"))
    }

    fn drawn(server: &str) -> Self {
        let mut drawn = [0; 8];
        TokioRuntime.fill_random(&mut drawn);
        let name = format!("dezky_test_{:016x}", u64::from_be_bytes(drawn));
        Self { server: server.to_owned(), name }
    }

    pub(crate) fn url(&self) -> String {
        at_database(&self.server, &self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (std::mem::take(&mut self.server), std::mem::take(&mut self.name));
        apart(async move {
            if server.starts_with("postgres") {
                let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                let _ = administrate(&server, drop).await;
            } else if let Ok(client) = mongodb::Client::with_uri_str(&server).await
                && !is_double(&client).await
            {
                let _ = client.database(&name).drop().await;
            }
        });
    }
}

/// Whether the server is the double of a MongoDB server. It syncs once per document when dropping a
/// database and serves nobody meanwhile, so the databases are left there.
async fn is_double(client: &mongodb::Client) -> bool {
    let build = mongodb::bson::doc! { "buildInfo": 1 };
    let build = client.database("admin").run_command(build).await;
    build.is_ok_and(|build| build.contains_key("secantusVersion"))
}

async fn administrate(server: &str, sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(server).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

/// Runs a future where there may be no runtime, or one that must not be blocked.
#[expect(clippy::disallowed_methods, reason = "drop is not async")]
fn apart(work: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _ = std::thread::spawn(move || runtime.block_on(work)).join();
}

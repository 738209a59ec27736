use std::time::Duration;

use dezky_core::{Error, ErrorKind};

/// The bound of one question to a server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Awaits the answer of a server within 10 s.
pub(crate) async fn answer<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        )),
    }
}

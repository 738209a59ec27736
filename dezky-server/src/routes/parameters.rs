//! Paths and queries, read so that what is wrong with them is a problem.

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use dezky_core::directory::MAX_PAGE;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Problem;

/// The one name in the path. One that is not UTF-8 names nothing.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name))
            .map_err(|_| Problem::not_found("the path is not UTF-8 text"))
    }
}

/// The parameters of the query, each given once.
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| Problem::query_invalid("the query is not URL-encoded"))?;
        for (index, (name, _)) in parameters.iter().enumerate() {
            if parameters[..index].iter().any(|(before, _)| before == name) {
                let name = shown(name);
                return Err(Problem::query_invalid(format!("{name} is given more than once")));
            }
        }
        Ok(Self(parameters))
    }
}

impl Parameters {
    /// The names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Refuses names other than `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(unknown(name, &known.join(", "))),
        }
    }

    /// The value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// The only parameter there is, `true` or `false`; false without it.
    pub(super) fn switch(&self, name: &str) -> Result<bool, Problem> {
        self.only(&[name])?;
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::query_invalid(format!("{name} must be true or false"))),
        }
    }

    /// How many documents a page has: `limit`, 1 to 500, 100 without it.
    pub(super) fn page_limit(&self) -> Result<usize, Problem> {
        let Some(text) = self.get("limit") else { return Ok(100) };
        text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
            Problem::query_invalid(format!("limit must be a number, 1 to {MAX_PAGE}"))
        })
    }
}

/// A page of documents: the next one begins after the cursor of the last, where
/// this one is full.
pub(super) fn page<T: Serialize>(
    name: &str,
    documents: Vec<T>,
    limit: usize,
    cursor: impl FnOnce(&T) -> String,
) -> Json<Value> {
    let next = documents.last().filter(|_| documents.len() >= limit).map(cursor);
    Json(json!({ name: documents, "nextCursor": next }))
}

/// A parameter that there is not.
pub(super) fn unknown(name: &str, known: &str) -> Problem {
    Problem::query_invalid(format!("{} is no parameter: there are {known}", shown(name)))
}

/// A name is only repeated as far as it helps.
fn shown(name: &str) -> String {
    name.chars().take(40).collect()
}
